"""The playground's page in a process of its own, below a prefix as Ray Serve puts it there. Prints its port.

`python -m tests.playground_page ADDRESS_OF_THE_SERVICE CONFIG_AS_JSON FOLDER_FOR_UPLOADS`. Apart from the tests' own
process, because Gradio leaves event loops open that pytest would lay at some test's door.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from serve_app.config.applications import PlaygroundConfig
from serve_app.config.http import KeysConfig
from tests.own_lane import write_keys

PREFIX = "/playground"
TITLE = "Playground of the tests"
MAX_IMAGE_BYTES, MAX_UPLOAD_BYTES = 200_000, 1_000_000


@contextmanager
def page_over(address: str, folder: Path) -> Iterator[str]:
    """The page's address while the block runs; it wants the keys of `own_lane`. Uploads go to `folder`/uploads."""
    write_keys(folder / "keys.yaml")
    (folder / "uploads").mkdir()
    config = PlaygroundConfig(
        title=TITLE,
        keys=KeysConfig(file=str(folder / "keys.yaml")),
        max_image_bytes=MAX_IMAGE_BYTES,
        max_upload_bytes=MAX_UPLOAD_BYTES,
    )
    command = [sys.executable, "-m", "tests.playground_page"]
    arguments = [address, config.model_dump_json(), str(folder / "uploads")]
    with subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        assert port, "the page couldn't start: its error stands above"
        yield f"http://127.0.0.1:{port}{PREFIX}"
        process.terminate()


def main(address: str, config: str, folder: str) -> None:
    os.environ["GRADIO_TEMP_DIR"] = folder
    from serve_app.playground.app import create_playground_app

    app = create_playground_app(PlaygroundConfig.model_validate_json(config), address, Path(folder))

    async def below_prefix(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "root_path": PREFIX} if scope["type"] == "http" else scope, receive, send)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        server = uvicorn.Server(uvicorn.Config(below_prefix, log_level="critical", timeout_graceful_shutdown=1))
        server.run([listener])


if __name__ == "__main__":
    main(*sys.argv[1:])
