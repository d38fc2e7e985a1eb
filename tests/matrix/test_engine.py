"""Every promised architecture on the transformers engine, in float32: loads, captions, chats, batches, refuses."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoProcessor, LogitsProcessor, LogitsProcessorList
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import is_torchvision_available

from serve_app.config.applications import ModelConfig
from serve_app.engines.text.client_text import special_tokens
from serve_app.engines.transformers.checkpoint import Checkpoint
from serve_app.engines.transformers.engine import TransformersEngine
from serve_app.engines.transformers.processors import NoVideoProcessor, without_videos
from serve_app.engines.transformers.prompt import prepare
from serve_app.engines.transformers.prompt_batch import collate
from serve_app.engines.transformers.remote.model import RemoteModel
from serve_app.errors import ConfigError, InvalidRequest, UnsupportedTask
from serve_app.families import caption_prompt
from serve_app.messages import GenerationRequest, Message, RawPrompt, RgbImage, Text
from tests.matrix.conftest import Checkpoints
from tests.matrix.outcomes import record
from tests.matrix.rows import ROWS, Row
from tests.streaming import stream
from tests.tiny_engine import answer, chunks_of, image, num_bytes, num_running, request, started, together

pytestmark = pytest.mark.engine

WITH_CODE = [row for row in ROWS if row.needs_code]
WITH_VIDEOS = [row for row in ROWS if row.has_videos]


@asynccontextmanager
async def serving(row: Row, checkpoints: Checkpoints, **settings: Any) -> AsyncIterator[TransformersEngine]:
    source = checkpoints.of(row)
    async with started(source, dtype="float32", trust_remote_code=row.needs_code, **settings) as engine:
        yield engine


def loaded(engine: TransformersEngine) -> Checkpoint:
    assert engine._checkpoint is not None
    return engine._checkpoint


def mixed_requests(row: Row) -> list[GenerationRequest]:
    """A caption of two images with one prompt, longer and shorter questions, and texts where it answers to them."""
    caption = caption_prompt(row.family, "short")
    asked = []
    if row.takes_images:
        asked += [
            request(image(40, 24, 1), caption),
            request(image(40, 24, 2), caption, max_tokens=20),
            request(image(40, 24, 3), "what colour has it?"),
            request(image(24, 60, 4), "hi", max_tokens=5),
        ]
    if row.image_limit is None:
        asked.append(request("first", image(40, 24, 5), "and then", image(64, 64, 6), "differ?"))
    if not row.needs_image:
        asked += [request("a text"), request("a longer text about nothing at all", max_tokens=9)]
    return asked


async def test_it_is_known_for_what_it_is(row: Row, checkpoints: Checkpoints) -> None:
    async with serving(row, checkpoints) as engine:
        assert engine.family == row.family
        assert engine.takes_images == row.takes_images
        assert engine.image_limit == (row.image_limit or None)
        assert loaded(engine).architecture.needs_image == row.needs_image


async def test_int8(row: Row, checkpoints: Checkpoints) -> None:
    """Its linear weights take one byte, and it answers."""
    asked = mixed_requests(row)[0]
    async with serving(row, checkpoints) as engine:
        plain = num_bytes(loaded(engine).model)
    async with serving(row, checkpoints, quantization="int8") as engine:
        assert num_bytes(loaded(engine).model) < 0.9 * plain
        _, num_tokens, _ = await answer(engine, asked)
        assert num_tokens > 0
    record(row.name, "int8", "yes")


async def test_a_raw_prompt_is_what_its_template_makes(row: Row, checkpoints: Checkpoints) -> None:
    """The template's own text, sent raw with the images in their places, is the same prompt to the token."""
    async with serving(row, checkpoints) as engine:
        checkpoint = loaded(engine)
        asked = [each for each in mixed_requests(row) if all(len(m.parts) <= 2 for m in each.messages)]
        for chat in asked:
            raw = replace(chat, raw=RawPrompt())
            if isinstance(checkpoint.model, RemoteModel):
                with pytest.raises(UnsupportedTask):
                    prepare(checkpoint, raw)
                continue
            if getattr(checkpoint.processor, "chat_template", None):
                raw = replace(raw, messages=(Message("user", templated(checkpoint, chat)),))
            told, own = prepare(checkpoint, chat), prepare(checkpoint, raw)
            assert torch.equal(told.tensors["input_ids"], own.tensors["input_ids"])
            assert (await answer(engine, raw))[1] > 0


