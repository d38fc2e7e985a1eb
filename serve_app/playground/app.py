"""The playground's ASGI app: the page behind its door."""

from pathlib import Path

import fastapi
import gradio as gr
from starlette.types import ASGIApp

from serve_app.access.keys import Keyring
from serve_app.config.applications import PlaygroundConfig
from serve_app.playground.door import Door
from serve_app.playground.page import build_page
from serve_app.playground.service import Service
from serve_app.playground.thumbnails import Thumbnails


def create_playground_app(config: PlaygroundConfig, address: str, folder: Path) -> ASGIApp:
    """For the service at `address`. `folder` is where Gradio keeps uploaded images (GRADIO_TEMP_DIR)."""
    thumbnails = Thumbnails(config.max_image_bytes)
    page = build_page(Service(address), thumbnails, config.title, config.max_waiting_requests)
    app = gr.mount_gradio_app(
        fastapi.FastAPI(openapi_url=None),
        page,
        path="",
        max_file_size=config.max_image_bytes,
        run_history=False,
        footer_links=["api"],
        enable_monitoring=False,
        show_error=False,  # what isn't meant for visitors
        ssr_mode=False,
        mcp_server=False,
    )
    return Door(app, Keyring(config.keys), folder, config.max_upload_bytes, config.allowed_hosts)
