"""Configs that work and that don't, on given nodes, with the exit code and what `serve-app plan` says of each.

`models` is YAML: each model's args beside `source: none, engine: scripted`. Those `on_ray` are also deployed on a
simulated cluster of exactly these nodes, to compare.
"""

from dataclasses import dataclass
from typing import Any

import yaml

RAY_NODES = ("name=head,CPU=2", "name=one,CPU=2,GPU=1", "name=two,CPU=2,GPU=2")


@dataclass(frozen=True)
class Case:
    """`unplaced`: the models that find no room, where it is that which is wrong."""

    name: str
    models: str
    says: tuple[str, ...] = ()
    code: int = 0
    nodes: tuple[str, ...] = RAY_NODES
    unplaced: tuple[str, ...] = ()
    on_ray: bool = False
    user_config: str = ""
    more: str = ""  # applications as YAML, beside the models and the ingress
    ingress: str = "{}"  # its args as YAML
    lanes: bool = False  # each model has a route prefix

    def values(self) -> dict[str, Any]:
        """The Serve config file."""
        models = yaml.safe_load(self.models)
        user_config = yaml.safe_load(self.user_config) or {"models": list(models)}
        return {
            "applications": [
                *(_model(name, args or {}) | self._route(name) for name, args in models.items()),
                *(yaml.safe_load(self.more) or []),
                {
                    "name": "ingress",
                    "import_path": "serve_app.app:build_ingress",
                    "route_prefix": "/",
                    "args": {"num_cpus": 0.1, "metrics_application": None} | yaml.safe_load(self.ingress),
                    "deployments": [{"name": "Ingress", "user_config": user_config}],
                },
            ]
        }

    def _route(self, name: str) -> dict[str, Any]:
        return {"route_prefix": f"/models/{name}"} if self.lanes else {}


def _model(name: str, args: dict[str, Any]) -> dict[str, Any]:
    own = {
        "source": "none",
        "engine": "scripted",
        "num_cpus": 0.1,
        "metrics_application": None,
        "tasks": ["chat"],
        "drain_timeout_s": 2.0,
    }
    return {
        "name": name, "import_path": "serve_app.app:build_model", "route_prefix": None, "args": own | args,
    }  # fmt: skip


_ABOVE_LIMIT = (  # a target that no replica reaches without what waits
    "{m: {max_ongoing_requests: 4, max_batch_size: 4, metrics_application: metrics, "
    "autoscaling: {max_replicas: 2, target_ongoing_requests: 9}}}"
)
_NEVER = "a second replica can never start: one holds at most 5 requests and 0 that wait are counted, together 5"
_SIDECAR = "[{name: metrics, import_path: 'serve_app.app:build_metrics', route_prefix: /metrics}]"
TWO_NODES = ("2xCPU=4,GPU=2",)

