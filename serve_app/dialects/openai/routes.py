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
    Route("POST", "/v1/chat/completions", create_chat_completion, OPENAI,
          body=ChatBody, answer=shapes.ChatCompletion, event=shapes.ChatCompletionChunk),
    Route("POST", "/v1/completions", create_completion, OPENAI,
          body=CompletionBody, answer=shapes.Completion, event=shapes.CompletionChunk),
    Route("GET", "/v1/models", list_models, OPENAI, answer=shapes.ModelList),
    Route("GET", "/v1/models/{id:path}", retrieve_model, OPENAI, answer=shapes.Model),
)  # fmt: skip
