"""From a request's messages to a model's inputs, and from many requests' inputs to one batch.

Each prompt is prepared alone, so its companions never change its pixels or tokens. Prompts batch together
where their tensors line up; all else runs apart. Models without a chat template get the plain texts, a line each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError, UndefinedError
from PIL import Image

from serve_app.engines.checkpoint import Checkpoint
from serve_app.engines.remote_model import RemoteModel, Turn
from serve_app.errors import InvalidRequest, UnsupportedTask
from serve_app.messages import GenerationRequest, Message, Picture, Text

# InstructBLIP's Q-Former reads the text as well, with its own tokenizer, and is padded right like any BERT.
_SECOND_PROMPT = "qformer_"
# Stacks of frames that processors fill up with zeros, which the models drop: Idefics and LLaVA-NeXT kin.
_FRAME_STACKS = {"pixel_values": 5, "pixel_attention_mask": 4}


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request's model inputs, on the CPU, each with a first dimension of its own; `num_tokens` is its length.

    For remote code with a way of its own, `own` are its inputs, and there are no tensors.
    """

    tensors: dict[str, torch.Tensor]
    num_tokens: int
    batch_key: tuple[Any, ...]
    own: Any = None


def prepare(checkpoint: Checkpoint, request: GenerationRequest) -> Prompt:
    """The request as tensors. Slow (pictures): call it in a thread. Raises `RequestError`."""
    _check_pictures(checkpoint, request)
    _refuse_reserved_text(checkpoint, request)
    if isinstance(checkpoint.model, RemoteModel):
        return _own_prompt(checkpoint.model, request)
    try:
        inputs = _model_inputs(checkpoint, request)
    except (TemplateError, ValueError, TypeError, KeyError, IndexError, RuntimeError) as exc:
        # only a template's own words are told: other messages can quote the conversation
        reason = f"its chat template says: {exc}" if isinstance(exc, TemplateError) else "its processor refuses it"
        raise InvalidRequest(
            f"model '{request.model}' can't take this conversation ({reason[:300]}): change the order of its roles "
            "or the number and place of its pictures",
            "messages",
        ) from exc
    unused = checkpoint.architecture.unused_inputs
    tensors = {n: value for n, value in inputs.items() if isinstance(value, torch.Tensor) and n not in unused}
    if checkpoint.architecture.ends_with_separator:
        tensors |= {name: tensors[name][:, :-1] for name in ("input_ids", "attention_mask")}
    length = tensors["input_ids"].shape[1]
    if not length:
        raise InvalidRequest("the prompt is empty: send some text", "messages")
    return Prompt(tensors, length, _batch_key(tensors, length, checkpoint))


def _check_pictures(checkpoint: Checkpoint, request: GenerationRequest) -> None:
    """Refuse what no prompt of this architecture can hold, in words that name the limit."""
    num_pictures, limit = len(request.pictures), checkpoint.architecture.picture_limit
    if num_pictures and not checkpoint.takes_pictures:
        raise UnsupportedTask(
            f"model '{request.model}' reads text only: leave out the pictures, or choose another model"
        )
    if checkpoint.architecture.needs_picture and not num_pictures:
        raise InvalidRequest(f"model '{request.model}' answers only about a picture: send one", "messages")
    if limit is not None and num_pictures > limit:
        raise InvalidRequest(
            f"the conversation has {num_pictures} pictures and model '{request.model}' takes {limit}: send fewer",
            "messages",
        )


def _refuse_reserved_text(checkpoint: Checkpoint, request: GenerationRequest) -> None:
    """A placeholder of a picture or video typed as text would shift the pictures of the whole batch."""
    if not checkpoint.takes_pictures:
        return
    texts = [part.text for message in request.messages for part in message.parts if isinstance(part, Text)]
    for reserved in _reserved(checkpoint):
        if any(reserved in text for text in texts):
            raise InvalidRequest(f"the text contains {reserved}, which stands for a picture: take it out", "messages")


def _reserved(checkpoint: Checkpoint) -> set[str]:
    """Gemma 3 calls one token the picture's in its processor and another in its tokenizer; Qwen-VL has videos too."""
    if isinstance(checkpoint.model, RemoteModel):
        return {checkpoint.model.placeholder} if checkpoint.model.placeholder else set()
    holders = (checkpoint.processor, checkpoint.tokenizer)
    tokens = [getattr(holder, name, None) for holder in holders for name in ("image_token", "video_token")]
    return {str(token) for token in tokens if token}


def _own_prompt(model: RemoteModel, request: GenerationRequest) -> Prompt:
    try:
        made = model.own_prompt(_turns(request))
    except ValueError as exc:
        raise InvalidRequest(f"model '{request.model}' can't take this conversation: {exc}", "messages") from exc
    return Prompt({}, made.num_tokens, ("own", *made.batch_key), made.inputs)


def _turns(request: GenerationRequest) -> list[Turn]:
    """The user's and the model's turns; these models have no system role: such a message opens the user's turn."""
    turns: list[Turn] = []
    for message in request.messages:
        content = [part.text if isinstance(part, Text) else _image(part) for part in message.parts]
        if message.role not in ("user", "assistant", "system"):
            raise InvalidRequest(f"model '{request.model}' knows no role '{message.role}': leave it out", "messages")
        role = "assistant" if message.role == "assistant" else "user"
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += content
        else:
            turns.append({"role": role, "content": content})
    if turns[0]["role"] != "user":
        raise InvalidRequest("the conversation begins with the assistant: begin with the user", "messages")
    return turns


