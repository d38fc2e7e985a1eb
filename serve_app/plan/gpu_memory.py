"""What a model's replica does with its GPUs' memory: weights, what is left for the cache, sequences held at once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from serve_app.config.applications import ModelConfig
from serve_app.placement.packing import Node
from serve_app.plan.finding import Finding, error
from serve_app.plan.model_size import ModelSize

GIB = 2**30


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """Of one replica, in GiB on each of its GPUs; None where it isn't known."""

    share: float  # of each GPU
    budget_gib: float | None
    weights_gib: float | None
    cache_tokens: int | None  # that the rest holds, over all ranks; before what the engine itself needs
    num_full_contexts: int | None
    given_cache_gib: float = 0.0  # where the config says it: vLLM then heeds no share


def memory_of(model: ModelConfig, size: ModelSize, gpu_memory_gib: float | None) -> GpuMemory:
    """The division of the smallest GPU that the model may get. Weights and cache are split evenly over the ranks."""
    share = _share(model)
    budget = share * gpu_memory_gib if gpu_memory_gib else None
    weights = size.weight_bytes / GIB / model.num_ranks if size.weight_bytes is not None else None
    tokens = full = None
    cache_bytes = (
        float(model.engine_args.get("kv_cache_memory_bytes") or 0) if model.engine != "transformers" else 0.0
    )
    if budget is not None and weights is not None and size.kv_bytes_per_token:
        rest = cache_bytes or (budget - weights) * GIB
        room = max(0, int(rest * model.num_ranks))
        tokens = room // size.kv_bytes_per_token
        full = room // size.kv_bytes_per_context if size.kv_bytes_per_context else None
    return GpuMemory(share, budget, weights, tokens, full, cache_bytes / GIB)


def _share(model: ModelConfig) -> float:
    """vLLM takes its share at once; transformers has the fraction as its limit."""
    if model.engine == "transformers":
        return model.num_gpus if model.shares_gpu else 1.0
    return model.gpu_memory_share


def memory_findings(model: ModelConfig, size: ModelSize, memory: GpuMemory | None, place: str) -> Iterator[Finding]:
    """Over-committed memory, with the arithmetic, and images that no context holds."""
    context, image = size.context_tokens, size.image_tokens
    if "caption" in model.tasks and image and context and image >= context:
        yield error(
            f"{place}.max_context_tokens",
            f"one image takes {image:,} tokens and the context is {context:,}: no image can be answered",
            f"raise it above {image:,}, or leave caption out of tasks",
        )
    if memory is None or memory.budget_gib is None or memory.weights_gib is None:
        return
    of_gpu = f"{memory.share:.4g} of a GPU's {memory.budget_gib / memory.share:.4g} GiB = {memory.budget_gib:.2f} GiB"
    over = f" over {model.num_ranks} ranks" if model.num_ranks > 1 else ""
    smaller = "a smaller dtype or quantization, a larger share of the GPU (num_gpus) or more ranks"
    if memory.weights_gib >= memory.budget_gib:
        yield error(
            f"{place}.num_gpus",
            f"the weights take {memory.weights_gib:.2f} GiB on each GPU{over}, and it has {of_gpu}",
            f"give it {smaller}",
        )
    elif memory.weights_gib + memory.given_cache_gib > memory.budget_gib:
        yield error(
            f"{place}.engine_args.kv_cache_memory_bytes",
            f"{memory.weights_gib:.2f} GiB of weights{over} and {memory.given_cache_gib:.2f} GiB for keys and values "
            f"are more than {of_gpu}",
            f"leave it out, or set it to at most {int((memory.budget_gib - memory.weights_gib) * GIB)}",
        )
    elif memory.cache_tokens is not None and context and memory.num_full_contexts == 0:
        rest = memory.budget_gib - memory.weights_gib
        yield error(
            f"{place}.max_context_tokens",
            f"{of_gpu} less {memory.weights_gib:.2f} GiB of weights{over} leaves {rest:.2f} GiB for keys and values, "
            f"{memory.cache_tokens:,} tokens of {size.kv_bytes_per_token:,} bytes, and one context has {context:,}",
            f"set max_context_tokens to at most {memory.cache_tokens}, or give it {smaller}",
        )


def cpu_memory_findings(size: ModelSize, nodes: Sequence[Node], place: str) -> Iterator[Finding]:
    """A model without GPUs on nodes that are smaller than its weights."""
    smallest = min((node.memory_gib for node in nodes if node.memory_gib is not None), default=None)
    if smallest is not None and size.weight_bytes is not None and size.weight_bytes / GIB > smallest:
        yield error(
            f"{place}.source",
            f"the weights take {size.weight_bytes / GIB:.2f} GiB and the node has {smallest:g} GiB of memory",
            "give it a smaller dtype, or a larger node",
        )
