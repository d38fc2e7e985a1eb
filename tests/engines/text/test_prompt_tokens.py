"""Raw prompts as tokens: one bos, a cut start, and the places of tokens in the text."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from serve_app.engines.text.prompt_tokens import cut_start, text_tokens, with_one_bos
from serve_app.engines.transformers.answer_text import AnswerText
from serve_app.errors import RequestError
from serve_app.messages import GenerationRequest, Message, RawPrompt, Sampling, Text
from tests import tiny_models
from tests.tiny_engine import chunks_of, image, request, started

pytestmark = pytest.mark.engine


def tokenizer_with_bos() -> Any:
    tokens = tiny_models.tokenizer()
    tokens.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokens


def test_a_prompt_has_one_bos_where_the_tokenizer_adds_it() -> None:
    tokens = tokenizer_with_bos()
    for text in ("abc", "<s>abc"):
        ids = tokens(with_one_bos(text, tokens)).input_ids
        assert ids == tokens("abc").input_ids
        assert ids.count(tokens.bos_token_id) == 1


def test_a_bos_that_the_tokenizer_does_not_add_is_the_clients_own() -> None:
    tokens = tiny_models.tokenizer()
    assert with_one_bos("<s>abc", tokens) == "<s>abc"
    assert with_one_bos("abc", tokens) == "abc"


@pytest.mark.parametrize(
    ("tokens", "last", "kept"),
    [
        ([1, 5, 6, 7], None, [0, 1, 2, 3]),
        ([1, 5, 6, 7], 4, [0, 1, 2, 3]),
        ([1, 5, 6, 7], 2, [0, 3]),
        ([1, 5, 6, 7], 1, [3]),
        ([5, 6, 7], 2, [1, 2]),
    ],
)
def test_a_cut_prompt_keeps_its_end_and_its_bos(tokens: list[int], last: int | None, kept: list[int]) -> None:
    assert cut_start(tokens, last, tiny_models.tokenizer()) == kept


def test_tokens_know_their_places() -> None:
    prompt = text_tokens(tokenizer_with_bos(), "aü", adds_special_tokens=True)
    assert [(one.start, one.stop) for one in prompt.tokens] == [(0, 0), (0, 1), (1, 2), (1, 2)]


async def test_a_raw_prompt_is_the_tokenizers_own_and_no_template_goes_around_it(tmp_path: Any) -> None:
    folder = tiny_models.build_llama(tmp_path / "llama")
    tokenizer_with_bos().save_pretrained(folder)
    tokens = AutoTokenizer.from_pretrained(folder)
    ids = tokens("abc", return_tensors="pt").input_ids
    assert ids[0, 0] == tokens.bos_token_id
    model = AutoModelForCausalLM.from_pretrained(folder)
    wanted = model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None)[0, ids.shape[1] :].tolist()

    def asked(text: str, raw: RawPrompt) -> GenerationRequest:
        sampling = Sampling(max_tokens=8, temperature=0.0, num_logprobs=0, ignores_eos=True)
        return GenerationRequest("id", "tiny", (Message("user", (Text(text),)),), sampling, 60, raw=raw)

    async with started(folder) as engine:
        for each in (
            asked("abc", RawPrompt()),
            asked("<s>abc", RawPrompt()),
            asked("a long text before abc", RawPrompt(last_tokens=4)),
            asked("", RawPrompt(tokens=tuple(ids[0].tolist()))),
        ):
            chunks = await chunks_of(engine, each)
            assert chunks[0].num_prompt_tokens == 4
            assert [one.id for chunk in chunks for one in chunk.logprobs] == wanted
        told = await engine.tokenize(asked("abc", RawPrompt()))
        assert [one.id for one in told.tokens] == ids[0].tolist()


async def test_a_model_without_a_template_reads_chats_raw(checkpoints: dict[str, Path]) -> None:
    async with started(checkpoints["plain"]) as engine:
        told = [
            await chunks_of(engine, asked) for asked in (request("abc"), replace(request("abc"), raw=RawPrompt()))
        ]
    assert [one.text for one in told[0]] == [one.text for one in told[1]]
    assert told[0][0].num_prompt_tokens == told[1][0].num_prompt_tokens


@pytest.mark.parametrize("name", ["llava", "idefics3"])
async def test_images_stand_where_they_stood(checkpoints: dict[str, Path], name: str) -> None:
    one, two = image(32, 32, 1), image(32, 32, 2)
    asked = [request(*parts) for parts in ((one, "abc", two), (two, "abc", one), ("abc", one, two))]
    async with started(checkpoints[name]) as engine:
        told = [await chunks_of(engine, replace(each, raw=RawPrompt())) for each in asked]
        chat = await chunks_of(engine, request(one, "abc", two))
        word = await chunks_of(engine, replace(request("a <image> b"), raw=RawPrompt()))
        assert word[0].num_prompt_tokens == len("a <image> b")
        with pytest.raises(RequestError, match="stands for an image"):
            await chunks_of(engine, replace(request(), raw=RawPrompt(tokens=(10, 3))))
        with pytest.raises(RequestError, match="images"):
            await engine.tokenize(replace(asked[0], raw=RawPrompt()))
    assert len({chunks[0].num_prompt_tokens for chunks in told}) == 1
    assert told[0][0].num_prompt_tokens < chat[0].num_prompt_tokens
    assert len({"".join(chunk.text for chunk in chunks) for chunks in told}) == 3


@pytest.mark.parametrize(
    ("pieces", "stop", "keeps_stop", "texts", "stopped_by"),
    [
        (["one ", "two ", "three"], ["two"], False, ["one ", ""], "two"),
        (["one ", "two ", "three"], ["two"], True, ["one ", "two"], "two"),
        (["a", "b", "c"], ["bc"], True, ["a", "b", "c"], "bc"),
        (["a", "b", "c"], ["bc"], False, ["a", "", ""], "bc"),
        (["a", "b", "d"], ["bc"], True, ["a", "b", "d"], None),
        (["a", "b", "d"], ["bc"], False, ["a", "", "bd"], None),
        (["xbcd"], ["bc", "c"], True, ["xbc"], "bc"),
        (["a", "b"], ["bc"], True, ["a", "b"], None),
    ],
)
def test_a_kept_stop_string_holds_nothing_back(
    pieces: list[str], stop: list[str], keeps_stop: bool, texts: list[str], stopped_by: str | None
) -> None:
    answer = AnswerText(lambda tokens: "".join(pieces[token] for token in tokens), stop, keeps_stop)
    given = []
    for token in range(len(pieces)):
        given.append(answer.add(token))
        if answer.is_stopped:
            break
    assert given == texts
    assert answer.stopped_by == stopped_by
    assert "".join(given) + answer.finish() == "".join(pieces) or stopped_by


THINKING = (
    "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    "{% generation %}{% if enable_thinking is defined and enable_thinking %}THINK{% endif %}{% endgeneration %}"
)


async def test_a_chat_template_reads_the_requests_variables_and_nothing_else_does(tmp_path: Path) -> None:
    async with started(tiny_models.build_llama(tmp_path / "thinker", THINKING)) as engine:

        async def prompt(template_args: str) -> str:
            return (await engine.tokenize(replace(request("abc"), template_args=template_args))).text

        assert await prompt("") == await prompt('{"enable_thinking": false}') == "abc"
        assert await prompt('{"enable_thinking": true}') == "abcTHINK"
        assert await prompt('{"max_length": 1, "truncation": true, "unheard_of": 2}') == "abc"
        chunks = await chunks_of(engine, replace(request("abc"), template_args='{"enable_thinking": true}'))
        assert chunks[0].num_prompt_tokens == len("abcTHINK")
