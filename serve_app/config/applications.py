"""The configuration: frozen pydantic models, one per application, that refuse unknown keys by name.

Imports no Ray, no torch, no engine. Units stand in names; each default exists once, here. What Ray Serve
needs (actor options, placement bundles, autoscaling) is derived here as properties.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from serve_app.config.autoscaling import KV_CACHE_USE, TIME_TO_FIRST_TOKEN, WAITING_TOKENS
from serve_app.config.environment import VARIABLE, EnvironmentSource, secret_in
from serve_app.config.http import AllowedHosts, HttpConfig, KeysConfig
from serve_app.messages import Task
from serve_app.strict import Strict, looks_like_secret, nearest_hint

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$")]
Family = Literal[
    "generic", "joycaption", "joycaption-alpha-two", "blip", "blip2", "instructblip", "florence2", "git", "kosmos2",
    "paligemma", "minicpm", "qwen-vl", "internvl", "llava",
]  # fmt: skip
_VLLM_MAX_NUM_SEQS = 256  # `vllm serve`'s default on most GPUs; the engine alone takes 128
_REFUSED_AT_ONCE = 100
_FEWEST_QUEUED_REQUESTS = 256  # before a small model: at its own address nothing else waits for it in turns
_LEAST_LOOK_BACK_S = 15.0  # Ray's processes report every 10 s, and it wants to look back further than that
VLLM_MEMORY_SHARE = 0.92  # of each GPU's memory: vLLM's own default


class AutoscalingConfig(Strict):
    """How many replicas a model has; `min_replicas: 0` scales to zero.

    Each `target_…` is per replica. Requests always count, with those that wait for their turn, by default as many as
    the engine runs at once; the other three count where they are given: prompt tokens that wait, the used share of
    the KV cache, and seconds to the first token. The greatest need decides.
    """

    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(1, ge=1)
    target_ongoing_requests: float | None = Field(None, gt=0)
    target_waiting_tokens: float | None = Field(None, gt=0)
    target_kv_cache_use: float | None = Field(None, gt=0, le=1)
    target_time_to_first_token_s: float | None = Field(None, gt=0)
    upscale_delay_s: float = Field(10.0, ge=0)
    downscale_delay_s: float = Field(300.0, ge=0)

    @property
    def look_back_s(self) -> float:
        """Over how long load is averaged: as long as the patience before one more replica, within reason."""
        return min(max(self.upscale_delay_s, _LEAST_LOOK_BACK_S), 30.0)

    @property
    def pressure_targets(self) -> dict[str, float]:
        """The given targets by the names that replicas report under."""
        targets = {
            WAITING_TOKENS: self.target_waiting_tokens,
            KV_CACHE_USE: self.target_kv_cache_use,
            TIME_TO_FIRST_TOKEN: self.target_time_to_first_token_s,
        }
        return {name: target for name, target in targets.items() if target is not None}

    @model_validator(mode="after")
    def _min_within_max(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas ({self.min_replicas}) is above max_replicas ({self.max_replicas}): raise max_replicas"
            )
        return self


class ModelConfig(Strict):
    """One model application: where its weights are, which engine runs it, on what.

    `source` is a folder, a hub id, an object store's URL, or `demo` for the model that ships with this package.
    """

    source: str = Field(min_length=1)
    revision: str | None = None
    engine: Literal["auto", "vllm", "transformers", "scripted"] = "auto"
    tasks: tuple[Task, ...] = Field(("chat", "caption"), min_length=1)
    family: Literal["auto"] | Family = "auto"  # how it is prompted for captions; auto: by its architecture
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: str | None = None  # `int8` with transformers; with vLLM any name that vLLM knows
    adapters: dict[Name, str] = Field(default_factory=dict)  # LoRA: the name clients ask for → folder or hub id
    warm_up: bool = True  # answer a tiny request before the first client's; `scripted` only where this is set
    weights_format: Literal["safetensors", "any"] = "safetensors"
    trust_remote_code: bool = False
    max_context_tokens: int | None = Field(None, ge=1)
    max_batch_size: int = Field(16, ge=1)
    batch_wait_s: float = Field(0.005, ge=0, le=1)
    num_cpus: float = Field(1.0, ge=0)
    num_gpus: float = Field(0.0, ge=0)
    tensor_parallel_size: int = Field(1, ge=1)
    pipeline_parallel_size: int = Field(1, ge=1)
    placement_strategy: Literal["PACK", "STRICT_PACK", "SPREAD", "STRICT_SPREAD"] = "PACK"
    autoscaling: AutoscalingConfig = AutoscalingConfig()
    balancing: Literal["affinity", "power_of_two"] = "affinity"  # by what replicas have in cache, or by lot and load
    max_ongoing_requests: int | None = Field(None, ge=1)
    max_queued_requests: int | None = Field(None, ge=-1)
    start_attempts: int = Field(3, ge=1, le=20)  # failed starts that end a deploy; three a replica do in any case
    drain_timeout_s: float = Field(30.0, ge=0)
    metrics_application: str | None = "metrics"
    http: HttpConfig = HttpConfig()  # of its direct lane, where the application has a route_prefix
    engine_args: dict[str, Any] = Field(default_factory=dict)
    env: dict[str, str] = Field(default_factory=dict)  # in clear in Ray's logs
    env_from: dict[Annotated[str, Field(pattern=VARIABLE)], EnvironmentSource] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.num_gpus > 1 and self.num_gpus != int(self.num_gpus):
            raise ValueError(f"num_gpus is {self.num_gpus}: above one GPU it must be a whole number")
        if 0 < self.num_gpus < 0.0001:
            raise ValueError(f"num_gpus is {self.num_gpus}: the smallest fraction that Ray knows is 0.0001")
        if self.num_ranks > 1 and self.num_gpus not in (0, 1):
            raise ValueError(
                f"num_gpus is GPUs for each of the {self.num_ranks} ranks, so 1: for more, raise tensor_parallel_size"
            )
        if self.num_ranks > 1 and not self.num_cpus:
            raise ValueError(
                f"num_cpus is 0: with {self.num_ranks} ranks it is a bundle of the replica's own, so set some, as 0.1"
            )
        if self.num_ranks > 1 and self.engine not in ("auto", "vllm"):
            raise ValueError(
                f"engine '{self.engine}' runs on one rank: leave out tensor_parallel_size and pipeline_parallel_size"
            )
        if self.adapters and self.engine not in ("auto", "vllm"):
            raise ValueError(f"adapters need engine: vllm, and engine is '{self.engine}'")
        return self

    @model_validator(mode="after")
    def _no_secrets(self) -> Self:
        if why := secret_in(self.env):
            raise ValueError(f"env: {why}")
        if twice := self.env.keys() & self.env_from.keys():
            raise ValueError(f"env_from: {min(twice)} stands in env as well: leave it out there")
        if isinstance(self.engine_args.get("hf_token"), str) or _has_secret(self.engine_args):
            raise ValueError(
                "engine_args: one of them looks like a secret, and vLLM writes them into its log: name where it is "
                "kept in env_from, as {HF_TOKEN: {file: /run/secrets/hf_token}} for the hub's"
            )
        return self

    @model_validator(mode="after")
    def _memory_within_fraction(self) -> Self:
        """What shares the GPU may take all that this model's fraction leaves."""
        share, rest = self.engine_args.get("gpu_memory_utilization"), round(1 - self.num_gpus, 4)
        if self.shares_gpu and isinstance(share, int | float) and share > self.num_gpus:
            raise ValueError(
                f"engine_args: gpu_memory_utilization is {share} and num_gpus {self.num_gpus}: with what may share "
                f"the GPU it is {share} + (1 - {self.num_gpus}) = {share + rest:.4g} of its memory: set at most "
                f"{self.num_gpus}, raise num_gpus, or leave it out for {self.num_gpus} x {VLLM_MEMORY_SHARE}"
            )
        return self

    @property
    def num_ranks(self) -> int:
        """Processes that hold a part of the model: tensor × pipeline."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def shares_gpu(self) -> bool:
        """Whether a replica has only a fraction of its GPU."""
        return 0 < self.num_gpus < 1

    @property
    def gpu_memory_share(self) -> float:
        """The part of each of its GPUs' memory that vLLM takes: of a fraction, as much as it would of a whole."""
        whole = self.num_gpus if self.shares_gpu else 1.0
        return float(self.engine_args.get("gpu_memory_utilization") or round(whole * VLLM_MEMORY_SHARE, 4))

    @property
    def warms_up(self) -> bool:
        """Whether a replica answers a request of its own before it counts as ready."""
        return self.warm_up and (self.engine != "scripted" or "warm_up" in self.model_fields_set)

    @property
    def needs_vllm(self) -> bool:
        """Whether it can run on vLLM alone; with `auto`, others may run on it too."""
        return self.engine == "vllm" or (self.engine == "auto" and (self.num_ranks > 1 or bool(self.adapters)))

    @property
    def num_running_at_once(self) -> int:
        """Requests that the engine works on at once: vLLM's `max_num_seqs`, or one batch."""
        if self.needs_vllm:
            return int(self.engine_args.get("max_num_seqs") or _VLLM_MAX_NUM_SEQS)
        return self.max_batch_size

    @property
    def ongoing_limit(self) -> int:
        """Requests one replica accepts at once: those that run, and as many that wait behind them."""
        return self.max_ongoing_requests or 2 * self.num_running_at_once

    @property
    def reached_limit(self) -> int:
        """Requests one replica accepts at once from HAProxy, which knows no turns: those that wait for theirs too.

        What is beyond a deployment's `max_ongoing_requests` would wait outside our code, which refuses what can't
        be had in time. A few more, so that there is room to refuse them.
        """
        return self.ongoing_limit + self.http.admission.max_waiting_requests + _REFUSED_AT_ONCE

    @property
    def queued_limit(self) -> int:
        """Requests that Ray Serve holds for the model in one process, at most.

        What an ingress lets in at once has had its turn and must fit, as when a replica appears, or dies and all that
        it had is asked of the others: what a replica accepts and an eighth more, times the replicas, at most.
        """
        if self.max_queued_requests is not None:
            return self.max_queued_requests
        return max(_FEWEST_QUEUED_REQUESTS, 2 * self.ongoing_limit * self.autoscaling.max_replicas)

    @property
    def actor_options(self) -> dict[str, Any]:
        """Ray actor options of the replica itself; with several ranks the GPUs are the placement group's."""
        options: dict[str, Any] = {"num_cpus": self.num_cpus}
        if self.num_ranks == 1 and self.num_gpus:
            options["num_gpus"] = self.num_gpus
        if self.env:
            options["runtime_env"] = {"env_vars": dict(self.env)}
        return options

    @property
    def placement_bundles(self) -> list[dict[str, float]] | None:
        """One CPU bundle for the replica and one GPU bundle per rank; None where the replica needs no group."""
        if self.num_ranks == 1:
            return None
        return [{"CPU": self.num_cpus}, *({"GPU": 1.0} for _ in range(self.num_ranks))]

    @property
    def autoscaling_options(self) -> dict[str, Any]:
        """Ray Serve's autoscaling config. A replica is full when its engine is, and the target follows from that."""
        scaling = self.autoscaling
        options: dict[str, Any] = {
            "min_replicas": scaling.min_replicas,
            "max_replicas": scaling.max_replicas,
            "target_ongoing_requests": scaling.target_ongoing_requests or float(self.num_running_at_once),
            "upscale_delay_s": scaling.upscale_delay_s,
            "downscale_delay_s": scaling.downscale_delay_s,
            "look_back_period_s": scaling.look_back_s,
        }
        if scaling.min_replicas < scaling.max_replicas:
            options["policy"] = {
                "policy_function": "serve_app.config.autoscaling:EnginePressurePolicy",
                "policy_kwargs": {"targets": scaling.pressure_targets},
            }
        return options