def templated(checkpoint: Checkpoint, chat: GenerationRequest) -> tuple[Text | RgbImage, ...]:
    """The parts of a raw prompt that say what the template makes of this chat."""
    content = [
        {"type": "text", "text": p.text} if isinstance(p, Text) else {"type": "image"} for p in chat.messages[0].parts
    ]
    is_text = not checkpoint.takes_images
    text = checkpoint.processor.apply_chat_template(
        [{"role": "user", "content": content[0]["text"] if is_text else content}],
        tokenize=False,
        add_generation_prompt=True,
    )
    pieces = text.split(checkpoint.image_mark) if checkpoint.image_mark else [text]
    assert len(pieces) == len(chat.images) + 1, text
    parts: list[Text | RgbImage] = [Text(pieces[0])]
    for shown, piece in zip(chat.images, pieces[1:], strict=True):
        parts += [shown, Text(piece)]
    return tuple(parts)


async def test_batched_is_alone(row: Row, checkpoints: Checkpoints) -> None:
    asked = mixed_requests(row)
    async with serving(row, checkpoints, batch_wait_s=0.0) as engine:
        alone = [await answer(engine, one) for one in asked]
        prompts = [prepare(loaded(engine), one) for one in asked]
    async with serving(row, checkpoints, batch_wait_s=0.3) as engine:
        assert await together(engine, asked) == alone
    assert len({text for text, _, _ in alone}) == len(alone)  # each image and each text has its own answer
    assert all(num_tokens > 1 for _, num_tokens, _ in alone)
    alike = prompts[:3] if row.takes_images else prompts
    assert len({prompt.num_tokens for prompt in alike}) > 1
    num_batches = len({prompt.batch_key for prompt in alike})
    kinds = {1: "any prompts", len(alike): "one at a time"}
    record(row.name, "batches", kinds.get(num_batches, "prompts of one length"))


async def test_every_control_holds_beside_the_others(row: Row, checkpoints: Checkpoints) -> None:
    """In one batch, an answer for each way to choose tokens; none spoils the plain one."""
    parts = [image(40, 24, 1), "what?"] if row.takes_images else ["what?"]
    plain, apart = request(*parts, seed=5), {"max_tokens": 12, "ignores_eos": True}
    controls: list[dict[str, Any]] = [
        {"frequency_penalty": 1000.0, **apart}, {"presence_penalty": 1000.0, **apart},
        {"repetition_penalty": 1000.0, **apart}, {"min_tokens": 12}, {"num_logprobs": 2},
        {"temperature": 1.0, "seed": 3}, {"temperature": 1.0, "top_k": 2, "top_p": 0.5, "min_p": 0.1},
    ]  # fmt: skip
    async with serving(row, checkpoints, batch_wait_s=0.3) as engine:
        alone = await answer(engine, plain)
        asked = [plain, *(request(*parts, **control) for control in controls)]
        answers = await asyncio.gather(*(chunks_of(engine, one) for one in asked))
    texts = ["".join(chunk.text for chunk in chunks) for chunks in answers]
    nums = [sum(chunk.num_tokens for chunk in chunks) for chunks in answers]
    assert (texts[0], nums[0]) == alone[:2]
    assert nums[1:5] == [12] * 4
    assert all(chunk.logprobs for chunk in answers[5] if chunk.num_tokens)


async def test_the_answer_is_new_text_only(row: Row, checkpoints: Checkpoints) -> None:
    """An echo would make an answer of a long prompt longer than the tokens it may have."""
    long = "tell me more about what can be seen in this picture"
    asked = request(*([image(40, 24, 1)] if row.takes_images else []), long, max_tokens=3)
    async with serving(row, checkpoints, batch_wait_s=0.0) as engine:
        text, num_tokens, _ = await answer(engine, asked)
    assert num_tokens <= 3
    assert long[:12] not in text


class _FirstLogits(LogitsProcessor):  # type: ignore[misc]  # untyped
    def __init__(self) -> None:
        self.seen: torch.Tensor | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self.seen = scores.detach().clone() if self.seen is None else self.seen
        return scores


async def test_another_image_changes_the_first_logits(row: Row, checkpoints: Checkpoints) -> None:
    if not row.takes_images:
        return

    async with serving(row, checkpoints) as engine:
        logits = [_first_logits(loaded(engine), request(image(40, 24, seed), "what?")) for seed in (1, 2, 1)]
    assert torch.equal(logits[0], logits[2])
    assert (logits[0] - logits[1]).abs().max() > 1e-3


@torch.inference_mode()
def _first_logits(checkpoint: Checkpoint, asked: GenerationRequest) -> torch.Tensor:
    first = _FirstLogits()
    inputs = collate([prepare(checkpoint, asked)], checkpoint)
    checkpoint.model.generate(
        **inputs, max_new_tokens=1, logits_processor=LogitsProcessorList([first]), stopping_criteria=None
    )
    assert first.seen is not None
    return first.seen


