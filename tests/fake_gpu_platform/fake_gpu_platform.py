"""A vLLM platform for tests: the CPU's, whose workers ask Ray for GPUs, which a test cluster makes up.

vLLM's Ray executor places one worker in each GPU bundle, and takes no platform without a device that Ray knows. On
`PYTHONPATH` this folder is an installed package, with its entry point in the `dist-info` beside this file.
"""

from vllm.platforms.cpu import CpuPlatform


class FakeGpuPlatform(CpuPlatform):  # type: ignore[misc] # vLLM is not followed
    ray_device_key = "GPU"


def platform() -> str:
    """The entry point `vllm.platform_plugins`."""
    return f"{FakeGpuPlatform.__module__}.{FakeGpuPlatform.__qualname__}"
