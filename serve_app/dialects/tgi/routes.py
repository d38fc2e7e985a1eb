"""The routes of TGI's dialect (text-generation-inference) and of the hub's hosted API.

TGI serves one model: here the header `X-Model` or `?model=` names it, and otherwise the default chat model answers.
"""

from typing import Any

from serve_app.dialects.openai.chat_body import ChatBody
from serve_app.dialects.openai.completion_body import CompletionBody
from serve_app.dialects.openai.shapes import ChatCompletion, ChatCompletionChunk, Completion, CompletionChunk
from serve_app.dialects.tgi import shapes
from serve_app.dialects.tgi.body import GenerateBody, TokenizeBody
from serve_app.dialects.tgi.dialect import TGI
from serve_app.dialects.tgi.generate import generate, generate_either, generate_stream, info, invocations
from serve_app.dialects.tgi.hub_images import CaptionImageBody, FlatQuestionBody, QuestionBody
from serve_app.dialects.tgi.tokens import chat_tokenize, tokenize
from serve_app.exchange.exchange import Handler
from serve_app.exchange.route import Parameter, Route

_Hosted = GenerateBody | CaptionImageBody | QuestionBody | FlatQuestionBody
_HostedAnswer = list[shapes.Generation] | list[shapes.ImageAnswer]
_MODEL = Parameter("X-Model", "header", "the model, if not the default")


def _post(path: str, handler: Handler, body: Any, answer: Any = None, event: Any = None) -> Route:
    return Route(
        method="POST", path=path, handler=handler, dialect=TGI, body=body, answer=answer, event=event,
        parameters=(_MODEL,),
    )  # fmt: skip


ROUTES = (
    _post("/", generate_either, _Hosted, _HostedAnswer, shapes.GenerationEvent),
    _post("/generate", generate, GenerateBody, shapes.Generation),
    _post("/generate_stream", generate_stream, GenerateBody, event=shapes.GenerationEvent),
    _post(
        "/invocations",
        invocations,
        _Hosted | ChatBody | CompletionBody,
        _HostedAnswer | ChatCompletion | Completion,
        shapes.GenerationEvent | ChatCompletionChunk | CompletionChunk,
    ),
    _post("/tokenize", tokenize, TokenizeBody, list[shapes.PromptToken]),
    _post("/chat_tokenize", chat_tokenize, ChatBody, shapes.ChatTokens),
    Route(
        method="GET",
        path="/info",
        handler=info,
        dialect=TGI,
        answer=shapes.Info,
        parameters=(Parameter("model", "query", "the model that is asked about"), _MODEL),
    ),
)
