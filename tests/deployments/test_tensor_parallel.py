"""One model on several ranks: vLLM's Ray executor in the replica's placement group, on one node and across two.

The nodes are simulated and their GPUs made up (tests/ray_nodes.py); engines, ranks and everything between are real.
"""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

from tests.drawings import COLORS, SHAPES, data_uri, png, says
from tests.ray_nodes import Group, RayNodes, ray_nodes
from tests.service import RunningService, serving
from tests.vllm_models import starts_vllm

pytestmark = [*starts_vllm, pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(1800)]

START_TIMEOUT_S = 1200.0  # some twenty processes import vLLM; a minute or two on two quiet cores
RECOVERY_S = 1200.0

TEXTS = ("Who are you?", "What can you do?", "Hello", "How many planets are there?")
IMAGES = [(color, shape) for color in sorted(COLORS)[:2] for shape in SHAPES]
ON_VLLM: dict[str, Any] = {
    "source": "demo",
    "engine": "vllm",
    "dtype": "float32",
    "num_cpus": 0.1,
    "env": {"VLLM_LOGGING_LEVEL": "WARNING"},
    "engine_args": {"enforce_eager": True, "max_num_seqs": 16, "kv_cache_memory_bytes": 64 << 20},
}


def config(**models: dict[str, Any]) -> dict[str, Any]:
    """A service of these models, each on vLLM but for what its settings say."""
    ingress = {
        "name": "ingress",
        "import_path": "serve_app.app:build_ingress",
        "route_prefix": "/",
        "args": {"num_cpus": 0.1, "metrics_application": None, "request_timeout_s": RECOVERY_S},
        "deployments": [{"name": "Ingress", "user_config": {"models": list(models)}}],
    }
    applications = [
        {
            "name": name,
            "import_path": "serve_app.app:build_model",
            "route_prefix": None,
            "args": ON_VLLM | {"metrics_application": None} | settings,
        }
        for name, settings in models.items()
    ]
    return {"proxy_location": "HeadOnly", "applications": [*applications, ingress]}


@pytest.fixture(scope="module")
def one_node() -> Iterator[RayNodes]:
    with ray_nodes([{"num_cpus": 2, "num_gpus": 2}]) as nodes:
        yield nodes


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[RayNodes]:
    """And a head without GPUs. There are no more GPUs than one replica takes."""
    with ray_nodes([{"num_cpus": 2}, {"num_cpus": 1, "num_gpus": 1}, {"num_cpus": 1, "num_gpus": 1}]) as nodes:
        yield nodes


@pytest.fixture(scope="module")
def beside(one_node: RayNodes) -> Iterator[RunningService]:
    models = {"whole": {}, "halves": {"tensor_parallel_size": 2, "placement_strategy": "STRICT_PACK"}}
    with serving(config(**models), START_TIMEOUT_S, one_node.environment, one_node.address) as running:
        yield running


@pytest.fixture(scope="module")
def across(two_nodes: RayNodes) -> Iterator[RunningService]:
    models = {"halves": {"tensor_parallel_size": 2}}
    with serving(config(**models), START_TIMEOUT_S, two_nodes.environment, two_nodes.address) as running:
        yield running


def body(model: str, *parts: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model": model, "temperature": 0, "messages": [{"role": "user", "content": list(parts)}], **fields}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def ask(service: RunningService, model: str, *parts: dict[str, Any]) -> list[str]:
    """The greedy answer's tokens."""
    asked = body(model, *parts, logprobs=True, max_tokens=60)
    answer = httpx.post(f"{service.url}/v1/chat/completions", json=asked, timeout=RECOVERY_S, trust_env=False)
    assert answer.status_code == 200, answer.text
    return [token["token"] for token in answer.json()["choices"][0]["logprobs"]["content"]]


def answers_to_texts(service: RunningService, model: str) -> list[list[str]]:
    return [ask(service, model, text(words)) for words in TEXTS]


def answers_to_images(service: RunningService, model: str) -> list[list[str]]:
    return [
        ask(
            service,
            model,
            {"type": "image_url", "image_url": {"url": data_uri(png(color, shape))}},
            text("Describe this picture in detail."),
        )
        for color, shape in IMAGES
    ]


@pytest.fixture(scope="module")
def whole_texts(beside: RunningService) -> list[list[str]]:
    """What one rank answers: the reference."""
    answers = answers_to_texts(beside, "whole")
    assert "demo" in "".join(answers[0])
    return answers


@pytest.fixture(scope="module")
def whole_images(beside: RunningService) -> list[list[str]]:
    answers = answers_to_images(beside, "whole")
    told = [says("".join(answer), *asked) for answer, asked in zip(answers, IMAGES, strict=True)]
    assert sum(told) >= len(IMAGES) - 1, answers  # the model is small; that it looks at the image is what counts
    return answers


def group_of(nodes: RayNodes, model: str) -> Group:
    """The placement group of the model's one replica."""
    (group,) = [one for one in nodes.groups() if f"::{model}#" in one.name]
    return group


def assert_one_rank_in_each_gpu_bundle(group: Group) -> None:
    assert group.bundles == [{"CPU": 0.1}, {"GPU": 1.0}, {"GPU": 1.0}]
    assert group.num_free_gpus == [None, 0.0, 0.0]
    assert sorted(rank.node for rank in group.ranks) == sorted(group.nodes[1:])
    assert len({rank.pid for rank in group.ranks}) == 2


def test_halves_on_one_node_answer_as_the_whole(
    beside: RunningService,
    one_node: RayNodes,
    whole_texts: list[list[str]],
    whole_images: list[list[str]],
) -> None:
    group = group_of(one_node, "halves")
    assert_one_rank_in_each_gpu_bundle(group)
    assert len(set(group.nodes)) == 1
    assert answers_to_texts(beside, "halves") == whole_texts
    assert answers_to_images(beside, "halves") == whole_images


def test_halves_on_two_nodes_answer_as_the_whole(
    across: RunningService,
    two_nodes: RayNodes,
    whole_texts: list[list[str]],
    whole_images: list[list[str]],
) -> None:
    group = group_of(two_nodes, "halves")
    assert_one_rank_in_each_gpu_bundle(group)
    assert len(set(group.nodes[1:])) == 2
    assert answers_to_texts(across, "halves") == whole_texts
    assert answers_to_images(across, "halves") == whole_images


def test_a_rank_that_dies_takes_its_replica_down_and_a_new_one_comes(
    across: RunningService, two_nodes: RayNodes
) -> None:
    """Last, because it kills. The new replica's ranks need the very GPUs that the old ones held."""
    before = ask(across, "halves", text(TEXTS[0]))
    group = group_of(two_nodes, "halves")
    old = two_nodes.engine_processes()
    assert len(old) == 4, old  # the replica, its engine core and two ranks
    long = body("halves", text(TEXTS[0]), stream=True, ignore_eos=True, max_tokens=1900)
    with across.client as client, client.stream("POST", "/v1/chat/completions", json=long) as response:
        lines = response.iter_lines()
        next(lines)
        psutil.Process(group.ranks[1].pid).kill()
        rest = [line for line in lines if line]
    assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] in ("engine_failed", "replica_died")
    assert ask(across, "halves", text(TEXTS[0])) == before, "held until the new replica answers"
    new = group_of(two_nodes, "halves")
    assert new.id != group.id
    assert_one_rank_in_each_gpu_bundle(new)
    assert not [process for process in old if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert len(two_nodes.engine_processes()) == 4
