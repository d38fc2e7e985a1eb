"""The engine's settings, the same in every system: as flags of `vllm serve`, as keywords, and as environment.

One thread computes, nothing is compiled, and nothing that was computed before is used again, so that every request
costs every engine the same.
"""

from typing import Any

CONTEXT_LENGTH = 2048  # of both models
MAX_NUM_SEQS = 256  # as many as the most clients that any workload has
ENGINE_ARGS: dict[str, Any] = {
    "dtype": "bfloat16",
    "max_model_len": CONTEXT_LENGTH,
    "max_num_seqs": MAX_NUM_SEQS,
    "max_num_batched_tokens": 8192,  # else it depends on who starts the engine
    "enforce_eager": True,
    "enable_prefix_caching": False,
    "mm_processor_cache_gb": 0,
    "seed": 0,
}
ENVIRONMENT = {
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else every engine takes the same core for itself
    "OMP_NUM_THREADS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "60",  # vllm serve starved for its 5 s drops connections in use
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
}


def vllm_flags() -> list[str]:
    """`ENGINE_ARGS` as `vllm serve` spells them."""
    flags: list[str] = []
    for name, value in ENGINE_ARGS.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", str(value)]
    return flags
