"""The hub's tasks on one image, as its clients send them to `POST /`: image-to-text, and a question about it.

Bodies and answers are those of the hub's specification of tasks, which huggingface_hub and @huggingface/inference
follow. A question about a document is one about its image; fields for engines that read its text are refused.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from serve_app.dialects.captions.answer import Caption
from serve_app.dialects.captions.body import CaptionRequest
from serve_app.dialects.captions.fields import CaptionFields
from serve_app.dialects.captions.task import CaptionTask
from serve_app.dialects.sampling_body import MAX_MODEL_CHARACTERS, Count
from serve_app.dialects.tgi.answer import TGI_NAMES
from serve_app.dialects.tgi.body import DEFAULT_TOKENS, HostedOptions
from serve_app.dialects.tgi.model import choose_model
from serve_app.errors import InvalidRequest
from serve_app.exchange.body import Body, LongText
from serve_app.exchange.exchange import Exchange
from serve_app.exchange.field_names import in_clients_words
from serve_app.images.gate import ImageBytes, ImageSource, source_from_text
from serve_app.messages import Chunk, Message, Sampling, Text

# The first bytes of a JPEG, PNG, WebP or GIF in base64, and only base64 after them: no prompt looks like that.
_IMAGE = re.compile(r"(data:image/[a-z]+;base64,|/9j/|iVBORw0KGgo|UklGR|R0lGOD)[A-Za-z0-9+/_\r\n-]*+=*+\s*+")


class CaptionParameters(Body):
    max_new_tokens: Count | None = Field(None, ge=1)


class QuestionParameters(Body):
    """`top_k` is the most answers to return; there is always one, the likeliest."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "doc_stride": (),
        "handle_impossible_answer": (),
        "lang": (),
        "max_answer_len": (),
        "max_question_len": (),
        "max_seq_len": (),
        "word_boxes": (),
    }

    top_k: Count | None = Field(None, ge=1)


class Question(Body):
    """`image` is the image's file in base64, its address, or a data URI."""

    question: LongText = Field(min_length=1)
    image: str = Field(min_length=1)


class _HubBody(Body):
    """What every task's body has; `model` is sent by the older client for Node."""

    model: str | None = Field(None, max_length=MAX_MODEL_CHARACTERS)
    options: HostedOptions | None = None


class CaptionImageBody(_HubBody):
    """`inputs` is the image's file in base64, or a data URI."""

    inputs: str
    parameters: CaptionParameters | None = None


class QuestionBody(_HubBody):
    inputs: Question
    parameters: QuestionParameters | None = None


class FlatQuestionBody(_HubBody, Question):
    """As huggingface_hub's `visual_question_answering` writes it: `inputs` is the image once more."""

    inputs: str | None = None
    parameters: QuestionParameters | None = None


def is_question(values: Mapping[str, Any]) -> bool:
    """Whether this body asks about an image."""
    has_parts = values.get("question") is not None or values.get("image") is not None
    return has_parts or isinstance(values.get("inputs"), dict)


def is_image(values: Mapping[str, Any]) -> bool:
    """Whether this body's `inputs` are an image's file, and no prompt."""
    inputs = values.get("inputs")
    return isinstance(inputs, str) and _IMAGE.fullmatch(inputs) is not None


async def caption_body(exchange: Exchange, values: dict[str, Any]) -> None:
    """The caption of an image that came in JSON. Raises `InvalidRequest`, and what the image gate does."""
    body = await exchange.validated(values, CaptionImageBody)
    most = body.parameters.max_new_tokens if body.parameters else None
    await _caption(exchange, source_from_text(body.inputs), "inputs", most or DEFAULT_TOKENS, body.model)


async def caption_file(exchange: Exchange, file: bytes) -> None:
    """The caption of an image's file, which was the whole body."""
    await _caption(exchange, ImageBytes(file), "body", DEFAULT_TOKENS)


async def _caption(
    exchange: Exchange, source: ImageSource, field: str, max_tokens: int, body_model: str | None = None
) -> None:
    """Its short caption, in the words of TGI's answers."""
    model = choose_model(exchange, body_model, task="caption")
    model.require_images(field)
    await exchange.count_images(1)
    fields = CaptionFields(model=model.name, max_tokens=max_tokens)
    task = CaptionTask(exchange, model, CaptionRequest(fields, [source], [field]))
    with in_clients_words(TGI_NAMES):
        (caption,) = await task.outcomes()
    assert isinstance(caption, Caption), "a failure of the only image is raised"
    await exchange.send_json([{"generated_text": caption.as_json()["caption"].strip()}])


async def answer_question(exchange: Exchange, values: dict[str, Any]) -> None:
    """The answer to a question about an image, and how likely the model thought it: a list of one.

    Raises `InvalidRequest`, and what the image gate does.
    """
    question: Question
    if isinstance(values.get("inputs"), dict):
        body = await exchange.validated(values, QuestionBody)
        question, field, body_model = body.inputs, "inputs.image", body.model
    else:
        question = flat = await exchange.validated(values, FlatQuestionBody)
        field, body_model = "image", flat.model
        if flat.inputs is not None and flat.inputs != flat.image:
            raise InvalidRequest("inputs: it and image are two images: send one", "inputs")
    model = choose_model(exchange, body_model, with_images=True)
    images = await exchange.load_images(model, [source_from_text(question.image)], [field], field)
    messages = (Message("user", (*images, Text(question.question))),)
    sampling = Sampling(max_tokens=DEFAULT_TOKENS, temperature=0.0, num_logprobs=0)
    request = exchange.generation(model, messages, sampling)
    (chunk,) = await exchange.answer(request, {"messages": "question"})
    await exchange.send_json([{"answer": chunk.text.strip(), "score": _probability(chunk)}])


def _probability(answer: Chunk) -> float:
    """Of the whole answer under the model: the product of its tokens'."""
    return min(1.0, math.exp(sum(token.logprob for token in answer.logprobs)))
