"""Which systems are compared, what each can do, and how each is started with its own ports and folders.

A system is an address of a service. Two may share one: `serve_app` and `serve_app_direct` are two lanes of the same
processes. The commands are those of each project's own documentation; engine settings are the same in all.
"""

import json
import secrets
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.serving import engine
from benchmarks.serving.service import Command
from benchmarks.serving.workloads import CAPTIONER, CHAT, OTHER_CHAT, Group

ROOT = Path(__file__).parent.parent.parent
PEERS = ROOT / "build" / "bench"
REFERENCE = "vllm_serve"
SCRIPTED = "scripted"  # a model of ours without an engine, beside the others


@dataclass(frozen=True, slots=True)
class Place:
    """Where a service may put itself: its port and those after it, a short folder of its own, its models."""

    port: int
    folder: Path
    checkpoints: Mapping[str, Path]  # by model
    addresses: Mapping[str, str] = field(default_factory=dict)  # of the reference's models, for what stands before it
    allowed_hosts: tuple[str, ...] = ()  # from which images may be fetched


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to start, the base address of each model's `/v1`, and the key that clients must send, if any."""

    commands: tuple[Command, ...]
    addresses: Mapping[str, str]
    key: str | None = None


@dataclass(frozen=True, slots=True)
class System:
    """`abilities` as `Workload.needs` names them. `installed`: what is there where its environment is.

    `lane`: what stands between a service's address and `/v1`. `takes_vllm_fields`: whether it knows vLLM's request
    fields. `suits_public_client`: whether it takes what that sends, and tells an answer's length where that looks for
    it, in an event without choices.
    """

    name: str
    service: str
    cook: Callable[[Place], Recipe]
    installed: Path
    abilities: frozenset[str]
    lane: str = ""
    takes_vllm_fields: bool = True
    suits_public_client: bool = True
    stands_before_reference: bool = False

    @property
    def is_installed(self) -> bool:
        return self.installed.exists()

    def address(self, recipe: Recipe, model: str) -> str:
        return recipe.addresses[model] + self.lane.format(model=model)


def _peer(name: str) -> Path:
    """What `make bench` leaves when the peer's environment is whole."""
    return PEERS / name / ".installed"


def _vllm_serve(place: Place) -> Recipe:
    """A process for each model: it has no way to serve two."""
    ports = {model: place.port + number for number, model in enumerate(place.checkpoints)}
    commands = [
        Command(
            (sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder),
             "--served-model-name", model, "--host", "127.0.0.1", "--port", str(ports[model]),
             "--disable-uvicorn-access-log", *engine.vllm_flags()),
            engine.ENVIRONMENT,
        )
        for model, folder in place.checkpoints.items()
    ]  # fmt: skip
    return Recipe(tuple(commands), {model: f"http://127.0.0.1:{port}" for model, port in ports.items()})


def _litellm(place: Place) -> Recipe:
    """With a key, made for this run: without one it doesn't start."""
    key = f"sk-{secrets.token_hex(16)}"
    models = [
        {"model_name": model, "litellm_params": {"model": f"hosted_vllm/{model}", "api_base": f"{address}/v1"}}
        for model, address in place.addresses.items()
    ]
    path = place.folder / "litellm.yaml"
    path.write_text(yaml.safe_dump({"model_list": models, "litellm_settings": {"request_timeout": 600}}))
    words = (str(PEERS / "litellm" / "bin" / "litellm"), "--config", str(path), "--host", "127.0.0.1")
    command = Command(
        (*words, "--port", str(place.port), "--telemetry", "False"),
        {
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOG": "ERROR",
            "LITELLM_MASTER_KEY": key,
        },
    )
    return Recipe((command,), dict.fromkeys(place.addresses, f"http://127.0.0.1:{place.port}"), key)


def _transformers_serve(place: Place) -> Recipe:
    """One model, called as its folder is. Continuous batching with room for all, which CPUs must be told."""
    (model, checkpoint), *_ = place.checkpoints.items()
    (place.folder / model).symlink_to(checkpoint)
    words = (str(PEERS / "transformers" / "bin" / "transformers"), "serve", model, "--host", "127.0.0.1")
    batching = ("--continuous-batching", "--cb-num-blocks", "2048", "--cb-max-batch-tokens", "1024")
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = Command((*words, "--port", str(place.port), "--device", "cpu", *batching), environment)
    return Recipe((command,), {model: f"http://127.0.0.1:{place.port}"})


HAPROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
DIRECT_STREAMING = {"RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1"}


