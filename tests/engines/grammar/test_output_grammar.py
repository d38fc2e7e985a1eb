"""Answers held to a format: what comes out fits it, and a hostile one costs its sender alone."""

import asyncio
import json
import random
import re
import signal
import threading
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from serve_app.engines.grammar import ending as grammar_ending
from serve_app.engines.grammar import source as grammar_source
from serve_app.engines.grammar import trial as grammar_trial
from serve_app.engines.grammar.ending import EndingTokens
from serve_app.engines.transformers import batch_worker
from serve_app.engines.transformers.output_grammar import GrammarCompiler
from serve_app.errors import InvalidRequest, Overloaded
from serve_app.messages import OutputFormat
from tests import tiny_models
from tests.streaming import stream
from tests.tiny_engine import answer, request, started, together

pytestmark = pytest.mark.engine

COLORS = {"enum": ["red", "blü", 'a "quote"\n', 3, None]}
SCENE = {
    "type": "object",
    "properties": {
        "color": {"enum": ["red", "grün"]},
        "name": {"type": "string", "maxLength": 4},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 3},
    },
    "required": ["color", "name", "sizes"],
    "additionalProperties": False,
}
CHOICES = ["yes", "no, never", "q\"uo\\te's", "ü 漢 𝄞", "two\nlines", "/re.*/"]


def byte_level() -> Any:
    return tiny_models.tokenizer()


