"""Where requests go: to what is in cache, and never to one replica only."""

import random
from collections import Counter

from serve_app.cache_keys import cache_keys
from serve_app.messages import GenerationRequest, Message, RgbImage, Role, Sampling, Text
from serve_app.routing.affinity import Placements

REPLICAS = ("r1", "r2", "r3", "r4")


def image(seed: int, width: int = 32, height: int = 48) -> RgbImage:
    return RgbImage(width, height, random.Random(seed).randbytes(width * height * 3))


def turn(role: Role, *parts: str | RgbImage) -> Message:
    return Message(role, tuple(Text(part) if isinstance(part, str) else part for part in parts))


def request(*messages: Message, model: str = "m") -> GenerationRequest:
    return GenerationRequest("id", model, messages, Sampling(), 10.0)


def shared(first: GenerationRequest, second: GenerationRequest) -> bool:
    return bool(set(cache_keys(first)) & set(cache_keys(second)))


def test_the_same_image_has_a_key_in_common_whatever_is_asked_of_it() -> None:
    assert shared(request(turn("user", image(1), "short")), request(turn("user", "detailed", image(1))))


def test_an_instruction_alone_is_no_key_where_there_are_images() -> None:
    assert not shared(request(turn("user", image(1), "caption")), request(turn("user", image(2), "caption")))
    first, second = turn("user", image(1)), turn("user", image(2))
    before = (turn("system", "You caption."), turn("user", "Ready?"), turn("assistant", "Yes."))
    assert not shared(request(*before, first), request(*before, second))


def test_a_conversation_that_goes_on_has_its_longest_known_turn_first() -> None:
    opening = (turn("system", "Be kind."), turn("user", "Hello"))
    longer = (*opening, turn("assistant", "Hi!"), turn("user", "How are you?"))
    keys = cache_keys(request(*longer))
    assert cache_keys(request(*opening))[0] == keys[-1]
    assert cache_keys(request(*longer[:3]))[0] == keys[1]
    assert not shared(request(turn("system", "Be kind."), turn("user", "Bye")), request(*opening)), "system alone"


def test_models_and_sizes_are_told_apart() -> None:
    message = turn("user", image(1))
    assert not shared(request(message, model="a"), request(message, model="b"))
    pixels = image(1)
    turned = RgbImage(pixels.height, pixels.width, pixels.rgb)
    assert not shared(request(turn("user", pixels)), request(turn("user", turned)))


def test_what_was_seen_goes_where_it_was_unless_that_is_too_busy() -> None:
    placements: Placements[str] = Placements()
    keys = cache_keys(request(turn("user", image(1))))
    idle = dict.fromkeys(REPLICAS, 0)
    for known in REPLICAS:
        placements.remember(keys, known)
        assert placements.rank(keys, idle)[0] == known
        assert sorted(placements.rank(keys, idle)) == sorted(REPLICAS), "the others stay as a way out"
    assert placements.rank(keys, idle | {"r4": 3})[0] != "r4", "2 more than the mean is the bound"
    assert placements.rank(keys, dict.fromkeys(REPLICAS, 50) | {"r4": 60})[0] == "r4", "a quarter more is within it"
    assert placements.rank(keys, {"r1": 0, "r2": 0})[0] in ("r1", "r2"), "the replica is gone"


def test_ingresses_that_share_nothing_choose_the_same_replica() -> None:
    idle = dict.fromkeys(REPLICAS, 0)
    for seed in range(20):
        keys = cache_keys(request(turn("user", image(seed))))
        reversed_idle = dict.fromkeys(reversed(REPLICAS), 0)
        assert Placements[str]().rank(keys, idle)[0] == Placements[str]().rank(keys, reversed_idle)[0]


def test_few_keys_move_when_a_replica_goes() -> None:
    all_keys = [cache_keys(request(turn("user", f"text {number}"))) for number in range(200)]
    before = [Placements[str]().rank(keys, dict.fromkeys(REPLICAS, 0))[0] for keys in all_keys]
    after = [Placements[str]().rank(keys, dict.fromkeys(REPLICAS[:3], 0))[0] for keys in all_keys]
    moved = [old for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) == {"r4"}
    assert max(Counter(before).values()) < 80, "and they are spread"


def test_one_text_from_everybody_does_not_go_to_one_replica() -> None:
    placements: Placements[str] = Placements()
    in_flight = dict.fromkeys(REPLICAS, 0)
    keys = cache_keys(request(turn("user", "Hello")))
    for _ in range(400):  # none of them ends
        chosen = placements.rank(keys, in_flight)[0]
        placements.remember(keys, chosen)
        in_flight[chosen] += 1
    assert max(in_flight.values()) <= 1.25 * 100 + 3


def test_no_replica_is_no_choice() -> None:
    assert Placements[str]().rank([b"x"], {}) == []
    assert Placements[str]().rank([], {"r1": 0}) == ["r1"]
