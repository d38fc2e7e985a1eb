"""The playground as a Ray Serve application: one replica, because Gradio keeps its visitors' state in its process.

No `from __future__ import annotations` here: Ray Serve reads the builder's annotation as a class.
"""

import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

from ray import serve
from ray.serve import Application
from ray.serve.context import _get_global_client
from starlette.types import ASGIApp

from serve_app.config.applications import PlaygroundConfig
from serve_app.errors import ConfigError

_MAX_STREAMS = 10_000  # a visitor's page keeps one open, and one more for each answer
_DRAIN_S = 3.0  # those open streams would hold its end up for longer


def build_playground(config: PlaygroundConfig) -> Application:
    """The page for browsers, under the application's `route_prefix`. Raises `ConfigError` where Gradio is missing."""
    if find_spec("gradio") is None:
        raise ConfigError("the playground needs Gradio: pip install 'serve-app[playground]'")
    deployment = serve.deployment(
        serve.ingress()(PlaygroundDeployment),
        name="Playground",
        num_replicas=1,
        ray_actor_options={"num_cpus": config.num_cpus},
        max_ongoing_requests=_MAX_STREAMS,
        graceful_shutdown_timeout_s=_DRAIN_S,
        logging_config={"enable_access_log": False},
    )
    return deployment.bind(config)


class PlaygroundDeployment:
    """Uploaded images live in a folder of this replica's own, which ends with it."""

    def __init__(self, config: PlaygroundConfig) -> None:
        self._config = config
        self._folder = tempfile.TemporaryDirectory(prefix="serve-app-playground-")
        os.environ["GRADIO_TEMP_DIR"] = self._folder.name  # before Gradio is imported, which reads it

    def __serve_build_asgi_app__(self) -> ASGIApp:  # Ray Serve's name for it
        from serve_app.playground.app import create_playground_app  # imports late: it brings Gradio

        return create_playground_app(self._config, self._config.address or _own_address(), Path(self._folder.name))

    def __del__(self) -> None:
        self._folder.cleanup()


def _own_address() -> str:
    """Where Ray Serve's proxy listens on this machine."""
    client = _get_global_client()
    assert client is not None, "inside a replica Serve is there"
    options = client.http_config
    host = "127.0.0.1" if options.host in ("0.0.0.0", "::", "") else options.host
    return f"http://{host}:{options.port}{options.root_path}"
