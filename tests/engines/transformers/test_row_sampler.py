"""Each setting of `Sampling`, through the engine with the step loop and with `generate`, and the maths alone."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from serve_app.engines.transformers import batch_worker
from serve_app.engines.transformers.answer_text import AnswerText
from serve_app.engines.transformers.prompt_batch import Prompt
from serve_app.engines.transformers.row import Row, RowSampling
from serve_app.engines.transformers.row_sampler import RowSampler
from serve_app.messages import Chunk
from tests.tiny_engine import answer, chunks_of, image, request, started, together

pytestmark = pytest.mark.engine

SIZE = 50
EOS = 7


@pytest.fixture(params=[True, False], ids=["joins", "generate"])
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.param:
        monkeypatch.setattr(batch_worker, "can_join", lambda model: False)


def row(prompt: tuple[int, ...] = (1, 2), tokens: tuple[int, ...] = (), seed: int = 0, **sampling: Any) -> Row:
    prepared = Prompt({"input_ids": torch.tensor([prompt])}, len(prompt), ())
    setting = RowSampling(random.Random(seed), **sampling)
    return Row(request("x"), 0, prepared, 9, setting, AnswerText(str, ()), str, 0.0, tokens=list(tokens))


def logits(seed: int = 0, num_rows: int = 1) -> torch.Tensor:
    return torch.randn(num_rows, SIZE, generator=torch.Generator().manual_seed(seed)) * 3


def reachable(asked: dict[str, Any], scores: torch.Tensor) -> set[int]:
    """Tokens that come in many draws."""
    sampler = RowSampler([row(**asked)], frozenset([EOS]), torch.device("cpu"))
    return {sampler.choose(scores.clone())[0].token for _ in range(3000)}


@pytest.mark.parametrize(
    "setting",
    [
        {"top_k": 5},
        {"top_p": 0.6},
        {"min_p": 0.2},
        {"top_k": 8, "top_p": 0.5},
        {"top_k": 20, "top_p": 0.9, "min_p": 0.1},
        {"top_k": 1},
        {"top_p": 1e-9},
    ],
)
def test_what_may_come_is_what_transformers_leaves(setting: dict[str, Any]) -> None:
    warpers = {"top_k": TopKLogitsWarper, "top_p": TopPLogitsWarper, "min_p": MinPLogitsWarper}
    left = logits()
    for name, value in setting.items():
        left = warpers[name](value)(None, left)
    expected = {token for token, p in enumerate(left.softmax(-1)[0].tolist()) if p > 0}
    drawn = reachable(setting | {"temperature": 1.0}, logits())
    assert drawn <= expected
    likely = {token for token in expected if left.softmax(-1)[0, token] > 0.005}
    assert likely <= drawn


def test_repetition_penalty_is_transformers_own() -> None:
    given = logits()
    expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([[1, 2, 9, 9]]), given.clone())
    told = row((1, 2), (9, 9), repetition_penalty=1.7)
    sampler = RowSampler([told], frozenset(), torch.device("cpu"))
    changed = given.clone()
    sampler.choose(changed)
    torch.testing.assert_close(changed, expected)


def test_frequency_counts_and_presence_does_not() -> None:
    rows = [
        row((1,), (9, 9, 4), frequency_penalty=0.5),
        row((1,), (9, 9, 4), presence_penalty=0.5),
        row((1,), (9, 9, 4)),
    ]
    sampler = RowSampler(rows, frozenset(), torch.device("cpu"))
    given = torch.zeros(3, SIZE)
    given[:, 30] = 5.0
    assert [choice.token for choice in sampler.choose(given)] == [30, 30, 30]
    assert given[:, [9, 4, 1, 30]].tolist() == [[-1.0, -0.5, 0.0, 5.0], [-0.5, -0.5, 0.0, 5.0], [0.0, 0.0, 0.0, 5.0]]
    again = torch.zeros(3, SIZE)
    sampler.choose(again)
    assert again[:, 30].tolist() == [-0.5, -0.5, 0.0]  # the token of the first step counts in the second


def test_logprobs_are_the_raw_ones() -> None:
    given = logits(num_rows=2)
    asked = row((1,), (3,), num_logprobs=3, temperature=0.1, repetition_penalty=2.0, top_k=4)
    sampler = RowSampler([row(), asked], frozenset([EOS]), torch.device("cpu"))
    silent, told = sampler.choose(given.clone())
    expected = given[1].log_softmax(-1)
    assert silent.top == ()
    assert told.logprob == pytest.approx(expected[told.token].item())
    values, ids = expected.topk(3)
    assert [token for token, _ in told.top] == ids.tolist()
    assert [value for _, value in told.top] == pytest.approx(values.tolist())


def test_a_row_draws_the_same_in_any_company() -> None:
    setting: dict[str, Any] = {"temperature": 1.3, "top_p": 0.9, "min_p": 0.01, "presence_penalty": 0.3, "seed": 5}
    given = logits(num_rows=3)
    alone = RowSampler([row(**setting)], frozenset(), torch.device("cpu")).choose(given[1:2].clone())
    company = [row(temperature=0.7, top_k=3), row(**setting), row(num_logprobs=2)]
    beside = RowSampler(company, frozenset(), torch.device("cpu")).choose(given.clone())
    assert beside[1] == alone[0]


async def indexed(engine: Any, asked: Any) -> dict[int, str]:
    texts: dict[int, str] = {}
    for chunk in await chunks_of(engine, asked):
        texts[chunk.index] = texts.get(chunk.index, "") + chunk.text
    return texts


@pytest.mark.usefixtures("loop")
async def test_several_answers_differ_and_come_again(checkpoints: dict[str, Path]) -> None:
    asked = request(image(30, 30, 1), "say", num_answers=5, temperature=1.0, seed=4, max_tokens=8)
    async with started(checkpoints["idefics3"], max_batch_size=2) as engine:
        first = await indexed(engine, asked)
        assert sorted(first) == [0, 1, 2, 3, 4]
        assert len(set(first.values())) == 5
        assert await indexed(engine, asked) == first
        alone = request(image(30, 30, 1), "say", temperature=1.0, seed=4, max_tokens=8)
        assert (await answer(engine, alone))[0] == first[0]
        chunks = await chunks_of(engine, asked)
    assert sum(chunk.finish_reason is not None for chunk in chunks) == 5
    assert [chunk.queue_s is not None for chunk in chunks] == [True] + [False] * (len(chunks) - 1)


def answer_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


@pytest.mark.usefixtures("loop")
async def test_every_token_has_one_logprob(checkpoints: dict[str, Path]) -> None:
    plain = request("héllo ü", max_tokens=40)
    async with started(checkpoints["llama"]) as engine:
        text, _, _ = await answer(engine, plain)
        told = request("héllo ü", max_tokens=40, num_logprobs=2, stop=(text[8:12],))
        chunks = await chunks_of(engine, told)
        assert all(len(chunk.logprobs) == chunk.num_tokens for chunk in chunks)
        assert answer_of(chunks) == text[: text.index(text[8:12])]
        assert sum(chunk.num_tokens for chunk in chunks) >= 12
        for logprob in (one for chunk in chunks for one in chunk.logprobs):
            assert len(logprob.top) == 2
            assert logprob.top[0].logprob == pytest.approx(logprob.logprob)  # greedy takes the likeliest
        none = await chunks_of(engine, request("héllo ü", num_logprobs=0))
        assert {len(one.top) for chunk in none for one in chunk.logprobs} == {0}


async def test_logprobs_are_what_the_model_says(checkpoints: dict[str, Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoints["llama"])
    tokens = AutoTokenizer.from_pretrained(checkpoints["llama"])
    prompt = tokens.apply_chat_template(
        [{"role": "user", "content": "abc"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(
        **prompt, max_new_tokens=5, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    expected = [step[0].log_softmax(-1).max().item() for step in out.logits]
    async with started(checkpoints["llama"]) as engine:
        chunks = await chunks_of(engine, request("abc", max_tokens=5, num_logprobs=1, temperature=0))
    told = [one.logprob for chunk in chunks for one in chunk.logprobs]
    assert told == pytest.approx(expected, abs=1e-4)


@pytest.mark.usefixtures("loop")
async def test_least_length_and_ignored_ends(checkpoints: dict[str, Path]) -> None:
    def asked(n: int, **sampling: Any) -> Any:
        return request(f"question {n}", temperature=1.5, seed=n, max_tokens=120, **sampling)

    async with started(checkpoints["llama"]) as engine:
        free = await together(engine, [asked(n) for n in range(24)])
        ends = [n for n, (_, num_tokens, finish) in enumerate(free) if finish == "stop" and num_tokens < 60]
        assert ends, "no answer ends by itself: choose other seeds"
        n = ends[0]
        longer, ignoring = await together(engine, [asked(n, min_tokens=70), asked(n, ignores_eos=True)])
        assert longer[1] >= 70
        assert ignoring[1:] == (120, "length")
        text = ignoring[0]
        stopped = await answer(engine, asked(n, ignores_eos=True, stop=(text[3:5],)))
        assert stopped[2] == "stop"
        late = await answer(engine, asked(n, ignores_eos=True, stop=(text[3:5],), min_tokens=30))
        assert late[1] >= 30


@pytest.mark.usefixtures("loop")
async def test_penalties_change_greedy_answers_of_their_rows_only(checkpoints: dict[str, Path]) -> None:
    def asked(**sampling: Any) -> Any:
        return request("again", max_tokens=60, ignores_eos=True, **sampling)

    settings: list[dict[str, Any]] = [
        {}, {"repetition_penalty": 1.5}, {"frequency_penalty": 1.0}, {"presence_penalty": 1.5}
    ]  # fmt: skip
    async with started(checkpoints["llama"]) as engine:
        alone = [await answer(engine, asked(**setting)) for setting in settings]
        assert await together(engine, [asked(**setting) for setting in settings]) == alone
    assert len({text for text, _, _ in alone}) == 4


async def test_the_checkpoints_own_settings_hold_where_the_request_has_none(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(checkpoints["llama"], tmp_path / "own")
    own = {"do_sample": True, "temperature": 1.2, "top_k": 1, "repetition_penalty": 1.4, "eos_token_id": 2}
    (folder / "generation_config.json").write_text(json.dumps(own))
    async with started(checkpoints["llama"]) as engine:
        penalized = await answer(engine, request("own", repetition_penalty=1.4, max_tokens=30))
        plain = await answer(engine, request("own", max_tokens=30))
    async with started(folder) as engine:
        assert await answer(engine, request("own", temperature=None, max_tokens=30)) == penalized  # top_k 1: greedy
        assert await answer(engine, request("own", repetition_penalty=1.0, max_tokens=30)) == plain
        free = request("own", temperature=None, top_k=0, seed=1, max_tokens=30)
        assert await answer(engine, free) != penalized
    assert penalized != plain
