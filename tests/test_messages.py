"""What travels between processes."""

import pickle

import pytest

from serve_app.messages import (
    GenerationRequest,
    Message,
    OutputFormat,
    RawPrompt,
    RgbImage,
    Sampling,
    Text,
    Tool,
    ToolCall,
    ToolUse,
)

HELLO = (Message("user", (Text("Hello"),)),)
NUM_MANY = 1_000
MANY_IMAGES = tuple(RgbImage(1, 1, bytes([number % 256, number // 256, 0])) for number in range(NUM_MANY))


def a_request(
    messages: tuple[Message, ...] = HELLO,
    sampling: Sampling | None = None,
    tools: ToolUse | None = None,
    raw: RawPrompt | None = None,
) -> GenerationRequest:
    return GenerationRequest("id", "model", messages, sampling or Sampling(), 60.0, tools, raw=raw)


@pytest.mark.parametrize(
    "request_",
    [
        a_request(),
        a_request((Message("user", (Text("\U0001f600" * 100_000),)),)),
        a_request(tuple(Message("user", (Text(str(number)),)) for number in range(NUM_MANY))),
        a_request(
            tuple(
                Message("assistant", (), (ToolCall(f"call {number}", f"tool {number}", "{}"),), f"of {number}")
                for number in range(NUM_MANY)
            )
        ),
        a_request((Message("user", MANY_IMAGES),)),
        a_request((Message("user", (RgbImage(1_000, 1_000, bytes(3_000_000)),)),)),
        a_request(raw=RawPrompt(tuple(range(2**31 - NUM_MANY, 2**31)))),
        a_request(sampling=Sampling(stop=("é" * 1_000,), output_format=OutputFormat("regex", "x" * 100_000))),
        a_request(tools=ToolUse(tuple(Tool(f"tool {number}", "{}", None) for number in range(NUM_MANY)))),
    ],
)
def test_a_request_knows_at_most_how_many_bytes_it_has_on_its_way(request_: GenerationRequest) -> None:
    num_pickled = len(pickle.dumps(request_, pickle.HIGHEST_PROTOCOL))
    assert num_pickled <= request_.num_bytes <= 12 * num_pickled + 10_000
