"""The playground's page in a process of its own, below a prefix as Ray Serve puts it there. Prints its port.

`python -m tests.playground_page ADDRESS_OF_THE_SERVICE CONFIG_AS_JSON FOLDER_FOR_UPLOADS`. Apart from the tests' own
process, because Gradio leaves event loops open that pytest would lay at some test's door.
"""

import os
import socket
import sys
from pathlib import Path
from typing import Any

import uvicorn

from serve_app.config import PlaygroundConfig

PREFIX = "/playground"


def main(address: str, config: str, folder: str) -> None:
    os.environ["GRADIO_TEMP_DIR"] = folder
    from serve_app.playground.app import create_playground_app

    app = create_playground_app(PlaygroundConfig.model_validate_json(config), address, Path(folder))

    async def below_prefix(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "root_path": PREFIX} if scope["type"] == "http" else scope, receive, send)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        uvicorn.Server(uvicorn.Config(below_prefix, log_level="critical")).run([listener])


if __name__ == "__main__":
    main(*sys.argv[1:])
