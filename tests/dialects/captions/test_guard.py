"""The guard: a bounded number of further attempts, each asked otherwise, and a report that says what happened."""

from typing import Any

import pytest

from serve_app.dialects.captions.answer import CaptionPrompt
from serve_app.dialects.captions.fields import Guard
from serve_app.dialects.captions.guard import CaptionGuard, Guarded
from serve_app.dialects.captions.quality import FINDINGS
from serve_app.errors import EngineFailed, ServeAppError
from serve_app.families.languages import ENGLISH, language_called
from serve_app.families.wish import Words
from serve_app.messages import Chunk, FinishReason, Sampling

PROMPT = "Write a long descriptive caption for this image in a formal tone."
GOOD = "A dog walks on the wet road."
LOOP = "a cat " * 40
META = "This image shows a dog."
GREEDY = Sampling(temperature=0.0)


class Model:
    """Says the given answers in turn; an error among them is raised. `asked` is how it was sampled each time."""

    def __init__(self, *answers: str | ServeAppError, finish: FinishReason = "stop") -> None:
        self._answers = answers
        self._finish = finish
        self.asked: list[Sampling] = []

    async def __call__(self, attempt: int, sampling: Sampling) -> Chunk:
        assert attempt == len(self.asked)
        self.asked.append(sampling)
        answer = self._answers[attempt]
        if isinstance(answer, ServeAppError):
            raise answer
        return Chunk(answer, 3, 7, self._finish)


async def run(model: Model, sampling: Sampling = GREEDY, left_s: float = 60.0, **fields: Any) -> Guarded:
    prompt, words = CaptionPrompt(PROMPT), Words(PROMPT, None, language=ENGLISH, lists_tags=False)
    guard = Guard(**{name: value for name, value in fields.items() if name in Guard.model_fields})
    if "prompt" in fields:
        prompt = fields["prompt"]
    if "words" in fields:
        words = fields["words"]
    return await CaptionGuard(guard, prompt, words).run(model, sampling, lambda: left_s)


async def test_a_good_caption_is_asked_for_once() -> None:
    model = Model(GOOD)
    guarded = await run(model)
    assert model.asked == [GREEDY]
    assert guarded.report() == {
        "passed": True, "findings": [], "checks": list(FINDINGS), "chosen": 0, "attempts": [{"findings": []}],
    }  # fmt: skip


async def test_a_loop_is_asked_again_with_a_penalty_until_it_is_gone() -> None:
    model = Model(LOOP, LOOP, GOOD)
    guarded = await run(model)
    assert [s.repetition_penalty for s in model.asked] == [None, 1.1, 1.2]
    assert [s.temperature for s in model.asked] == [0.0, 0.4, 0.6]
    assert [s.seed for s in model.asked] == [None, 1, 2]
    assert guarded.chunks[guarded.chosen].text == GOOD
    report = guarded.report()
    assert (report["passed"], report["chosen"]) == (True, 2)
    assert report["attempts"][1] == {
        "findings": ["loop"], "changes": {"seed": 1, "temperature": 0.4, "repetition_penalty": 1.1},
    }  # fmt: skip


async def test_other_findings_change_the_seed_and_keep_what_the_client_chose() -> None:
    model = Model(META, META, META)
    sampling = Sampling(temperature=1.2, seed=2**63 - 1, top_p=0.5)
    guarded = await run(model, sampling)
    assert [(s.temperature, s.seed, s.repetition_penalty, s.top_p) for s in model.asked] == [
        (1.2, 2**63 - 1, None, 0.5), (1.2, 0, None, 0.5), (1.2, 1, None, 0.5),
    ]  # fmt: skip
    assert (guarded.report()["passed"], guarded.chosen, guarded.report()["findings"]) == (False, 0, ["meta_phrase"])


@pytest.mark.parametrize("retries", [0, 1, 5])
async def test_the_attempts_are_bounded(retries: int) -> None:
    model = Model(*[LOOP] * 9)
    await run(model, retries=retries)
    assert len(model.asked) == retries + 1


@pytest.mark.parametrize(
    ("answers", "chosen"), [((LOOP, META, LOOP), 1), (("", "", META), 2), ((META, "", LOOP), 0), ((LOOP, "", ""), 0)]
)
async def test_where_none_is_good_the_mildest_is_the_caption(answers: tuple[str, ...], chosen: int) -> None:
    assert (await run(Model(*answers))).chosen == chosen


async def test_only_the_checks_that_were_asked_for_count() -> None:
    model = Model(META)
    assert (await run(model, checks=["loop", "empty"])).report()["checks"] == ["empty", "loop"]


async def test_what_is_no_prose_is_checked_as_far_as_it_goes() -> None:
    as_json = await run(Model('{"caption": "This image shows a dog."}'), prompt=CaptionPrompt(PROMPT, form="json"))
    assert as_json.checks == ("empty", "loop", "truncated")
    places = await run(Model("car<loc_1><loc_2><loc_3><loc_4>"), prompt=CaptionPrompt("<OD>", reading="boxes"))
    assert places.checks == ("empty", "loop", "truncated")
    own_words = await run(Model(GOOD), words=Words("Was siehst du?", None))
    assert "wrong_language" not in own_words.checks


async def test_a_caption_in_another_language_is_asked_again() -> None:
    german = Words(PROMPT, None, language=language_called("de"), lists_tags=False)
    guarded = await run(Model(GOOD + " The sun is on the road.", "Ein Hund läuft auf der Straße."), words=german)
    assert [attempt.findings for attempt in guarded.attempts] == [("wrong_language",), ()]


async def test_a_cut_off_caption_is_found() -> None:
    assert (await run(Model(GOOD, GOOD, finish="length"), retries=1)).report()["findings"] == ["truncated"]


async def test_what_stops_a_further_attempt_is_told_and_the_caption_stands() -> None:
    failed = await run(Model(META, EngineFailed("the engine failed")))
    assert (failed.report()["stopped"], failed.chunks[failed.chosen].text) == ("engine_failed", META)
    late = await run(Model(META), left_s=-1.0)
    assert (late.report()["stopped"], len(late.attempts)) == ("deadline", 1)


async def test_a_first_attempt_that_fails_is_the_answer() -> None:
    with pytest.raises(EngineFailed):
        await run(Model(EngineFailed("the engine failed")))
