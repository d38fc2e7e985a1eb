"""One key's thousand requests beside another's first, with all limits as shipped, over the scripted engine."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry

from serve_app.access.admission import Admission
from serve_app.access.keys import Key
from serve_app.config.applications import ModelConfig, RoutingConfig
from serve_app.config.http import HttpConfig
from serve_app.engines.choice import create_engine
from serve_app.messages import GenerationRequest, Message, ModelDescription, Sampling, Text
from serve_app.metrics.registry import Metrics
from serve_app.models.catalog import Catalog
from serve_app.models.entry import ModelEntry, num_places
from serve_app.replica.replica import Replica

VLLM_AT_ONCE = 256  # its `max_num_seqs`, where none is given


async def _never_asked(_: str) -> ModelDescription:
    raise AssertionError("the replica is described")


async def _nothing_loads() -> dict[str, str]:
    return {}


class Service:
    """The queue before one replica of a model that may have four, as an ingress has it."""

    def __init__(self, replica: Replica, metrics: Metrics) -> None:
        self.replica = replica
        self.metrics = metrics
        self.ended: list[str] = []
        catalog = Catalog(_never_asked, _nothing_loads)
        catalog.configure(RoutingConfig(models=("m",)))
        catalog._entries = {"m": ModelEntry("m", "ready", None, replica.describe(), num_replicas=1)}
        self.capacity = catalog.capacity("m")
        self.admission = Admission(HttpConfig().admission, catalog.capacity, catalog.application_of, watcher=metrics)

    async def ask(self, key: Key) -> None:
        message = Message("user", (Text("!tokens 2"),))
        request = GenerationRequest("id", "m", (message,), Sampling(), HttpConfig().request_timeout_s)
        async with self.admission.admitted(request, key) as admitted:
            await self.replica.answer(admitted)
        self.ended.append(key.name)


@asynccontextmanager
async def service(num_at_once: int) -> AsyncIterator[Service]:
    config = ModelConfig(
        source="none", engine="scripted", max_batch_size=num_at_once, engine_args={"tokens_per_s": 20},
        autoscaling={"min_replicas": 1, "max_replicas": 4},
    )  # fmt: skip
    metrics = Metrics(CollectorRegistry(), ["m"])
    replica = Replica("m", config, create_engine(config), metrics)
    await replica.start()
    try:
        yield Service(replica, metrics)
    finally:
        await replica.stop()


def _key(name: str, priority: int = 5) -> Key:
    return Key(name=name, id=name, priority=priority)


@pytest.mark.parametrize("num_at_once", [16, VLLM_AT_ONCE])
async def test_anothers_first_request_waits_for_no_more_than_what_runs(num_at_once: int) -> None:
    async with service(num_at_once) as asked:
        assert asked.capacity == num_places(num_at_once, 1)
        many = [asyncio.create_task(asked.ask(_key("many"))) for _ in range(1000)]
        await asyncio.sleep(0)
        await asked.ask(_key("few"))
        # Those that ran or were at hand, one turn of the other key's, and at most as many that were let in meanwhile.
        assert len(asked.ended) <= 2 * asked.capacity + 2
        assert asked.admission.num_waiting("m") > 0
        await asked.ask(_key("above", 9))
        await asyncio.gather(*many)
        assert asked.ended.count("many") == 1000, "nobody was refused"


async def test_a_higher_priority_overtakes_all_that_wait() -> None:
    async with service(16) as asked:
        low = [asyncio.create_task(asked.ask(_key(f"low-{n}", 0))) for n in range(300)]
        await asyncio.sleep(0)
        await asked.ask(_key("high", 9))
        assert len(asked.ended) <= 2 * asked.capacity + 1
        await asyncio.gather(*low)


async def test_what_waits_is_counted_while_it_waits_and_its_time_after() -> None:
    async with service(16) as asked:
        tasks = [asyncio.create_task(asked.ask(_key("many"))) for _ in range(58)]
        await asyncio.sleep(0)
        assert asked.metrics.num_waiting.labels("m")._value.get() == 58 - asked.capacity == 40
        assert asked.metrics.waiting_tokens.labels("m")._value.get() == 40 * 3
        await asyncio.gather(*tasks)
        assert asked.metrics.num_waiting.labels("m")._value.get() == 0
        assert asked.metrics.waiting_tokens.labels("m")._value.get() == 0
        shortest, *_, number, seconds = asked.metrics.turn_seconds.of("m").read()
        assert (number, shortest) == (58, asked.capacity)
        assert seconds > 0
        assert asked.replica.pressure()["time_to_first_token_s"] > 0
