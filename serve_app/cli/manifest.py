"""`serve-app manifest`: a Serve config as a KubeRay RayService, on stdout."""

from pathlib import Path
from typing import Annotated, Any

import typer

from serve_app.errors import ConfigError

HEADER = "# Written by `{command}`. Change that file or the options, not this one.\n"


def manifest(
    config: Annotated[Path, typer.Argument(help="A Serve config file, like serve_config.yaml.")],
    image: Annotated[str | None, typer.Option(help="The image that cluster/Dockerfile makes, with its tag.")] = None,
    name: Annotated[str | None, typer.Option(help="The RayService's name. Default: serve-app.")] = None,
    namespace: Annotated[str | None, typer.Option(help="Default: serve-app.")] = None,
    secret: Annotated[
        str | None, typer.Option(help="The Secret with the tokens. Default: serve-app-secrets.")
    ] = None,
    secret_env: Annotated[
        list[str] | None,
        typer.Option(
            help="A key of that Secret that pods get as a variable. Default: HF_TOKEN and SERVE_APP_API_KEYS."
        ),
    ] = None,
    redis_address: Annotated[str | None, typer.Option(help="The head's memory. Default: redis:6379.")] = None,
    redis_secret: Annotated[
        str | None, typer.Option(help="The Secret whose 'password' opens it. Default: serve-app-redis.")
    ] = None,
    cpus_per_machine: Annotated[int | None, typer.Option(help="Of a machine without GPUs. Default: 8.")] = None,
    gpus_per_machine: Annotated[
        int | None, typer.Option(help="Default: as many as the largest model wants in one machine.")
    ] = None,
    gpu_resource: Annotated[str | None, typer.Option(help="Default: nvidia.com/gpu.")] = None,
    gpu_node_selector: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE: a label of the GPU machines to take, such as their GPU's type."),
    ] = None,
    memory_gib_per_cpu: Annotated[int | None, typer.Option(help="Default: 4.")] = None,
    memory_gib_per_gpu: Annotated[int | None, typer.Option(help="On top of the CPUs'. Default: 32.")] = None,
    haproxy: Annotated[
        bool | None,
        typer.Option("--haproxy", help="Behind HAProxy, the proxy for production. Default: Ray Serve's own proxy."),
    ] = None,
    cache_claim: Annotated[
        str | None, typer.Option(help="A PersistentVolumeClaim for the models' files. Default: each pod has its own.")
    ] = None,
) -> None:
    """Print a RayService for KubeRay: the config, a head, and worker groups that its models fit on.

    Example: serve-app manifest serve_config.yaml > cluster/rayservice.yaml
    """
    options = {key: value for key, value in locals().items() if key != "config" and value is not None}
    typer.echo(render(config, options), nl=False)


def render(path: Path, fields: dict[str, Any]) -> str:
    """The manifest as text, below a line that says how it was made. Raises `ConfigError`."""
    from pydantic import ValidationError  # imports late: `--help` stays instant

    from serve_app.config.file import read_config_file
    from serve_app.kubernetes.manifest import ManifestOptions, dump_yaml, ray_service
    from serve_app.strict import first_sentence

    if selectors := fields.get("gpu_node_selector"):
        fields = fields | {"gpu_node_selector": _pairs(selectors)}
    values = read_config_file(path)
    try:
        options = ManifestOptions.model_validate(fields)
    except ValidationError as exc:
        option, _, sentence = first_sentence(exc).partition(": ")
        raise ConfigError(f"--{option.replace('_', '-')}: {sentence}") from exc
    try:
        made = ray_service(values, options)
    except ConfigError as exc:
        raise ConfigError(f"{path}: {exc}") from exc
    return HEADER.format(command=f"serve-app manifest {path.name}") + dump_yaml(made)


def _pairs(items: list[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for item in items:
        key, separator, value = item.partition("=")
        if not (key and separator and value):
            raise ConfigError(f"--gpu-node-selector is KEY=VALUE, and '{item}' isn't")
        pairs[key] = value
    return pairs
