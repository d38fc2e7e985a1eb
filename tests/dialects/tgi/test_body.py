"""TGI's parameters: none of its page's is forgotten, each stands in the docs, and what they ask of an engine."""

import json
from pathlib import Path
from typing import Any

import pytest

from serve_app.dialects.tgi.body import GenerateBody, GenerateParameters
from serve_app.exchange.validation import parse_json
from serve_app.messages import OutputFormat, Sampling
from tests.tgi_page import properties

DOCS = (Path(__file__).parent.parent.parent.parent / "docs" / "api.md").read_text()
GREEDY = Sampling(
    max_tokens=100, temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0, keeps_stop=True
)  # fmt: skip
SAMPLED: dict[str, Any] = {"temperature": 1.0}
AN_OBJECT = OutputFormat("json_schema", '{"type": "object", "properties": {}}')  # as TGI reads `properties`


def sampling(has_token_details: bool = False, **parameters: Any) -> Sampling:
    body = parse_json(json.dumps({"inputs": "hi", "parameters": parameters}).encode(), GenerateBody)
    return body.parameters.sampling(has_token_details=has_token_details)


def test_every_parameter_of_the_page_is_honoured_or_refused() -> None:
    known = GenerateParameters.model_fields.keys() | GenerateParameters.neutral.keys()
    assert known == properties("GenerateParameters")
    assert properties("CompatGenerateRequest") < GenerateBody.model_fields.keys()


@pytest.mark.parametrize("name", sorted(properties("GenerateParameters")))
def test_every_parameter_stands_in_the_docs(name: str) -> None:
    assert f"`{name}`" in DOCS


@pytest.mark.parametrize(
    ("parameters", "changes"),
    [
        ({}, {}),
        ({"do_sample": False}, {}),
        ({"do_sample": True}, SAMPLED),
        ({"temperature": 0.5}, {"temperature": 0.5}),
        ({"top_k": 7}, SAMPLED | {"top_k": 7}),
        ({"top_p": 0.5}, SAMPLED | {"top_p": 0.5}),
        ({"max_new_tokens": 7}, {"max_tokens": 7}),
        (
            {"repetition_penalty": 1.5, "frequency_penalty": -1},
            {"repetition_penalty": 1.5, "frequency_penalty": -1.0},
        ),
        ({"seed": 0}, {"seed": 0}),
        ({"stop": ["a", "b"]}, {"stop": ("a", "b")}),
        ({"best_of": 1}, {}),
        ({"best_of": 2, "do_sample": True}, SAMPLED | {"num_answers": 2, "num_logprobs": 0}),
        ({"top_n_tokens": 3}, {}),
        ({"top_n_tokens": 3, "has_token_details": True}, {"num_logprobs": 3}),
        ({"has_token_details": True}, {"num_logprobs": 0}),
        ({"grammar": {"type": "regex", "value": "a"}}, {"output_format": OutputFormat("regex", "a")}),
        ({"grammar": {"type": "json", "value": "{}"}}, {"output_format": OutputFormat("json_schema", "{}")}),
        ({"grammar": {"type": "json", "value": {"properties": {}}}}, {"output_format": AN_OBJECT}),
        ({"grammar": {"type": "json", "value": '{"properties": {}}'}}, {"output_format": AN_OBJECT}),
        ({"grammar": {"type": "json_schema", "value": {"schema": {"properties": {}}}}}, {"output_format": AN_OBJECT}),
        ({"return_full_text": True, "details": True, "truncate": 5, "adapter_id": "a"}, {}),
    ],
)
def test_what_parameters_ask_of_an_engine(parameters: dict[str, Any], changes: dict[str, Any]) -> None:
    asked = sampling(**parameters)
    assert asked == Sampling(**{name: getattr(GREEDY, name) for name in Sampling.__slots__} | changes)
