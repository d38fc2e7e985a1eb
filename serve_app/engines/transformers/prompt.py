"""From a request's messages, or its raw prompt, to a model's inputs.

Each prompt is prepared alone, so its companions never change its pixels or tokens. Models without a chat template get
the plain texts, a line each.
"""

import json
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from jinja2 import Environment, TemplateError, UndefinedError, meta
from PIL import Image

from serve_app.engines.text.client_text import without_breaks
from serve_app.engines.text.prompt_tokens import check_ids, cut_start, refuse_images, text_tokens, with_one_bos
from serve_app.engines.transformers.checkpoint import Checkpoint
from serve_app.engines.transformers.prompt_batch import Prompt, batch_key, is_along_prompt
from serve_app.engines.transformers.remote.model import RemoteModel, Turn
from serve_app.errors import InvalidRequest, UnsupportedTask
from serve_app.messages import GenerationRequest, Message, RgbImage, Text, TokenizedPrompt


def prepare(checkpoint: Checkpoint, request: GenerationRequest) -> Prompt:
    """The request as tensors. Slow (images): call it in a thread. Raises `RequestError`."""
    _check_images(checkpoint, request)
    request = checkpoint.texts.request(request)
    if isinstance(checkpoint.model, RemoteModel):
        return _own_prompt(checkpoint.model, request)
    check_ids(request, checkpoint.model.get_input_embeddings().num_embeddings, checkpoint.texts, checkpoint.tokenizer)
    try:
        inputs = _model_inputs(checkpoint, request)
    except (TemplateError, ValueError, TypeError, KeyError, IndexError, RuntimeError) as exc:
        # only a template's own words are sent on: other messages can quote the conversation
        words = without_breaks(str(exc))
        reason = f"its chat template says: {words}" if isinstance(exc, TemplateError) else "its processor refuses it"
        raise InvalidRequest(
            f"model '{request.model}' can't take this conversation ({reason[:300]}): change the order of its roles "
            "or the number and place of its images",
            request.prompt_field,
        ) from exc
    unused = checkpoint.architecture.unused_inputs
    tensors = {n: value for n, value in inputs.items() if isinstance(value, torch.Tensor) and n not in unused}
    if checkpoint.architecture.ends_with_separator:
        tensors |= {name: tensors[name][:, :-1] for name in ("input_ids", "attention_mask")}
    if request.raw and request.raw.last_tokens:
        tensors = _cut(tensors, request.raw.last_tokens, checkpoint)
    length = tensors["input_ids"].shape[1]
    if not length:
        raise InvalidRequest("the prompt is empty: send some text", request.prompt_field)
    return Prompt(tensors, length, batch_key(tensors, length, checkpoint))


def tokenized(checkpoint: Checkpoint, request: GenerationRequest) -> TokenizedPrompt:
    """The tokens of the request's prompt, which has no images. Slow where it is long: call it in a thread."""
    refuse_images(request)
    request = checkpoint.texts.request(request)
    if isinstance(checkpoint.model, RemoteModel) and not request.raw:
        raise UnsupportedTask(f"model '{request.model}' makes its prompts itself: no template can be told")
    if request.raw or not checkpoint.has_template:
        text = _joined_lines(request)
        return text_tokens(checkpoint.tokenizer, text, adds_special_tokens=True)
    try:
        text = _templated(checkpoint, request, _parts if checkpoint.takes_images else _joined_text, tokenize=False)
    except TemplateError as exc:
        raise InvalidRequest(
            f"model '{request.model}' can't take this conversation: {without_breaks(str(exc))}"[:300], "messages"
        ) from exc
    return text_tokens(checkpoint.tokenizer, text, adds_special_tokens=False)


def _check_images(checkpoint: Checkpoint, request: GenerationRequest) -> None:
    num_images, limit = len(request.images), checkpoint.architecture.image_limit
    if num_images and not checkpoint.takes_images:
        raise UnsupportedTask(
            f"model '{request.model}' reads text only: leave out the images, or choose another model"
        )
    if checkpoint.architecture.needs_image and not num_images:
        raise InvalidRequest(f"model '{request.model}' answers only about an image: send one", request.prompt_field)
    if limit is not None and num_images > limit:
        raise InvalidRequest(
            f"the conversation has {num_images} images and model '{request.model}' takes {limit}: send fewer",
            request.prompt_field,
        )


