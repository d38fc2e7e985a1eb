"""The page: its tabs, and which models they offer a visitor.

What a visitor does becomes a call of `Service`; what that yields becomes what the visitor sees.
"""

from collections.abc import Sequence

import gradio as gr

from serve_app.playground.caption_tab import CaptionTab
from serve_app.playground.chat_tab import ChatTab
from serve_app.playground.guarded_blocks import GuardedBlocks
from serve_app.playground.joycaption_call import JoyCaptionCall
from serve_app.playground.service import Model, Service
from serve_app.playground.several_images_tab import SeveralImagesTab
from serve_app.playground.showing import Update, refusals_shown, visitor_of
from serve_app.playground.side_by_side_tab import MAX_MODELS, SideBySideTab
from serve_app.playground.thumbnails import Thumbnails

_DELETE_EVERY_S, _DELETE_AFTER_S = 300, 3600  # uploaded images


def build_page(service: Service, thumbnails: Thumbnails, title: str, max_waiting: int) -> gr.Blocks:
    """The page over a service. `max_waiting`: visitors' requests that may wait here before more are refused."""

    async def models(request: gr.Request) -> list[Update]:
        """What the four inputs for models offer this visitor."""
        with refusals_shown():
            known_models = await service.models(visitor_of(request))
        captioners, chatters = _names(known_models, "caption"), _names(known_models, "chat")
        return [
            gr.update(choices=captioners, value=next(iter(captioners), None)),
            gr.update(choices=chatters, value=next(iter(chatters), None)),
            gr.update(choices=captioners, value=captioners[:MAX_MODELS]),
            gr.update(choices=captioners, value=next(iter(captioners), None)),
        ]

    with GuardedBlocks(title=title, analytics_enabled=False, delete_cache=(_DELETE_EVERY_S, _DELETE_AFTER_S)) as page:
        gr.Markdown(f"# {title}")
        with gr.Tab("Caption"):
            caption = CaptionTab(service)
        with gr.Tab("Chat"):
            chat = ChatTab(service)
        with gr.Tab("Side by side"):
            comparison = SideBySideTab(service)
        with gr.Tab("Several images"):
            several = SeveralImagesTab(service, thumbnails)
        JoyCaptionCall(service)
        models_inputs = [caption.model, chat.model, comparison.models, several.model]
        page.load(models, None, models_inputs, api_visibility="private")
    page.queue(default_concurrency_limit=None, max_size=max_waiting, api_open=False)
    return page


def _names(models: Sequence[Model], task: str) -> list[str]:
    """Those that do the task, or may yet turn out to."""
    return [model.name for model in models if task in model.tasks or not model.tasks]
