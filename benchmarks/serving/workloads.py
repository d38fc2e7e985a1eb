"""What is asked of every system: chats and captions, by how many clients, how long, streamed or not.

Knows nothing of HTTP and nothing of systems. Names say it: `chat_c64` is a short streamed chat by 64 clients,
`long` answers have 512 tokens instead of 64, `whole` ones aren't streamed.
"""

from dataclasses import dataclass
from typing import Literal

SHORT, LONG = 64, 512  # tokens of an answer
CAPTION_TOKENS = 48  # at most: a caption ends where the model ends it
CHAT, OTHER_CHAT, CAPTIONER = "chat-a", "chat-b", "demo"  # the models' names

Way = Literal["data_uri", "upload", "url"]
Size = Literal["0.3mp", "12mp"]
Group = Literal["chat", "two_models", "captions"]
ClientName = Literal["public", "ours", "guidellm"]  # `public`: `vllm bench serve`, ours where it can't


@dataclass(frozen=True, slots=True)
class ImageKind:
    size: Size
    way: Way


@dataclass(frozen=True, slots=True)
class Load:
    """Requests for one model by clients that each send the next one when the last is answered."""

    model: str
    num_clients: int
    num_requests: int
    num_tokens: int = SHORT
    is_streamed: bool = True
    image: ImageKind | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """Loads that run at once. The first one's statistics are the cell's; the others lean on it.

    `capacity_share`: requests come by themselves (Poisson), at this share of the requests a second that the
    reference answered from 64 clients in this block; the load's clients only name the cell.
    `is_core`: the figures that this project answers for come from it, so it runs most often.
    """

    name: str
    group: Group
    loads: tuple[Load, ...]
    capacity_share: float | None = None
    is_core: bool = False
    client: ClientName = "public"  # another one also where this could, to compare clients or loads with each other

    @property
    def load(self) -> Load:
        return self.loads[0]

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(load.model for load in self.loads))

    @property
    def needs(self) -> frozenset[str]:
        """What a system must be able to do: `two_models`, `captions`, `upload`, `url`."""
        ways = {load.image.way for load in self.loads if load.image and load.image.way != "data_uri"}
        groups = {self.group} - {"chat"}
        return frozenset(groups | ways)

    @property
    def is_for_public_client(self) -> bool:
        """Whether `vllm bench serve` can do it: streamed chats with one model."""
        is_plain = len(self.loads) == 1 and self.load.is_streamed and self.load.image is None
        return is_plain and self.client == "public"


# Waves enough that a cell takes seconds, and tokens enough that 10 ms of processor time are under a percent.
_NUM_SHORT = {1: 32, 16: 192, 64: 384, 256: 768}
_NUM_LONG = {1: 6, 16: 48, 64: 128, 256: 256}
_CORE = ("chat_c1", "chat_c64", "chat_whole_c64")
REFERENCE_LOAD = "chat_c64"  # whose requests a second are the capacity


def _chat(num_clients: int, *, is_long: bool, is_streamed: bool) -> Workload:
    name = "_".join(["chat", *["long"] * is_long, *["whole"] * (not is_streamed), f"c{num_clients}"])
    num_requests = (_NUM_LONG if is_long else _NUM_SHORT)[num_clients]
    load = Load(CHAT, num_clients, num_requests, LONG if is_long else SHORT, is_streamed)
    return Workload(name, "chat", (load,), is_core=name in _CORE)


def _captions(size: Size, way: Way) -> Workload:
    num_clients, num_requests = (8, 96) if size == "0.3mp" else (4, 32)
    load = Load(CAPTIONER, num_clients, num_requests, CAPTION_TOKENS, False, ImageKind(size, way))
    return Workload(f"captions_{size}_{way}", "captions", (load,))


def _poisson(share: float) -> Workload:
    load = Load(CHAT, 64, 512)
    return Workload(f"poisson_{100 * share:.0f}", "chat", (load,), capacity_share=share)


_CHATS = tuple(
    _chat(num_clients, is_long=is_long, is_streamed=is_streamed)
    for is_long in (False, True)
    for is_streamed in (True, False)
    for num_clients in (1, 16, 64, 256)
)
_OUR_CLIENT = Workload("chat_c64_our_client", "chat", (Load(CHAT, 64, _NUM_SHORT[64]),), client="ours")
_GUIDELLM = Workload("chat_c64_guidellm", "chat", (Load(CHAT, 64, _NUM_SHORT[64]),), client="guidellm")
_TWO_MODELS = Workload("two_models_c64", "two_models", (Load(CHAT, 32, 192), Load(OTHER_CHAT, 32, 192)))
_BESIDE = Workload(
    "chat_beside_images",
    "captions",
    (Load(CHAT, 8, 192), Load(CAPTIONER, 2, 16, CAPTION_TOKENS, False, ImageKind("12mp", "data_uri"))),
)
_ALONE = Workload("chat_beside_nothing", "captions", (Load(CHAT, 8, 192),), client="ours")
_IMAGES = tuple(_captions(size, way) for size in ("0.3mp", "12mp") for way in ("data_uri", "upload", "url"))

WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        *sorted(_CHATS, key=lambda chat: not chat.is_core),
        _OUR_CLIENT,
        _GUIDELLM,
        _poisson(0.5),
        _poisson(0.8),
        _TWO_MODELS,
        *_IMAGES,
        _ALONE,
        _BESIDE,
    )
}
CORE = tuple(name for name, workload in WORKLOADS.items() if workload.is_core)