def _cut(tensors: dict[str, torch.Tensor], last_tokens: int, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The end of a prompt without images."""
    tokens = tensors["input_ids"][0].tolist()
    kept = torch.tensor(cut_start(tokens, last_tokens, checkpoint.tokenizer))
    return {
        name: tensor[:, kept] if is_along_prompt(name, tensor, len(tokens)) else tensor
        for name, tensor in tensors.items()
    }


def _own_prompt(model: RemoteModel, request: GenerationRequest) -> Prompt:
    if request.raw:
        raise UnsupportedTask(f"model '{request.model}' makes its prompts itself: use /v1/chat/completions")
    try:
        prompt = model.own_prompt(_turns(request))
    except ValueError as exc:
        raise InvalidRequest(
            f"model '{request.model}' can't take this conversation: {exc}", request.prompt_field
        ) from exc
    return Prompt({}, prompt.num_tokens, ("own", *prompt.batch_key), prompt.inputs)


def _turns(request: GenerationRequest) -> list[Turn]:
    """These models have no system role: a system message opens the user's turn."""
    turns: list[Turn] = []
    for message in request.messages:
        content = [part.text if isinstance(part, Text) else _image(part) for part in message.parts]
        if message.role not in ("user", "assistant", "system"):
            raise InvalidRequest(
                f"model '{request.model}' knows no role '{message.role}': leave it out", request.prompt_field
            )
        role = "assistant" if message.role == "assistant" else "user"
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += content
        else:
            turns.append({"role": role, "content": content})
    if turns[0]["role"] != "user":
        raise InvalidRequest("the conversation begins with the assistant: begin with the user", request.prompt_field)
    return turns


def _model_inputs(checkpoint: Checkpoint, request: GenerationRequest) -> dict[str, Any]:
    if request.raw and request.raw.tokens:
        tokens = torch.tensor([request.raw.tokens])
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if request.raw or not checkpoint.has_template:
        return _plain_inputs(checkpoint, request)
    content = _parts if checkpoint.takes_images else _joined_text
    try:
        inputs = _templated(checkpoint, request, content, tokenize=True, return_dict=True, return_tensors="pt")
    except (UndefinedError, TypeError):
        if not checkpoint.takes_images:
            raise
        return _string_inputs(checkpoint, request)
    return dict(inputs)


def _string_inputs(checkpoint: Checkpoint, request: GenerationRequest) -> dict[str, Any]:
    """For chat templates that want each message as one string and place the image themselves: JoyCaption's."""
    prompt = _templated(checkpoint, request, _joined_text, tokenize=False)
    bos = checkpoint.processor.tokenizer.bos_token
    adds_special_tokens = not (bos and prompt.startswith(bos))
    images = [_image(image) for image in request.images] or None
    return dict(
        checkpoint.processor(
            text=[prompt], images=images, add_special_tokens=adds_special_tokens, return_tensors="pt"
        )
    )


def _plain_inputs(checkpoint: Checkpoint, request: GenerationRequest) -> dict[str, Any]:
    image_place = checkpoint.architecture.images
    prompt = _joined_lines(request, checkpoint.image_mark if image_place == "inline" else "")
    if request.raw:
        prompt = with_one_bos(prompt, checkpoint.tokenizer)
    if image_place == "in_front":
        prompt = checkpoint.image_mark * len(request.images) + prompt
    if not checkpoint.takes_images:
        return dict(checkpoint.processor(prompt, return_tensors="pt"))
    images = [[_image(image) for image in request.images]] if request.images else None
    return dict(checkpoint.processor(text=[prompt], images=images, return_tensors="pt"))


def _templated(
    checkpoint: Checkpoint, request: GenerationRequest, content: Callable[[Message], Any], **options: Any
) -> Any:
    """What the chat template makes of the messages, each with its `content`."""
    processor = checkpoint.processor
    conversation = [{"role": message.role, "content": content(message)} for message in request.messages]
    args = {}
    if request.template_args and isinstance(processor.chat_template, str):
        # those that the template reads: transformers would hand others to the processor itself
        names = _variables(processor.chat_template)
        args = {name: value for name, value in json.loads(request.template_args).items() if name in names}
    return processor.apply_chat_template(conversation, add_generation_prompt=True, **options, **args)


@lru_cache(maxsize=64)
def _variables(template: str) -> frozenset[str]:
    plain = re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", template)  # marks for training, transformers' own
    return frozenset(meta.find_undeclared_variables(Environment(extensions=["jinja2.ext.loopcontrols"]).parse(plain)))


def _joined_lines(request: GenerationRequest, image_mark: str = "") -> str:
    lines = [_joined_text(message, image_mark) for message in request.messages]
    return "\n".join(line for line in lines if line)


def _joined_text(message: Message, image_mark: str = "") -> str:
    return "".join(part.text if isinstance(part, Text) else image_mark for part in message.parts)


def _parts(message: Message) -> list[dict[str, Any]]:
    return [
        {"type": "text", "text": part.text} if isinstance(part, Text) else {"type": "image", "image": _image(part)}
        for part in message.parts
    ]


def _image(image: RgbImage) -> Image.Image:
    return Image.frombytes("RGB", (image.width, image.height), image.rgb)
