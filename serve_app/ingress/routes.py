"""The table of all routes: each dialect's rows, and those that belong to no API."""

from typing import Any

from serve_app.dialects.captions.routes import ROUTES as CAPTION_ROUTES
from serve_app.dialects.openai.routes import ROUTES as OPENAI_ROUTES
from serve_app.dialects.tgi.dialect import TGI
from serve_app.dialects.tgi.routes import ROUTES as TGI_ROUTES
from serve_app.exchange.dialect import SERVICE
from serve_app.exchange.exchange import Exchange
from serve_app.exchange.lane_secret import LANES_PATH
from serve_app.exchange.route import Parameter, Route
from serve_app.ingress.docs_page import page
from serve_app.ingress.openapi import document
from serve_app.ingress.service import CancelledRequest, Health, Ready, cancel_request, health, lanes, ready


async def openapi(exchange: Exchange) -> None:
    """All of this, for programs."""
    await exchange.send_json(document(ROUTES, exchange.request.scope.get("root_path", "")))


async def docs(exchange: Exchange) -> None:
    """All of this, for people."""
    await exchange.send_page(page(document(ROUTES, exchange.request.scope.get("root_path", ""))))


_ALL = Parameter("all", "query", "1 where every model must be ready")

LANES = Route("GET", LANES_PATH, lanes, SERVICE, answer=str, is_open=True)  # HAProxy's alone, in no documentation
ROUTES: tuple[Route, ...] = (
    *OPENAI_ROUTES,
    *CAPTION_ROUTES,
    *TGI_ROUTES,
    Route("DELETE", "/v1/requests/{id}", cancel_request, SERVICE, answer=CancelledRequest),
    Route("GET", "/health", health, SERVICE, answer=Health, is_open=True),
    Route("GET", "/ping", health, TGI, answer=Health, is_open=True),  # SageMaker's
    Route("GET", "/", health, TGI, answer=Health, is_open=True),
    Route("GET", "/ready", ready, SERVICE, answer=Ready, unready_answer=Ready, parameters=(_ALL,), is_open=True),
    Route("GET", "/openapi.json", openapi, SERVICE, answer=dict[str, Any], is_open=True),
    Route("GET", "/docs", docs, SERVICE, answer=str, is_open=True),
)
