"""The routes of TGI's dialect (text-generation-inference) and of the hub's hosted API.

TGI serves one model: here the header `X-Model` or `?model=` names it, and otherwise the default chat model answers.
"""

from serve_app.dialects.openai.chat_body import ChatBody
from serve_app.dialects.openai.completion_body import CompletionBody
from serve_app.dialects.openai.shapes import ChatCompletion, ChatCompletionChunk, Completion, CompletionChunk
from serve_app.dialects.tgi import shapes
from serve_app.dialects.tgi.body import GenerateBody, TokenizeBody
from serve_app.dialects.tgi.dialect import TGI
from serve_app.dialects.tgi.generate import generate, generate_either, generate_stream, info, invocations
from serve_app.dialects.tgi.hub_images import CaptionImageBody, FlatQuestionBody, QuestionBody
from serve_app.dialects.tgi.tokens import chat_tokenize, tokenize
from serve_app.exchange.route import Parameter, Route

_Hosted = GenerateBody | CaptionImageBody | QuestionBody | FlatQuestionBody
_HostedAnswer = list[shapes.Generation] | list[shapes.ImageAnswer]
_X_MODEL = (Parameter("X-Model", "header", "the model, if not the default"),)
_MODEL = (Parameter("model", "query", "the model that is asked about"), *_X_MODEL)

ROUTES = (
    Route("POST", "/", generate_either, TGI, parameters=_X_MODEL,
          body=_Hosted, answer=_HostedAnswer, event=shapes.GenerationEvent),
    Route("POST", "/generate", generate, TGI, parameters=_X_MODEL, body=GenerateBody, answer=shapes.Generation),
    Route("POST", "/generate_stream", generate_stream, TGI, parameters=_X_MODEL,
          body=GenerateBody, event=shapes.GenerationEvent),
    Route("POST", "/invocations", invocations, TGI, parameters=_X_MODEL,
          body=_Hosted | ChatBody | CompletionBody, answer=_HostedAnswer | ChatCompletion | Completion,
          event=shapes.GenerationEvent | ChatCompletionChunk | CompletionChunk),
    Route("POST", "/tokenize", tokenize, TGI, parameters=_X_MODEL,
          body=TokenizeBody, answer=list[shapes.PromptToken]),
    Route("POST", "/chat_tokenize", chat_tokenize, TGI, parameters=_X_MODEL,
          body=ChatBody, answer=shapes.ChatTokens),
    Route("GET", "/info", info, TGI, parameters=_MODEL, answer=shapes.Info),
)  # fmt: skip