def _has_secret(value: Any) -> bool:
    """Whether a text anywhere in it looks like one."""
    if isinstance(value, dict):
        return any(map(_has_secret, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_has_secret, value))
    return isinstance(value, str) and looks_like_secret(value)


class RoutingConfig(Strict):
    """The ingress's `user_config`: changes without a restart. The first model of a task is its default.

    `aliases` are further names: each stands for one or more of `models`, with the weight of requests that each
    gets (`{vlm: {vlm-7b: 90, vlm-7b-next: 10}}`). A weight of 0 keeps a model in reserve.
    """

    models: tuple[Name, ...] = ()
    aliases: dict[Name, dict[Name, Annotated[float, Field(ge=0, allow_inf_nan=False)]]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _aliases_lead_to_models(self) -> Self:
        for alias, weights in self.aliases.items():
            if alias in self.models:
                raise ValueError(f"aliases: '{alias}' is a model's name as well: rename one of them")
            for name in weights:
                if name in self.aliases:
                    raise ValueError(f"aliases: '{alias}' leads to the alias '{name}': name models")
                if name not in self.models:
                    hint = nearest_hint(name, self.models)
                    raise ValueError(f"aliases: '{alias}' leads to '{name}', which isn't among the models{hint}")
            if not sum(weights.values()):
                raise ValueError(f"aliases: '{alias}' needs a model with a weight above 0")
        return self

    @field_validator("models")
    @classmethod
    def _named_once(cls, models: tuple[str, ...]) -> tuple[str, ...]:
        for name in models:
            if models.count(name) > 1:
                raise ValueError(f"model '{name}' is named {models.count(name)} times: name it once")
        return models


class IngressConfig(HttpConfig):
    """The HTTP front of every model.

    `stream_host` is the address of this machine at which replicas send it their events; by default its node's.
    """

    stream_host: str | None = None
    metrics_application: str | None = "metrics"
    num_cpus: float = Field(1.0, ge=0)
    num_replicas: int = Field(1, ge=1)
    max_ongoing_requests: int = Field(10_000, ge=1)  # with those that wait, which have bounds of their own


class MetricsConfig(Strict):
    """The metrics sidecar. A process that is silent for `stale_after_s` is gone; its totals are kept.

    Where there are `keys`, an admin's is needed to read the numbers; `allowed_hosts` as in the ingress.
    """

    stale_after_s: float = Field(10.0, gt=0)
    num_cpus: float = Field(0.0, ge=0)
    keys: KeysConfig = KeysConfig()
    allowed_hosts: AllowedHosts = ()


class PlaygroundConfig(Strict):
    """The playground, a page for browsers that asks the service at `address`.

    Without one, that is Ray Serve's own on the playground's machine. Where the service has `keys`, the page has the
    same ones. `max_upload_bytes` are those of all images that it holds at once; each is deleted after an hour.
    """

    address: str | None = Field(None, pattern=r"^https?://[^/\s]+[^\s]*$")
    title: str = Field("serve_app", min_length=1, max_length=100)
    keys: KeysConfig = KeysConfig()
    allowed_hosts: AllowedHosts = ()
    max_image_bytes: int = Field(20_000_000, ge=1)
    max_upload_bytes: int = Field(1_000_000_000, ge=1)
    max_waiting_requests: int = Field(256, ge=1)
    num_cpus: float = Field(0.1, ge=0)


ApplicationConfig = ModelConfig | IngressConfig | MetricsConfig | PlaygroundConfig  # what `args` of ours can be
