"""Requests in TGI's dialect that are refused, each with the field that the refusal names; as JSON text."""

import json

from tests.malformed_json import Case


def generate(field: str, value: str) -> bytes:
    """A good request but for one parameter, which is this JSON text."""
    return f'{{"inputs": "hi", "parameters": {{"{field}": {value}}}}}'.encode()


# Each value is wrong, and `parameters.` and the name stand in the refusal.
PARAMETERS: dict[str, tuple[str, ...]] = {
    "max_new_tokens": ("0", "-1", "1.5", '"5"', "true", "[]", "2147483648", "9" * 60),
    "temperature": ("0", "-1", "0.0", '"1"', "true", "1e999", "[]"),
    "top_p": ("0", "1", "1.0", "-0.5", "2", '"0.5"', "1e999"),
    "top_k": ("0", "-1", "1.5", '"4"', "2147483648", "9" * 30),
    "typical_p": ("0", "0.5", "1.0", '"0.5"'),
    "repetition_penalty": ("0", "-1", "10.5", '"1"', "1e999"),
    "frequency_penalty": ("-2.1", "2.1", '"0"', "1e999"),
    "stop": ('"a"', "5", '[""]', "{}", json.dumps([f"stop{n}" for n in range(17)])),
    "truncate": ("0", "-1", "1.5", '"5"', "9" * 60),
    "seed": ("-1", "1.5", '"7"', "9223372036854775808"),
    "best_of": ("0", "-1", "2", "17", "1.5", '"2"'),
    "do_sample": ("1", '"true"', "[]"),
    "details": ("1", '"true"', "{}"),
    "return_full_text": ("1", '"no"'),
    "decoder_input_details": ("1", '"no"'),
    "watermark": ("true", "1"),
    "top_n_tokens": ("-1", "21", "1.5", '"2"'),
    "grammar": (
        "5", '"json"', "{}", '{"type": "xml", "value": ""}', '{"type": "json"}', '{"type": "json", "value": 5}',
        '{"type": "json", "value": "["}', '{"type": "json", "value": "[]"}', '{"type": "regex", "value": {}}',
        '{"type": "json_schema", "value": {}}', '{"type": "json_schema", "value": {"schema": []}}',
        json.dumps({"type": "regex", "value": "(a|b)*" * 20_000}),
        json.dumps({"type": "json", "value": "[" * 50_000}),
    ),
    "adapter_id": ("5", "[]", json.dumps("x" * 300)),
    # nobody's
    "max_tokens": ("5",),
    "temprature": ("1",),
    "samples": ("true",),
    "neutral": ("{}",),
}  # fmt: skip

# Whole bodies, and what the refusal says.
BODIES: dict[str, tuple[bytes, str]] = {
    "no inputs": (b"{}", "inputs is missing"),
    "null inputs": (b'{"inputs": null}', "inputs"),
    "empty inputs": (b'{"inputs": ""}', "inputs"),
    "a list of inputs": (b'{"inputs": ["hi"]}', "inputs"),
    "a number as inputs": (b'{"inputs": 5}', "inputs"),
    "a lone surrogate": (b'{"inputs": "\\ud800"}', "JSON"),
    "a raw NUL": (b'{"inputs": "a\0b"}', "JSON"),
    "NaN": (b'{"inputs": "hi", "parameters": {"temperature": NaN}}', "JSON"),
    "parameters as a list": (b'{"inputs": "hi", "parameters": []}', "parameters"),
    "parameters as a text": (b'{"inputs": "hi", "parameters": "greedy"}', "parameters"),
    "an unknown field": (b'{"inputs": "hi", "parametres": {}}', "did you mean 'parameters'"),
    "unknown options": (b'{"inputs": "hi", "options": {"gpu": true}}', "options.gpu"),
    "a seed with several answers": (
        b'{"inputs": "hi", "parameters": {"best_of": 2, "do_sample": true, "seed": 1}}', "parameters.seed"),
    "a prompt beyond the context": (b'{"inputs": "' + b"word " * 2000 + b'"}', "2000 tokens"),
    "an answer beyond the context": (
        b'{"inputs": "hi", "parameters": {"max_new_tokens": 5000}}', "context length is 1000 tokens. "
        "However, you requested 5001 tokens (1 in the prompt, 5000 in the completion): ask for max_new_tokens of"),
    "an image that can't be fetched": (b'{"inputs": "![](http://10.0.0.1/x.png)"}', "isn't public"),
    "an image of another kind": (b'{"inputs": "![](file:///etc/passwd)"}', "inputs"),
    "an image that is none": (b'{"inputs": "![](data:image/png;base64,aGVsbG8=)"}', "inputs"),
    "too many images": (b'{"inputs": "' + b"![](data:image/png;base64,aGVsbG8=)" * 9 + b'"}', "9 images"),
    "an image in a cut prompt": (
        b'{"inputs": "![](data:image/png;base64,aGVsbG8=)", "parameters": {"truncate": 5}}', "parameters.truncate"),
    "the engine's own refusal": (b'{"inputs": "!no-such"}', "unknown command"),
}  # fmt: skip


def _refused(content: bytes, says: str) -> Case:
    return Case(content, None, says, 422, "validation", path="/generate")


def tgi_cases() -> dict[str, Case]:
    """All of the above, by readable names; `param` is what stands in the sentence."""
    cases = {
        f"{name}: {value[:60]}": _refused(generate(name, value), name)
        for name, values in PARAMETERS.items()
        for value in values
    }
    return cases | {name: _refused(content, says) for name, (content, says) in BODIES.items()}
