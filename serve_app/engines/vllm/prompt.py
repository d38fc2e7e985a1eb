"""Renders a request's prompt by vLLM: with the model's chat template, or raw, its texts and images as they are."""

from dataclasses import replace
from typing import Any

from jinja2 import TemplateError
from pydantic import ValidationError
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.exceptions import VLLMClientError
from vllm.inputs import tokens_input

from serve_app.engines.context import prompt_too_long
from serve_app.engines.text.client_text import without_breaks
from serve_app.engines.text.prompt_tokens import check_ids, refuse_images, tokens_of, with_one_bos
from serve_app.engines.vllm.args import first_line
from serve_app.engines.vllm.loading import LoadedModel
from serve_app.engines.vllm.request import chat_request
from serve_app.errors import ContextTooLong, InvalidRequest, UnsupportedTask
from serve_app.messages import GenerationRequest, RawPrompt, Text, TokenizedPrompt

Rendered = tuple[ChatCompletionRequest, Any]  # vLLM's request, and the prompt that its engine takes

# A raw prompt is rendered as a chat template, so that vLLM processes its images as usual.
_RAW_TEMPLATE = (
    "{%- set seen = namespace(images=0) -%}"
    "{%- for part in messages[0]['content'] -%}"
    "{%- if part['type'] == 'text' -%}{{ part['text'] }}"
    "{%- else -%}{{ image_marks[seen.images] }}{%- set seen.images = seen.images + 1 -%}{%- endif -%}"
    "{%- endfor -%}"
)


async def render(request: GenerationRequest, model: LoadedModel, **more: Any) -> Rendered:
    """vLLM's request, with the fields `more`, and its prompt. Raises client errors."""
    _refuse_unsupported(request, model)
    request = model.texts.request(request)
    try:
        if request.raw:
            return await _render_raw(request, request.raw, model, more)
        chat = chat_request(request, is_plain=model.is_plain, **more)
        rendered = await _render_chat(chat, model)
    except TemplateError as exc:
        reason = without_breaks(str(exc))
        raise InvalidRequest(
            f"model '{request.model}' can't take this conversation (its chat template says: {reason}): change the "
            "order of its roles or the number and place of its images",
            "messages",
        ) from exc
    except (VLLMClientError, ValidationError, ValueError, TypeError) as exc:
        raise _refusal(request, model, exc) from exc
    if isinstance(rendered, ErrorResponse):
        raise InvalidRequest(f"model '{request.model}': {rendered.error.message}", rendered.error.param)
    (_, (prompt,)) = rendered
    return chat, prompt


async def _render_chat(chat: ChatCompletionRequest, model: LoadedModel) -> Any:
    renderer = model.renderer
    if not model.reads_breaks:
        return await renderer.render_chat(chat)
    # As `render_chat` does, except that the template sees the guarded texts of the tools.
    tools = [model.texts.value(tool.model_dump()) for tool in chat.tools] if chat.tools else None
    return await renderer.preprocess_chat(
        chat,
        chat.messages,
        renderer.chat_template,
        renderer.chat_template_content_format,
        renderer.default_chat_template_kwargs,
        tool_dicts=tools,
        parser=renderer.parser,
    )


async def tokenize(request: GenerationRequest, model: LoadedModel) -> TokenizedPrompt:
    """The prompt's text and tokens. Raises as `render`."""
    refuse_images(request)
    _, prompt = await render(request, model, return_token_offsets=True)
    offsets = prompt.get("prompt_token_offsets")
    if offsets is None:
        raise UnsupportedTask(f"the tokenizer of model '{request.model}' can't say where its tokens stand in a text")
    return tokens_of(prompt["prompt"], prompt["prompt_token_ids"], offsets)


async def _render_raw(
    request: GenerationRequest, raw: RawPrompt, model: LoadedModel, more: dict[str, Any]
) -> Rendered:
    if raw.tokens:
        size, tokenizer = model.llm.model_config.get_vocab_size(), model.renderer.renderer.get_tokenizer()
        check_ids(request, size, model.texts, tokenizer)
        return chat_request(request, **more), tokens_input(list(raw.tokens))
    first, *others = request.messages[0].parts
    if isinstance(first, Text):
        first = Text(with_one_bos(first.text, model.renderer.renderer.get_tokenizer()))
    message = replace(request.messages[0], parts=(first, *others))
    if raw.last_tokens is not None and raw.last_tokens < model.context_length:
        more = {**more, "truncate_prompt_tokens": raw.last_tokens, "truncation_side": "left"}
    marks = [model.image_mark(number) for number in range(1, len(request.images) + 1)]
    chat = chat_request(
        replace(request, messages=(message,)),
        add_special_tokens=True,
        chat_template_kwargs={"image_marks": marks},
        **more,
    )
    _, (prompt,) = await model.renderer.preprocess_chat(chat, chat.messages, _RAW_TEMPLATE, "openai", None)
    return chat, prompt


def _refuse_unsupported(request: GenerationRequest, model: LoadedModel) -> None:
    if request.images and not model.num_images_allowed:
        raise UnsupportedTask(
            f"model '{request.model}' reads text only: leave out the images, or choose another model"
        )
    if model.image_limit is not None and len(request.images) > model.image_limit:
        raise InvalidRequest(
            f"model '{request.model}' takes {model.image_limit} images, and {len(request.images)} were sent: "
            "send fewer",
            request.prompt_field,
        )
    if request.tool_use and request.tool_use.choice != "none" and not model.calls_tools:
        raise UnsupportedTask(
            f"model '{request.model}' calls no tools: leave them out, or give its engine_args a tool_call_parser",
            "tools",
        )


def _refusal(request: GenerationRequest, model: LoadedModel, exc: Exception) -> InvalidRequest | ContextTooLong:
    reason = without_breaks(first_line(exc))
    if "context length" in reason or "max_model_len" in reason or "longer than" in reason:
        return prompt_too_long(request, "more than that", model.context_length)
    return InvalidRequest(f"model '{request.model}' can't take this request: {reason}", request.prompt_field)