def sentencepiece() -> Any:
    """Pieces with ▁ for spaces, and bytes for what has no piece, as in Llama 2's and Gemma's converted files."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "ü", "▁yes", "re", '"re']
    pieces += [chr(code) for code in range(33, 127)]
    bare = Tokenizer(
        models.BPE({piece: number for number, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    bare.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    bare.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]  # as convert_slow_tokenizer does
    )
    return PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def spec(kind: Any, value: Any = "") -> OutputFormat:
    return OutputFormat(kind, value if isinstance(value, str) else json.dumps(value))


def walks(tokenizer: Any, output_format: OutputFormat, num: int = 25) -> list[str]:
    """Texts from random walks through the grammar; those that found no end in 400 tokens are left out."""
    compiler = GrammarCompiler(tokenizer, frozenset([2]))
    texts = []
    for seed in range(num):
        grammar, chance = compiler.compile(output_format), random.Random(seed)
        tokens: list[int] = []
        while not grammar.is_complete and len(tokens) < 400:
            allowed = grammar.allowed(len(tokenizer)).nonzero()[:, 0].tolist()
            token = 2 if 2 in allowed else chance.choice(allowed)
            if token == 2:
                break
            grammar.take(token)
            tokens.append(token)
            assert not grammar.error
        if len(tokens) < 400:
            texts.append(tokenizer.decode(tokens, clean_up_tokenization_spaces=False))
    assert len(texts) > num / 2
    return texts


@pytest.mark.parametrize("tokenizer", [byte_level, sentencepiece])
def test_what_a_grammar_lets_through_fits_its_format(tokenizer: Any) -> None:
    tokens = tokenizer()
    for schema in (COLORS, SCENE):
        for text in walks(tokens, spec("json_schema", schema)):
            jsonschema.validate(json.loads(text), schema)  # strict JSON: no bare control characters
    chosen = set(walks(tokens, spec("choice", CHOICES)))
    assert chosen <= set(CHOICES)
    assert len(chosen) > 3
    for text in walks(tokens, spec("regex", r"[a-c]{3}-[0-9]+é? (ü|漢)")):
        assert re.fullmatch(r"[a-c]{3}-[0-9]+é? (ü|漢)", text)
    assert all(isinstance(json.loads(text), dict) for text in walks(tokens, spec("json_object")))


def test_every_value_of_an_enum_is_possible() -> None:
    texts = walks(byte_level(), spec("json_schema", COLORS), num=60)
    assert {json.dumps(json.loads(text)) for text in texts} == {json.dumps(value) for value in COLORS["enum"]}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


HOSTILE = {
    "no json": spec("json_schema", "{"),
    "no object": spec("json_schema", "true"),
    "deep brackets": spec("json_schema", "[" * 100_000),
    "deep schema": spec("json_schema", nested(60)),
    "a megabyte": spec("json_schema", {"enum": ["x" * 1_000_000]}),
    "half of a surrogate pair": spec("json_schema", {"enum": ["\ud800"]}),
    "memory": spec("json_schema", {"type": "array", "minItems": 100_000_000, "items": {"type": "integer"}}),
    "a panic": spec(
        "json_schema", {"type": "array", "maxItems": 100_000, "items": {"type": "array", "items": {"type": "string"}}}
    ),
    "time": spec("json_schema", {"type": "number", "multipleOf": 1_000_003}),
    "patterns at once": spec(
        "json_schema", {"type": "string", "allOf": [{"pattern": f".*[a-m].{{{n}}}[n-z].*"} for n in range(5, 40)]}
    ),
    "itself": spec("json_schema", {"$ref": "#"}),
    "elsewhere": spec("json_schema", {"$ref": "http://127.0.0.1/schema.json"}),
    "a file": spec("json_schema", {"$ref": "file:///etc/passwd"}),
    "unknown keyword": spec("json_schema", {"type": "array", "uniqueItems": True}),
    "unknown keyword, allowed by itself": spec(
        "json_schema", {"x-guidance": {"lenient": True}, "type": "array", "uniqueItems": True}
    ),
    "open group": spec("regex", "(a"),
    "look-ahead": spec("regex", "(?=a)b"),
    "deep groups": spec("regex", "(" * 3000 + "a" + ")" * 3000),
    "no choices": spec("choice", []),
    "an empty choice": spec("choice", ["a", ""]),
    "numbers": spec("choice", [1, 2]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_formats_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_source, "_TRIAL_TIMEOUT_S", 120.0)  # a busy machine says nothing of a format
    with pytest.raises(InvalidRequest) as refused:
        GrammarCompiler(byte_level(), frozenset([2])).compile(HOSTILE[name])
    assert refused.value.param == "response_format"
    assert "\n" not in refused.value.message
    assert len(refused.value.message) < 300


@pytest.mark.parametrize(
    "pattern", [r"(a{1,1000}){1,1000}", r"(x+x+)+y", r"[ab]*a[ab]{60}", r"(.*a){20}.{100}", r"\p{L}{1,500}\w{1,500}"]
)
def test_patterns_that_blow_up_elsewhere_run(pattern: str) -> None:
    grammar = GrammarCompiler(byte_level(), frozenset([2])).compile(spec("regex", pattern))
    assert grammar.allowed(263).any()


def test_compiled_formats_are_kept_and_walked_apart() -> None:
    compiler = GrammarCompiler(byte_level(), frozenset([2]))
    first = compiler.compile(spec("choice", ["ab", "cd"]))
    start = first.allowed(263)
    first.take(int(start.nonzero()[0]))
    assert compiler.compile(spec("choice", ["ab", "cd"])).allowed(263).equal(start)
    for number in range(100):
        compiler._kept._kept[spec("choice", [str(number)])] = "known to be bad"
    with pytest.raises(InvalidRequest, match="known to be bad"):
        compiler.compile(spec("choice", ["5"]))


@pytest.mark.parametrize("joins", [True, False])
async def test_answers_fit_in_any_company(
    checkpoints: dict[str, Path], joins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not joins:
        monkeypatch.setattr(batch_worker, "can_join", lambda model: False)
    asked = [
        request("free", max_tokens=15),
        request("json", output_format=spec("json_schema", COLORS), max_tokens=100),
        request("choose", output_format=spec("choice", CHOICES), max_tokens=50, temperature=1.0, seed=1),
        request("at length", output_format=spec("choice", CHOICES), max_tokens=50, min_tokens=30, ignores_eos=True),
        request("cut", output_format=spec("regex", "[ab]{40}"), max_tokens=9, num_logprobs=1),
    ]
    async with started(checkpoints["llama"]) as engine:
        alone = [await answer(engine, one) for one in asked]
        assert await together(engine, asked) == alone
    _, color, chosen, long, cut = alone
    assert json.loads(color[0]) in COLORS["enum"]
    assert chosen[0] in CHOICES
    assert long[0] in CHOICES
    assert [one[2] for one in (color, chosen, long)] == ["stop"] * 3
    assert re.fullmatch("[ab]{9}", cut[0])
    assert cut[1:] == (9, "length")


GUIDES = {  # of TGI's guide to guided generation: a model may write its texts and lists for ever
    "location": {"type": "string"},
    "activity": {"type": "string"},
    "animals_seen": {"type": "integer", "minimum": 1, "maximum": 5},
    "animals": {"type": "array", "items": {"type": "string"}},
}


@pytest.mark.parametrize("joins", [True, False])
async def test_json_ends_within_the_answers_tokens(
    checkpoints: dict[str, Path], joins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not joins:
        monkeypatch.setattr(batch_worker, "can_join", lambda model: False)
    schema = {"type": "object", "properties": GUIDES, "required": list(GUIDES)}
    form = spec("json_schema", schema)
    async with started(checkpoints["llama"]) as engine:
        for max_tokens in (80, 100, 200):
            asked = request(
                "ride", output_format=form, max_tokens=max_tokens, temperature=1.0, seed=3, ignores_eos=True
            )
            text, num_tokens, finish = await answer(engine, asked)
            jsonschema.validate(json.loads(text), schema)
            assert num_tokens <= max_tokens
            assert finish == "stop"
        text, *_ = await answer(engine, request("object", output_format=spec("json_object"), max_tokens=30))
        assert isinstance(json.loads(text), dict)
        cut = await answer(engine, request("too few", output_format=form, max_tokens=5, ignores_eos=True))
        assert cut[1:] == (5, "length")


def test_choices_stay_the_models_own_where_the_end_is_near() -> None:
    form = spec("json_schema", {"type": "object", "properties": {"color": {"enum": ["red", "blue", "xenon"]}}})
    tokens = byte_level()
    for word in ("red", "blue", "xenon"):
        grammar = GrammarCompiler(tokens, frozenset([2])).compile(form)
        told = tokens(f'{{"color": "{word}"}}').input_ids
        for at, token in enumerate(told):
            assert grammar.allowed(263, len(told) - at)[token], tokens.decode(told[:at])
            grammar.take(token)


@pytest.mark.parametrize(("max_tokens", "fits"), [(1400, True), (900, True), (100, False)])
def test_json_of_a_long_ending_ends_in_time(max_tokens: int, fits: bool) -> None:
    """A model that writes its first text for ever; at first even the shortest ending has hundreds of tokens."""
    names = [f"field {number}" for number in range(40)]
    schema = {"type": "object", "properties": {name: {"type": "string"} for name in names}, "required": names}
    tokens = byte_level()
    grammar = GrammarCompiler(tokens, frozenset([2])).compile(spec("json_schema", schema))
    written: list[int] = []
    letter = tokens("x").input_ids[0]
    while not grammar.is_complete and len(written) < max_tokens:
        allowed = grammar.allowed(263, max_tokens - len(written))
        written.append(letter if allowed[letter] else int(allowed.nonzero()[0]))
        grammar.take(written[-1])
    assert grammar.is_complete is fits
    if fits:
        jsonschema.validate(json.loads(tokens.decode([one for one in written if one != 2])), schema)


def test_looks_for_an_ending_are_few_and_short(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = byte_level()
    num_masks = 0
    schema = {"type": "array", "items": {"type": "string", "minLength": 5}, "minItems": 500}
    compiler = GrammarCompiler(tokens, frozenset([2]))
    shortest = EndingTokens.shortest

    def counted(ending_tokens: EndingTokens, mask: bytes) -> int | None:
        nonlocal num_masks
        num_masks += 1
        return shortest(ending_tokens, mask)

    monkeypatch.setattr(EndingTokens, "shortest", counted)
    grammar = compiler.compile(spec("json_schema", schema))
    grammar.allowed(263, 100_000)
    assert num_masks == 0  # far from the end nobody looks
    monkeypatch.setattr(grammar_ending, "_MAX_LOOK_S", 0.0)
    for num_left in range(2000, 0, -1):
        grammar.allowed(263, num_left)
    assert num_masks <= 11  # a look that may take no time is left at once, and taken up at half the tokens


@pytest.mark.parametrize("ends_by", [signal.SIGKILL, signal.SIGTERM, None])
def test_a_trial_that_got_no_time_says_nothing_of_its_format(
    ends_by: signal.Signals | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler, form = GrammarCompiler(byte_level(), frozenset([2])), spec("choice", ["a", "b"])
    with monkeypatch.context() as starved:
        if ends_by is None:
            starved.setattr(grammar_source, "_TRIAL_TIMEOUT_S", 0.001)
        else:
            starved.setattr(grammar_trial, "__file__", trial_that_dies(tmp_path, ends_by))
        with pytest.raises(Overloaded) as refused:
            compiler.compile(form)
    assert refused.value.retry_after_s
    assert compiler.compile(form).allowed(263).any()


@pytest.mark.parametrize("ends_by", [signal.SIGXCPU, signal.SIGABRT, signal.SIGSEGV])
def test_a_trial_that_met_its_own_limits_is_a_refusal(
    ends_by: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar_trial, "__file__", trial_that_dies(tmp_path, ends_by))
    with pytest.raises(InvalidRequest, match="too complex"):
        GrammarCompiler(byte_level(), frozenset([2])).compile(spec("choice", ["a", "b"]))


def trial_that_dies(folder: Path, ends_by: signal.Signals) -> str:
    script = folder / "trial.py"
    limit = "import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))"
    script.write_text(f"{limit}\nimport os, sys\nsys.stdin.read()\nos.kill(os.getpid(), {int(ends_by)})\n")
    return str(script)


async def test_several_answers_share_a_format(checkpoints: dict[str, Path]) -> None:
    asked = request("n", output_format=spec("choice", CHOICES), num_answers=4, temperature=1.0, seed=2, max_tokens=50)
    texts: dict[int, str] = {}
    async with started(checkpoints["llama"]) as engine:
        async for chunk in stream(engine, asked):
            texts[chunk.index] = texts.get(chunk.index, "") + chunk.text
    assert set(texts.values()) <= set(CHOICES)
    assert len(texts) == 4


async def test_a_slow_format_does_not_hold_up_the_others(checkpoints: dict[str, Path]) -> None:
    async with started(checkpoints["llama"]) as engine:
        done = threading.Event()
        for _ in range(2):  # what compiles is busy
            engine._compiling.submit(done.wait, 60)
        slow = asyncio.create_task(answer(engine, request("slow", output_format=HOSTILE["patterns at once"])))
        good = [request("good", ignores_eos=True), request("better", ignores_eos=True)]
        assert [num_tokens for _, num_tokens, _ in await together(engine, good)] == [12, 12]
        assert not slow.done()
        done.set()
        with pytest.raises(InvalidRequest, match="too complex"):
            await slow
