"""Predicts which replica has a request's image or conversation in its cache.

A request has keys, from the most telling to the least: the whole conversation up to each turn, then its images.
An instruction alone is no key where there are images, because every caption has the same one. Knows nothing of
Ray.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from typing import Generic, TypeVar

_MAX_KEYS = 100_000  # remembered: 15 MB

R = TypeVar("R", bound=Hashable)


class Placements(Generic[R]):
    """Remembers where keys went, and ranks replicas for a request's keys with bounded imbalance.

    A replica is too busy for its cache to be worth the wait when it has more requests in flight than
    `max_imbalance` times the mean, plus `free_requests`.
    """

    def __init__(self, max_imbalance: float = 1.25, free_requests: int = 2) -> None:
        self._max_imbalance = max_imbalance
        self._free_requests = free_requests
        self._places: OrderedDict[bytes, R] = OrderedDict()

    def rank(self, keys: Sequence[bytes], in_flight: Mapping[R, int]) -> list[R]:
        """All replicas, the best first: the one that knows a key, else the less busy of two, else the least busy.

        The two are chosen by the key alone, so that every ingress chooses the same two; they balance about as
        well as two drawn by lot. Whichever is too busy comes after all that aren't.
        """
        two = sorted(_by_hash(keys[-1] if keys else b"", in_flight)[:2], key=in_flight.__getitem__)
        holder = self._holder(keys, in_flight)
        by_load = sorted(in_flight, key=in_flight.__getitem__)
        ranked = list(dict.fromkeys([*([] if holder is None else [holder]), *two[:1], *by_load]))
        return sorted(ranked, key=lambda replica: self._is_too_busy(replica, in_flight))

    def remember(self, keys: Sequence[bytes], replica: R) -> None:
        """The request with these keys went to this replica."""
        for key in keys:
            self._places[key] = replica
            self._places.move_to_end(key)
        while len(self._places) > _MAX_KEYS:
            self._places.popitem(last=False)

    def _holder(self, keys: Sequence[bytes], in_flight: Mapping[R, int]) -> R | None:
        for key in keys:
            replica = self._places.get(key)
            if replica is not None and replica in in_flight:
                return replica
        return None

    def _is_too_busy(self, replica: R, in_flight: Mapping[R, int]) -> bool:
        mean = sum(in_flight.values()) / len(in_flight)
        return in_flight[replica] > self._max_imbalance * mean + self._free_requests


def _by_hash(key: bytes, replicas: Mapping[R, int]) -> list[R]:
    """Rendezvous hashing: each key has its own order of replicas, which changes little when replicas do."""
    return sorted(replicas, key=lambda replica: hashlib.blake2b(key + str(replica).encode(), digest_size=8).digest())
