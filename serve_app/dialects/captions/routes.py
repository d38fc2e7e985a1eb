"""The routes of this service's own API: images in, captions out."""

from serve_app.dialects.captions import shapes
from serve_app.dialects.captions.body import CaptionBody, CaptionForm
from serve_app.dialects.captions.styles import list_caption_styles
from serve_app.dialects.captions.task import create_captions
from serve_app.exchange.dialect import Dialect
from serve_app.exchange.route import Parameter, Route

CAPTIONS = Dialect("captions")

ROUTES = (
    Route("POST", "/v1/captions", create_captions, CAPTIONS, body=CaptionBody, form=CaptionForm,
          answer=shapes.CaptionList, event=shapes.CaptionChunk | shapes.Caption | shapes.CaptionFailure),
    Route("GET", "/v1/captions/styles", list_caption_styles, CAPTIONS, answer=shapes.CaptionStyles,
          parameters=(Parameter("model", "query", "the model that is asked about"),)),
)  # fmt: skip
