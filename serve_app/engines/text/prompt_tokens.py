"""A prompt's text as tokens, by a tokenizer of transformers'. Knows no model and no tensors."""

from collections.abc import Iterable
from typing import Any

from serve_app.engines.text.break_reader import Place, unbroken
from serve_app.engines.text.client_text import TextGuard
from serve_app.errors import InvalidRequest, UnsupportedTask
from serve_app.messages import GenerationRequest, PromptToken, TokenizedPrompt


def with_one_bos(text: str, tokenizer: Any) -> str:
    """The text without a leading bos where the tokenizer adds one itself."""
    bos = tokenizer.bos_token
    if not bos or not text.startswith(bos):
        return text
    begins_with_bos = tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
    return text.removeprefix(bos) if begins_with_bos else text


def cut_start(tokens: list[int], last_tokens: int | None, tokenizer: Any) -> list[int]:
    """The places of the tokens to keep: `last_tokens` of them, with the first if it is the bos."""
    places = list(range(len(tokens)))
    if last_tokens is None or len(tokens) <= last_tokens:
        return places
    if tokens[0] == tokenizer.bos_token_id and last_tokens > 1:
        return [0, *places[len(tokens) - last_tokens + 1 :]]
    return places[len(tokens) - last_tokens :]


def check_ids(request: GenerationRequest, num_tokens: int, texts: TextGuard, tokenizer: Any) -> None:
    """Raise `InvalidRequest` for a prompt of ids that has an image's token or one the model lacks."""
    if not (request.raw and request.raw.tokens):
        return
    ids = set(request.raw.tokens)
    if any(not 0 <= token < num_tokens for token in ids):
        raise InvalidRequest(
            f"model '{request.model}' has {num_tokens} tokens: send ids from 0 to {num_tokens - 1}", "prompt"
        )
    for placeholder in texts.placeholders:
        if tokenizer.convert_tokens_to_ids(placeholder) in ids:
            raise InvalidRequest(f"the prompt has the token of {placeholder}, which stands for an image", "prompt")


def refuse_images(request: GenerationRequest) -> None:
    if request.images:
        raise UnsupportedTask("only text is tokenized, and this prompt has images: leave them out")


def text_tokens(tokenizer: Any, text: str, *, adds_special_tokens: bool) -> TokenizedPrompt:
    """The text's tokens. Raises `UnsupportedTask` where the tokenizer can't say where they stand."""
    if not tokenizer.is_fast:
        raise UnsupportedTask("this model's tokenizer can't say where its tokens stand in a text: use another model")
    encoded = tokenizer(text, add_special_tokens=adds_special_tokens, return_offsets_mapping=True)
    return tokens_of(text, encoded["input_ids"], encoded["offset_mapping"])


def tokens_of(text: str, ids: Iterable[int], places: Iterable[Place]) -> TokenizedPrompt:
    """The tokens of a text and their places, as the client knows it: without its breaks."""
    text, places = unbroken(text, places)
    tokens = (PromptToken(token, start, stop) for token, (start, stop) in zip(ids, places, strict=True))
    return TokenizedPrompt(text, tuple(tokens))
