"""OpenAI's routes."""

from serve_app.dialects.openai import shapes
from serve_app.dialects.openai.chat import create_chat_completion
from serve_app.dialects.openai.chat_body import ChatBody
from serve_app.dialects.openai.completion_body import CompletionBody
from serve_app.dialects.openai.completions import create_completion
from serve_app.dialects.openai.models import list_models, retrieve_model
from serve_app.exchange.dialect import Dialect
from serve_app.exchange.route import Route

OPENAI = Dialect("OpenAI")

ROUTES = (
    Route(
        method="POST",
        path="/v1/chat/completions",
        handler=create_chat_completion,
        dialect=OPENAI,
        body=ChatBody,
        answer=shapes.ChatCompletion,
        event=shapes.ChatCompletionChunk,
    ),
    Route(
        method="POST",
        path="/v1/completions",
        handler=create_completion,
        dialect=OPENAI,
        body=CompletionBody,
        answer=shapes.Completion,
        event=shapes.CompletionChunk,
    ),
    Route(method="GET", path="/v1/models", handler=list_models, dialect=OPENAI, answer=shapes.ModelList),
    Route(method="GET", path="/v1/models/{id:path}", handler=retrieve_model, dialect=OPENAI, answer=shapes.Model),
)
