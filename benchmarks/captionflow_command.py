"""CaptionFlow's own command line, in the peer's environment alone, with what this machine needs around it.

`python captionflow_command.py ENGINE_ARGS orchestrator|worker|export …`. The worker's engine gets the arguments, as
JSON, that CaptionFlow's configuration has no fields for. SIGTERM ends a process as Ctrl-C does, else the orchestrator
loses captions.
"""

import json
import signal
import sys
from functools import partial
from importlib import import_module
from types import ModuleType


def main() -> None:
    engine_args, *words = sys.argv[1:]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if words[0] == "worker":
        _import_without_torchvision("qwen_vl_utils")
        import_module("caption_flow.workers.caption")  # it sets vLLM's environment, so it comes first
        vllm = import_module("vllm")
        vllm.LLM = partial(vllm.LLM, **json.loads(engine_args))  # type: ignore[attr-defined]
    sys.argv = ["caption-flow", *words]
    import_module("caption_flow.cli").main()


def _import_without_torchvision(name: str) -> None:
    """It reads videos with torchvision, whose wheels don't fit torch's CPU build, but images without it.

    Where the import fails, CaptionFlow's worker goes on with a prompt that only one model family understands.
    """
    names = ("torchvision", "torchvision.io", "torchvision.transforms")
    package, io, transforms = placeholders = [ModuleType(name) for name in names]
    package.io, package.transforms, transforms.InterpolationMode = io, transforms, None  # type: ignore[attr-defined]
    sys.modules |= dict(zip(names, placeholders, strict=True))
    import_module(name)
    for placeholder in names:
        del sys.modules[placeholder]


if __name__ == "__main__":
    main()