def ray_environment(place: Place, switches: Mapping[str, str]) -> dict[str, str]:
    """Ray with its own folder and, where HAProxy may run, its own files and ports."""
    proxy = place.folder / "proxy"
    proxy.mkdir(exist_ok=True)
    return {
        **engine.ENVIRONMENT,
        "RAY_TMPDIR": str(place.folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # a busy machine needs more than Serve's 5 s
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(proxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(proxy / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(proxy / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(proxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(proxy / "server-state"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(place.port + 1),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(place.port + 2),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(place.port + 10),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(place.port + 39),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(place.port + 40),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(place.port + 69),
        **switches,
    }


def _ray_serve_llm(switches: Mapping[str, str]) -> Callable[[Place], Recipe]:
    def cook(place: Place) -> Recipe:
        """`build_openai_app` with all models, one with direct streaming, which allows no more."""
        models = list(place.checkpoints)[: 1 if "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING" in switches else None]
        llm_configs = [
            {
                "model_loading_config": {"model_id": model, "model_source": str(place.checkpoints[model])},
                "accelerator_config": {"kind": "cpu"},
                "deployment_config": {"autoscaling_config": {"min_replicas": 1, "max_replicas": 1}},
                "engine_kwargs": engine.ENGINE_ARGS,
            }
            for model in models
        ]
        path = place.folder / "ray_llm.json"
        path.write_text(json.dumps({"port": place.port, "llm_configs": llm_configs}))
        words = (
            str(PEERS / "ray-llm" / "bin" / "python"),
            str(Path(__file__).parent / "ray_llm_server.py"),
            str(path),
        )
        command = Command(words, ray_environment(place, switches))
        return Recipe((command,), dict.fromkeys(models, f"http://127.0.0.1:{place.port}"))

    return cook


def our_config(place: Place) -> dict[str, Any]:
    """Every model as an application with a direct lane, one without an engine beside them, ingress and metrics."""
    http = {"images": {"allowed_hosts": list(place.allowed_hosts)}}
    models = [
        _application(
            model,
            "build_model",
            f"/models/{model}",
            source=str(folder),
            engine="vllm",
            dtype=engine.ENGINE_ARGS["dtype"],
            max_context_tokens=engine.ENGINE_ARGS["max_model_len"],
            num_cpus=0.2,
            env=engine.ENVIRONMENT,
            http=http,
            engine_args={k: v for k, v in engine.ENGINE_ARGS.items() if k not in ("dtype", "max_model_len")},
        )
        for model, folder in place.checkpoints.items()
    ]
    scripted = _application(SCRIPTED, "build_model", None, source=SCRIPTED, engine="scripted", num_cpus=0.1)
    ingress = _application("ingress", "build_ingress", "/", num_cpus=0.2, **http)
    ingress["deployments"] = [{"name": "Ingress", "user_config": {"models": [*place.checkpoints, SCRIPTED]}}]
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": place.port, "request_timeout_s": 600},
        "applications": [*models, scripted, ingress, _application("metrics", "build_metrics", "/metrics")],
    }


def _application(name: str, builder: str, route_prefix: str | None, **args: Any) -> dict[str, Any]:
    return {"name": name, "import_path": f"serve_app.app:{builder}", "route_prefix": route_prefix, "args": args}


def _serve_app(switches: Mapping[str, str]) -> Callable[[Place], Recipe]:
    def cook(place: Place) -> Recipe:
        path = place.folder / "serve_config.yaml"
        path.write_text(yaml.safe_dump(our_config(place)))
        words = (sys.executable, "-m", "serve_app", "up", str(path), "--address", "local", "--port", str(place.port))
        command = Command(words, ray_environment(place, switches))
        return Recipe((command,), dict.fromkeys(place.checkpoints, f"http://127.0.0.1:{place.port}"))

    return cook


_OURS = Path(sys.executable)
_ONE = frozenset({"captions", "url"})  # what every system on vLLM can do with one model
_MANY = _ONE | {"two_models"}
_ALL = _MANY | {"upload"}

_ALL_SYSTEMS = (
    System(REFERENCE, "vllm_serve", _vllm_serve, _OURS, _MANY),
    System("serve_app", "serve_app", _serve_app(HAPROXY), _OURS, _ALL),
    System("serve_app_direct", "serve_app", _serve_app(HAPROXY), _OURS, _ALL, lane="/models/{model}"),
    System("serve_app_default_proxy", "serve_app_default_proxy", _serve_app({}), _OURS, _ALL),
    System("ray_serve_llm", "ray_serve_llm", _ray_serve_llm({}), _peer("ray-llm"), _MANY),
    System("ray_serve_llm_haproxy", "ray_serve_llm_haproxy", _ray_serve_llm(HAPROXY), _peer("ray-llm"), _MANY),
    System(
        "ray_serve_llm_direct", "ray_serve_llm_direct", _ray_serve_llm(HAPROXY | DIRECT_STREAMING),
        _peer("ray-llm"), _ONE,
    ),
    System(
        "litellm", "litellm", _litellm, _peer("litellm"), _MANY, stands_before_reference=True,
        suits_public_client=False,
    ),
    System(
        "transformers_serve", "transformers_serve", _transformers_serve, _peer("transformers"), frozenset(),
        takes_vllm_fields=False, suits_public_client=False,
    ),
)  # fmt: skip
SYSTEMS: dict[str, System] = {system.name: system for system in _ALL_SYSTEMS}
OURS = tuple(name for name in SYSTEMS if name.startswith("serve_app"))
_SERVICES = tuple(dict.fromkeys(system.service for system in _ALL_SYSTEMS))
BASE_PORT, PORTS_EACH = 18000, 100
IMAGE_PORT = BASE_PORT + 990


def port_of(service: str) -> int:
    return BASE_PORT + PORTS_EACH * _SERVICES.index(service)


def models_of(group: Group) -> tuple[str, ...]:
    """What the multi-model systems serve in a block, always several."""
    return (CAPTIONER, CHAT) if group == "captions" else (CHAT, OTHER_CHAT)
