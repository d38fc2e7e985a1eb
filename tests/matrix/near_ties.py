"""Two engines' greedy answers compared token by token, up to the first step at which rounding may decide."""

from collections.abc import Sequence

from serve_app.messages import Chunk, TokenLogprob

# Two logits this near may change places between two ways to add up the same numbers (other kernels).
NEAR_TIE = {"float32": 0.01, "bfloat16": 0.1}


def tokens_of(chunks: Sequence[Chunk]) -> list[TokenLogprob]:
    """Needs a request with `num_logprobs=2`."""
    return [one for chunk in chunks for one in chunk.logprobs]


def text_of(chunks: Sequence[Chunk]) -> str:
    """Without the half of a character at its end, which vLLM leaves out."""
    return "".join(chunk.text for chunk in chunks).rstrip("\ufffd")


def num_same(expected: Sequence[TokenLogprob], found: Sequence[TokenLogprob], dtype: str = "float32") -> int:
    """The number of steps before the first at which the two likeliest nearly tie; all of them must be the same.

    Told by the chosen tokens' log-probabilities: half a character's text is spelled differently by the two.
    """
    assert expected
    near = NEAR_TIE[dtype]
    for step, (one, other) in enumerate(zip(expected, found, strict=False)):
        if one.top[0].logprob - one.top[1].logprob < near:
            return step
        assert abs(one.logprob - other.logprob) < near, (step, one, other)
    assert len(expected) == len(found)
    return len(expected)
