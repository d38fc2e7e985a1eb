"""How long an answer may become: what the prompt leaves of the context. The same rule for every engine."""

from serve_app.errors import ContextTooLong, DeadlineExceeded
from serve_app.messages import GenerationRequest

_MAX_TOKENS_WITHOUT_CONTEXT = 4096  # for models that state no context length, so that each answer ends


def answer_limit(request: GenerationRequest, num_prompt_tokens: int, context_length: int | None) -> int:
    """The most tokens of the answer. Raises `ContextTooLong` where prompt and answer don't fit together."""
    max_tokens = request.sampling.max_tokens
    if context_length is None:
        return max_tokens or _MAX_TOKENS_WITHOUT_CONTEXT
    room = context_length - num_prompt_tokens
    if room < 1:
        raise prompt_too_long(request, f"{num_prompt_tokens} tokens", context_length)
    if max_tokens and max_tokens > room:
        raise answer_too_long(request, num_prompt_tokens, max_tokens, context_length)
    return max_tokens or room


def prompt_too_long(request: GenerationRequest, size: str, context_length: int) -> ContextTooLong:
    """`size`: how long the prompt is, with its unit."""
    return ContextTooLong.of(
        context_length,
        f"your {request.prompt_field} resulted in {size}, and the answer needs room as well: shorten the "
        f"{request.prompt_field}, or send fewer images",
        request.prompt_field,
    )


def answer_too_long(
    request: GenerationRequest, num_prompt_tokens: int, max_tokens: int, context_length: int
) -> ContextTooLong:
    return ContextTooLong.of(
        context_length,
        f"you requested {num_prompt_tokens + max_tokens} tokens ({num_prompt_tokens} in the {request.prompt_field}, "
        f"{max_tokens} in the completion): ask for max_tokens of at most {context_length - num_prompt_tokens}",
        "max_tokens",
    )


def deadline_error(request: GenerationRequest) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"the answer of model '{request.model}' wasn't complete after {request.timeout_s:g} s: ask for fewer tokens"
    )