def _model_inputs(checkpoint: Checkpoint, request: GenerationRequest) -> dict[str, Any]:
    processor = checkpoint.processor
    if not getattr(processor, "chat_template", None):
        return _plain_inputs(checkpoint, request)
    content = _parts if checkpoint.takes_pictures else _joined_text
    conversation = [{"role": m.role, "content": content(m)} for m in request.messages]
    try:
        inputs = processor.apply_chat_template(
            conversation, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
    except (UndefinedError, TypeError):
        if not checkpoint.takes_pictures:
            raise
        return _string_inputs(processor, request)
    return dict(inputs)


def _string_inputs(processor: Any, request: GenerationRequest) -> dict[str, Any]:
    """For chat templates that want each message as one string and place the picture themselves: JoyCaption's."""
    conversation = [{"role": m.role, "content": _joined_text(m)} for m in request.messages]
    prompt = processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    has_start = bool(processor.tokenizer.bos_token) and prompt.startswith(processor.tokenizer.bos_token)
    pictures = [_image(p) for p in request.pictures]
    return dict(
        processor(text=[prompt], images=pictures or None, add_special_tokens=not has_start, return_tensors="pt")
    )


def _plain_inputs(checkpoint: Checkpoint, request: GenerationRequest) -> dict[str, Any]:
    placed = checkpoint.architecture.pictures
    mark = str(getattr(checkpoint.processor, "image_token", None) or "") if checkpoint.takes_pictures else ""
    lines = [_joined_text(m, mark if placed == "inline" else "") for m in request.messages]
    prompt = "\n".join(line for line in lines if line)
    if placed == "in_front":
        prompt = mark * len(request.pictures) + prompt
    if not checkpoint.takes_pictures:
        return dict(checkpoint.processor(prompt, return_tensors="pt"))
    pictures = [_image(p) for p in request.pictures]
    return dict(checkpoint.processor(text=[prompt], images=[pictures] if pictures else None, return_tensors="pt"))


def _joined_text(message: Message, picture_mark: str = "") -> str:
    return "".join(part.text if isinstance(part, Text) else picture_mark for part in message.parts)


def _parts(message: Message) -> list[dict[str, Any]]:
    return [
        {"type": "text", "text": part.text} if isinstance(part, Text) else {"type": "image", "image": _image(part)}
        for part in message.parts
    ]


def _image(picture: Picture) -> Image.Image:
    return Image.frombytes("RGB", (picture.width, picture.height), picture.rgb)


def _batch_key(tensors: dict[str, torch.Tensor], length: int, checkpoint: Checkpoint) -> tuple[Any, ...]:
    """Equal for prompts that one `generate` call may hold: the same tensors, of shapes that line up."""
    shapes = tuple(
        (name, tensor.dtype, *_fixed_shape(name, tensor, length, checkpoint))
        for name, tensor in sorted(tensors.items())
    )
    return (shapes, length) if checkpoint.architecture.equal_lengths_only else (shapes,)


def _is_along_prompt(name: str, tensor: torch.Tensor, length: int) -> bool:
    return name.startswith(_SECOND_PROMPT) or (
        tensor.dim() == 2 and tuple(tensor.shape) == (1, length) and not tensor.is_floating_point()
    )


def _fixed_shape(name: str, tensor: torch.Tensor, length: int, checkpoint: Checkpoint) -> tuple[int, ...]:
    """What of a tensor's shape its companions in a batch must share."""
    if _is_along_prompt(name, tensor, length):
        return ()
    if _is_strip(name, checkpoint):
        return tuple(tensor.shape[:-1])
    return tuple(tensor.shape[2 if _FRAME_STACKS.get(name) == tensor.dim() else 1 :])


def _is_strip(name: str, checkpoint: Checkpoint) -> bool:
    return name == "pixel_values" and checkpoint.architecture.has_pixel_strip


def collate(prompts: Sequence[Prompt], checkpoint: Checkpoint) -> dict[str, Any]:
    """One batch on the model's device: prompts padded left (encoder–decoders right), the rest stacked in order."""
    if isinstance(checkpoint.model, RemoteModel):
        return {"own_prompts": [prompt.own for prompt in prompts]}
    length = max(p.num_tokens for p in prompts)
    device, dtype = checkpoint.model.device, checkpoint.model.dtype
    batch = {}
    for name in prompts[0].tensors:
        rows = [p.tensors[name] for p in prompts]
        if name.startswith(_SECOND_PROMPT):
            longest = max(row.shape[1] for row in rows)
            rows = [_padded(row, longest, 0, on_the_right=True) for row in rows]
        elif _is_along_prompt(name, rows[0], prompts[0].num_tokens):
            value = checkpoint.pad_id if name == "input_ids" else 0
            rows = [_padded(row, length, value, checkpoint.is_encoder_decoder) for row in rows]
        elif _FRAME_STACKS.get(name) == rows[0].dim():
            rows = _with_equal_frames(rows)
        joined = torch.cat(rows, dim=-1 if _is_strip(name, checkpoint) else 0)
        batch[name] = joined.to(device, dtype) if joined.is_floating_point() else joined.to(device)
    return batch


def _padded(row: torch.Tensor, length: int, value: int, on_the_right: bool) -> torch.Tensor:
    missing = length - row.shape[1]
    return torch.nn.functional.pad(row, (0, missing) if on_the_right else (missing, 0), value=value)


def _with_equal_frames(rows: list[torch.Tensor]) -> list[torch.Tensor]:
    num_frames = max(row.shape[1] for row in rows)
    return [
        torch.cat([row, row.new_zeros(row.shape[0], num_frames - row.shape[1], *row.shape[2:])], dim=1)
        for row in rows
    ]
