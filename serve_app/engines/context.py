"""How long an answer may become: what is left of the context after the prompt. The same rule for every engine."""

from serve_app.errors import ContextTooLong, DeadlineExceeded
from serve_app.messages import GenerationRequest

_MAX_TOKENS_WITHOUT_CONTEXT = 4096  # for models that state no context length, so that each answer ends


def answer_limit(request: GenerationRequest, num_prompt_tokens: int, context_length: int | None) -> int:
    """The most tokens of the answer. Raises `ContextTooLong` where prompt and answer don't fit together."""
    wanted = request.sampling.max_tokens
    if context_length is None:
        return wanted or _MAX_TOKENS_WITHOUT_CONTEXT
    room = context_length - num_prompt_tokens
    if room < 1:
        raise prompt_too_long(request, f"{num_prompt_tokens} tokens", context_length)
    if wanted and wanted > room:
        raise ContextTooLong(
            f"the prompt has {num_prompt_tokens} tokens and max_tokens is {wanted}, together "
            f"{num_prompt_tokens + wanted}; the context of model '{request.model}' is {context_length}: "
            f"ask for at most {room} tokens",
            "max_tokens",
        )
    return wanted or room


def prompt_too_long(request: GenerationRequest, size: str, context_length: int) -> ContextTooLong:
    """`size`: how long the prompt is, with its unit."""
    return ContextTooLong(
        f"the prompt has {size} and the context of model '{request.model}' is "
        f"{context_length} tokens, the answer included: shorten the {_said(request)} or send fewer pictures",
        request.prompt_field,
    )


def _said(request: GenerationRequest) -> str:
    return "conversation" if request.raw is None else "prompt"


def deadline_error(request: GenerationRequest) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"the answer of model '{request.model}' wasn't complete after {request.timeout_s:g} s: ask for fewer tokens"
    )