async def test_too_many_images_are_refused_by_name_and_number(row: Row, checkpoints: Checkpoints) -> None:
    async with serving(row, checkpoints) as engine:
        if row.image_limit == 1:
            with pytest.raises(InvalidRequest, match=r"2 images and model 'tiny' takes 1"):
                await answer(engine, request(image(9, 9, 1), image(9, 9, 2), "both?"))
        if row.image_limit == 0:
            with pytest.raises(UnsupportedTask, match="reads text only"):
                await answer(engine, request(image(9, 9, 1), "what?"))
        if row.needs_image:
            with pytest.raises(InvalidRequest, match="answers only about an image"):
                await answer(engine, request("just a text"))


async def test_a_client_that_leaves_frees_it(row: Row, checkpoints: Checkpoints) -> None:
    images = [image(40, 24, 1)] if row.takes_images else []
    async with serving(row, checkpoints, batch_wait_s=0.0) as engine:
        async with aclosing(stream(engine, request(*images, "long", max_tokens=100))) as leaving:
            await anext(leaving)
        async with asyncio.timeout(30):
            while num_running(engine):  # noqa: ASYNC110 - the worker is a thread, with no event to wait for
                await asyncio.sleep(0.01)
        assert (await answer(engine, request(*images, "after")))[1] > 0


async def test_a_special_token_that_is_typed_is_a_text(row: Row, checkpoints: Checkpoints) -> None:
    """Every one that the tokenizer knows, typed by a stranger: where turns can be forged, the prompt has it no more
    often than without; elsewhere it is no image."""
    images = [image(40, 24, 2)] if row.takes_images else []
    good = request(*images, "what is this?", max_tokens=4)
    async with serving(row, checkpoints, batch_wait_s=0.1) as engine:
        checkpoint = loaded(engine)
        special = [token for token in special_tokens(checkpoint.tokenizer) if "patch_index" not in token]
        typed = [request(*images, f"this {token} is", max_tokens=4) for token in sorted(special)[:24]]
        alone = await answer(engine, good)
        answers = await asyncio.gather(*(answer(engine, one) for one in (good, *typed)))
        if not isinstance(checkpoint.model, RemoteModel):
            has_turns = bool(getattr(checkpoint.processor, "chat_template", None))
            guarded = special if has_turns else [one for one in special if one in checkpoint.texts.placeholders]
            ids = set(checkpoint.tokenizer.convert_tokens_to_ids(guarded))
            counts = {
                sum(token in ids for token in prepare(checkpoint, one).tensors["input_ids"][0].tolist())
                for one in (good, *(each for each in typed if any(word in text_of(each) for word in guarded)))
            }
            assert len(counts) == 1
    assert answers[0] == alone


def text_of(asked: GenerationRequest) -> str:
    return "".join(part.text for part in asked.messages[0].parts if isinstance(part, Text))


@pytest.mark.parametrize("row", WITH_CODE, ids=lambda row: row.name)
async def test_code_that_nobody_trusts_is_not_run(row: Row, checkpoints: Checkpoints) -> None:
    with pytest.raises(ConfigError, match="trust_remote_code: true"):
        await TransformersEngine(ModelConfig(source=str(checkpoints.of(row)))).start()


@pytest.mark.parametrize("row", WITH_VIDEOS, ids=lambda row: row.name)
async def test_videos_need_torchvision_and_images_do_not(row: Row, checkpoints: Checkpoints) -> None:
    async with serving(row, checkpoints) as engine:
        videos = loaded(engine).processor.video_processor
    assert isinstance(videos, NoVideoProcessor) != is_torchvision_available()


@pytest.mark.second_environment
@pytest.mark.skipif(not is_torchvision_available(), reason="needs torchvision: make test-models")
@pytest.mark.parametrize("row", WITH_VIDEOS, ids=lambda row: row.name)
def test_the_stand_in_changes_no_prompt(row: Row, checkpoints: Checkpoints) -> None:
    """Token for token what `AutoProcessor` makes with the real video processor."""
    source, common = str(checkpoints.of(row)), {"revision": "main"}
    whole = AutoProcessor.from_pretrained(source, **common)
    parts = without_videos(PROCESSOR_MAPPING[type(AutoConfig.from_pretrained(source))], source, common)
    noise = Image.effect_noise((40, 24), 60).convert("RGB")
    content = [{"type": "image", "image": noise}, {"type": "text", "text": "what?"}]
    inputs = [
        processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
        )
        for processor in (whole, parts)
    ]
    assert inputs[0].keys() == inputs[1].keys()
    assert all(torch.equal(value, inputs[1][name]) for name, value in inputs[0].items())
