"""`GET /v1/captions/styles?model=`: what a model understands in a caption request, and the words that it is sent."""

from typing import Any

from serve_app.dialects.sampling_body import MAX_MODEL_CHARACTERS
from serve_app.errors import Forbidden, InvalidRequest, ModelNotReady, UnsupportedTask
from serve_app.exchange.body import shortened
from serve_app.exchange.exchange import Exchange
from serve_app.families import CaptionFamily, Style, family_named
from serve_app.families.family import LENGTHS, Task
from serve_app.families.languages import ENGLISH, LANGUAGES
from serve_app.families.wish import ANY_LENGTH
from serve_app.images.formats import taken
from serve_app.models.entry import ModelEntry
from serve_app.strict import nearest_hint


async def list_caption_styles(exchange: Exchange) -> None:
    """The styles, lengths, options, tasks and languages of the named model, or of the default caption model."""
    query = exchange.request.query_params
    for name in query:
        if name != "model":
            name = shortened(name)
            raise InvalidRequest(f"{name}: unknown in the query{nearest_hint(name, ['model'])}", name)
    model = _model(exchange, query.get("model"))
    if model.family is None:
        raise ModelNotReady(f"model '{model.name}' hasn't told its family yet: it is {model.state}", "model")
    family = family_named(model.family)
    formats = {"image_formats": taken()}  # of this process; clients make JPEGs of others
    await exchange.send_json({"object": "caption.styles", "model": model.name} | family_json(family) | formats)


def _model(exchange: Exchange, name: str | None) -> ModelEntry:
    """Ready or not: what it understands doesn't depend on it."""
    if name is None:
        return exchange.lane.choose(None, "caption", exchange.key)
    model = exchange.lane.catalog.find(name[:MAX_MODEL_CHARACTERS])
    if exchange.key is not None and not exchange.key.may_use(model.name):
        raise Forbidden(f"this key may not use model '{model.name}'", "model")
    if not model.may_serve("caption"):
        raise UnsupportedTask(f"model '{model.name}' doesn't do caption: name another", "model")
    return model


def family_json(family: CaptionFamily) -> dict[str, Any]:
    takes_lengths = any(style.takes_lengths for style in family.styles)
    return {
        "family": family.name,
        "system": family.system,
        "styles": [_style_json(style) for style in family.styles],
        "lengths": [ANY_LENGTH, *LENGTHS] if takes_lengths else [],
        "options": [{"name": name, "text": text} for name, text in family.options.items()],
        "tasks": [_task_json(task) for task in family.tasks],
        "languages": [language.code for language in LANGUAGES] if family.speaks_languages else [ENGLISH.code],
    }


def _style_json(style: Style) -> dict[str, Any]:
    return {
        "name": style.name,
        "label": style.label,
        "prompt": style.prompt,
        "prompt_in_words": style.in_words,
        "prompt_at_length": style.at_length,
        "lists_tags": style.lists_tags,
    }


def _task_json(task: Task) -> dict[str, Any]:
    return {
        "name": task.name,
        "token": task.token,
        "prompt": task.prompt,
        "needs": task.needs,
        "has_regions": task.reading != "text",
    }