CASES = (
    # good
    Case("one on a CPU", "m: {}"),
    Case("one for each GPU", "{a: {num_gpus: 1}, b: {num_gpus: 1}, c: {num_gpus: 1}}", on_ray=True),
    Case("half a GPU each", "{a: {num_gpus: 0.5}, b: {num_gpus: 0.5}, c: {num_gpus: 2}}", nodes=TWO_NODES),
    Case(
        "thirds",
        "{a: {num_gpus: 0.3333, autoscaling: {min_replicas: 3, max_replicas: 3}}}",
        nodes=("CPU=4,GPU=1",),
    ),
    Case(
        "two ranks packed on one node",
        "{m: {engine: auto, tensor_parallel_size: 2, placement_strategy: STRICT_PACK}}",
    ),
    Case("three ranks over two nodes", "{m: {engine: auto, tensor_parallel_size: 3}}"),
    Case(
        "ranks each on a node of its own",
        "{m: {engine: auto, pipeline_parallel_size: 2, placement_strategy: STRICT_SPREAD}}",
    ),
    Case("as many as fit", "{m: {num_gpus: 1, autoscaling: {min_replicas: 1, max_replicas: 3}}}"),
    Case("from none", "{m: {num_gpus: 1, autoscaling: {min_replicas: 0, max_replicas: 3}}}", ("when asked",)),
    Case("an adapter is named", "{m: {engine: vllm, adapters: {fine: /a}}}", user_config="{models: [m, fine]}"),
    Case("its own share of memory", "{m: {engine: vllm, num_gpus: 0.5, engine_args: {gpu_memory_utilization: 0.4}}}"),
    Case(
        "replicas and fractions fill every GPU",
        "{a: {num_gpus: 0.5, autoscaling: {min_replicas: 2, max_replicas: 2}}, b: {num_gpus: 1}, c: {num_gpus: 1}}",
    ),
    Case("many at once", "{m: {num_gpus: 1, max_batch_size: 8}}", ("requests at once",)),
    # good, and something to say
    Case(
        "more replicas than fit",
        "{m: {num_gpus: 1, autoscaling: {min_replicas: 1, max_replicas: 9}}}",
        ("args.autoscaling.max_replicas", "can never reach 9 replicas: 3 fit", "set it to 3"),
    ),
    Case(
        "not all at their most",
        "{a: {num_gpus: 1, autoscaling: {max_replicas: 2}}, b: {num_gpus: 1, autoscaling: {max_replicas: 2}}}",
        ("'a', 'b' can't all have their max_replicas at once",),
    ),
    Case(
        "parts left by spreading",
        "{a: {num_gpus: 1}, b: {num_gpus: 1}, c: {num_gpus: 2}}",
        ("model 'c' fits only where the others leave it room", "RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY=1"),
        nodes=TWO_NODES,
    ),
    Case(
        "a small one that may lie on the large node",
        "{a: {num_gpus: 1}, b: {num_gpus: 2}}",
        ("model 'b' fits only where the others leave it room",),
    ),
    Case(
        "a target above a replica's limit",
        _ABOVE_LIMIT,
        ("a second replica starts only when requests wait already: one is full at 4", "to 4 at most"),
        more=_SIDECAR,
        ingress="{metrics_application: metrics}",
    ),
    Case(
        "a target above a lane's limit",
        _ABOVE_LIMIT,
        ("a second replica starts only when requests wait already: one is full at 4", "to 4 at most"),
        lanes=True,
    ),
    Case(
        "a target within a lane's limit",
        "{m: {max_batch_size: 16, max_ongoing_requests: 64, autoscaling: {max_replicas: 2, "
        "target_ongoing_requests: 30}}}",
        lanes=True,
    ),
    Case(
        "scaling settings without scaling",
        "{m: {autoscaling: {min_replicas: 2, max_replicas: 2, upscale_delay_s: 1}}}",
        ("upscale_delay_s can never take effect: min_replicas and max_replicas are both 2",),
    ),
    Case(
        "a batch that never fills",
        "{m: {max_ongoing_requests: 2, max_batch_size: 16}}",
        ("takes 2 requests at once and its engine could run 16",),
    ),
    Case("a strategy without ranks", "{m: {placement_strategy: SPREAD}}", ("placement_strategy", "one rank")),
    Case("a batch for vLLM", "{m: {engine: vllm, max_batch_size: 4}}", ("vLLM batches by itself",)),
    Case(
        "starts that Ray Serve doesn't try",
        "{m: {start_attempts: 7, autoscaling: {max_replicas: 2}}}",
        ("no more than 6 starts are tried", "set 6, or more in"),
    ),
    Case("as many starts as Ray Serve tries", "{m: {start_attempts: 6, autoscaling: {max_replicas: 2}}}"),
    Case("two fifths", "{m: {num_gpus: 0.4}}", ("2 x 0.4 fits, and 0.2 of the GPU stays", "set 0.5")),
    Case("nobody names it", "{a: {}, b: {}}", ("no ingress names model 'b'",), user_config="{models: [a]}"),
    Case("an update with one replica", "{m: {num_gpus: 2}}", ("away while it loads", "2 GPU", "there is no room")),
    Case(
        "a target that a model whose batch none can join reaches",
        "{m: {engine: transformers, max_batch_size: 4, metrics_application: null, "
        "autoscaling: {max_replicas: 2, target_ongoing_requests: 8}}}",
        ("a second replica starts only when requests wait already: one is full at 4", "to 4 at most"),
    ),
    Case(
        "an application of somebody else",
        "{m: {}}",
        ("application 'other' isn't one of this package's",),
        more="[{name: other, import_path: 'other:app', route_prefix: /other}]",
    ),
    Case(
        "a target above the limit, and another that counts",
        "{m: {max_ongoing_requests: 4, max_batch_size: 4, max_queued_requests: 2, "
        "autoscaling: {max_replicas: 2, target_ongoing_requests: 9, target_waiting_tokens: 100}}}",
    ),
    Case(
        "an alias for two models by weight",
        "{a: {}, b: {}}",
        user_config="{models: [a, b], aliases: {both: {a: 90, b: 10}}}",
    ),
    # can't work
    Case(
        "more GPUs than any node has",
        "{m: {num_gpus: 4}}",
        ("model 'm' needs 4 GPU and 0.1 CPU on one node", "node 'two' has 2 of 2 GPU free", "no node is that large"),
        1, unplaced=("m",), on_ray=True,
    ),
    Case(
        "more ranks than a node has, under STRICT_PACK",
        "{m: {engine: auto, tensor_parallel_size: 3, placement_strategy: STRICT_PACK}}",
        ("3 bundles of 1 GPU and 1 bundle of 0.1 CPU on one node (STRICT_PACK)", "set placement_strategy: PACK"),
        1, unplaced=("m",), on_ray=True,
    ),
    Case(
        "more ranks than nodes, under STRICT_SPREAD",
        "{m: {engine: auto, tensor_parallel_size: 3, placement_strategy: STRICT_SPREAD}}",
        ("on 4 different nodes (STRICT_SPREAD)", "set placement_strategy: SPREAD"),
        1, unplaced=("m",), on_ray=True,
    ),
    Case(
        "more ranks than GPUs",
        "{m: {engine: auto, tensor_parallel_size: 4}}",
        ("4 bundles of 1 GPU", "all nodes together don't hold it even when empty"),
        1, unplaced=("m",), on_ray=True,
    ),
    Case(
        "one model too many",
        "{a: {num_gpus: 1}, b: {num_gpus: 1}, c: {num_gpus: 1}, d: {num_gpus: 1}}",
        ("model 'd' needs 1 GPU and 0.1 CPU on one node", "0 of 1 GPU free", "beside what stands above it"),
        1, unplaced=("d",), on_ray=True,
    ),
    Case(
        "fractions that lie on no one GPU",
        "{a: {num_gpus: 0.6, autoscaling: {min_replicas: 4, max_replicas: 4}}}",
        ("replica 4 of 4 of model 'a'", "args.autoscaling.min_replicas"),
        1, unplaced=("a",), on_ray=True,
    ),
    Case(
        "a group and an actor for the same GPUs",
        "{a: {engine: scripted, num_gpus: 2}, b: {engine: auto, tensor_parallel_size: 2}}",
        ("model 'b' needs 2 bundles of 1 GPU", "beside what stands above it"),
        1, unplaced=("b",),
    ),
    Case("too many CPUs", "{m: {num_cpus: 3}}", ("needs 3 CPU on one node", "2 of 2 CPU free"), 1, unplaced=("m",)),
    Case(
        "never woken",
        "{a: {num_gpus: 2}, b: {num_gpus: 1}, m: {num_gpus: 1, autoscaling: {min_replicas: 0, max_replicas: 1}}}",
        ("model 'm' can never be woken: it needs 1 GPU",),
        1,
    ),
    Case(
        "a target never reached",
        "{m: {max_ongoing_requests: 4, max_batch_size: 4, metrics_application: null, "
        "autoscaling: {max_replicas: 2, target_ongoing_requests: 9}}}",
        (_NEVER,),
        1,
    ),
    Case("an ingress that tells nobody who waits", _ABOVE_LIMIT, (_NEVER,), 1, more=_SIDECAR),
    Case("a sidecar that isn't there", _ABOVE_LIMIT, (_NEVER,), 1, ingress="{metrics_application: metrics}"),
    Case("a sidecar that is none", _ABOVE_LIMIT, (_NEVER,), 1, ingress="{metrics_application: m}"),
    Case("no queue at all", "{m: {max_queued_requests: 0}}", ("every request is refused",), 1),
    Case(
        "an ingress that names a missing model",
        "{qwen: {}}",
        ("there is no model 'qwem' in the file: did you mean 'qwen'?",),
        1, user_config="{models: [qwem]}",
    ),
    Case(
        "an adapter with a model's name",
        "{a: {engine: vllm, adapters: {b: /x}}, b: {}}",
        ("adapter 'b' has the name of a model",),
        1,
    ),
    Case(
        "settings of a deployment that isn't there",
        "{m: {}}",
        ("there is no deployment 'Modell'", "name it Model"),
        1,
        more="[{name: n, import_path: 'serve_app.app:build_model', route_prefix: null, "
        "args: {source: x, engine: scripted}, deployments: [{name: Modell, num_replicas: 2}]}]",
    ),
    # bad files
    Case("negative GPUs", "{m: {num_gpus: -1}}", ("num_gpus", "greater than or equal to 0"), 2),
    Case("a zero batch", "{m: {max_batch_size: 0}}", ("max_batch_size", "greater than or equal to 1"), 2),
    Case("no replica at most", "{m: {autoscaling: {max_replicas: 0}}}", ("autoscaling.max_replicas",), 2),
    Case("fewer than none", "{m: {autoscaling: {min_replicas: -1}}}", ("autoscaling.min_replicas",), 2),
    Case(
        "min over max",
        "{m: {autoscaling: {min_replicas: 3, max_replicas: 2}}}",
        ("min_replicas (3) is above max_replicas (2): raise max_replicas",),
        2,
    ),
    Case("an unknown strategy", "{m: {placement_strategy: TIGHT}}", ("placement_strategy", "'STRICT_PACK'"), 2),
    Case("one GPU and a half", "{m: {num_gpus: 1.5}}", ("above one GPU it must be a whole number",), 2),
    Case("less than Ray can count", "{m: {num_gpus: 0.00001}}", ("the smallest fraction that Ray knows",), 2),
    Case(
        "more memory than its fraction",
        "{m: {engine: vllm, num_gpus: 0.5, engine_args: {gpu_memory_utilization: 0.6}}}",
        ("0.6 + (1 - 0.5) = 1.1 of its memory", "at most 0.5", "0.5 x 0.92"),
        2,
    ),
    Case("a model named twice", "{m: {}}", ("model 'm' is named 2 times",), 2, user_config="{models: [m, m]}"),
    Case(
        "an alias for a model that isn't there",
        "{a: {}}",
        ("aliases: 'both' leads to 'b', which isn't among the models",),
        2, user_config="{models: [a], aliases: {both: {b: 1}}}",
    ),
    Case(
        "two applications of one name",
        "{m: {}}",
        ("name 'm' is taken by an application above it",),
        2,
        more="[{name: m, import_path: 'serve_app.app:build_model', route_prefix: null, args: {source: x}}]",
    ),
)  # fmt: skip
