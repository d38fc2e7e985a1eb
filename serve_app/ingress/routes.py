"""The table of all routes: each dialect's rows, and those that belong to no API."""

from typing import Any

from serve_app.dialects.captions.routes import ROUTES as CAPTION_ROUTES
from serve_app.dialects.openai.routes import ROUTES as OPENAI_ROUTES
from serve_app.dialects.tgi.dialect import TGI
from serve_app.dialects.tgi.routes import ROUTES as TGI_ROUTES
from serve_app.exchange.dialect import SERVICE
from serve_app.exchange.exchange import Exchange
from serve_app.exchange.route import Parameter, Route
from serve_app.ingress.docs_page import page
from serve_app.ingress.openapi import document
from serve_app.ingress.service import CancelledRequest, Health, Ready, cancel_request, health, ready


async def openapi(exchange: Exchange) -> None:
    """All of this, for programs."""
    await exchange.send_json(document(ROUTES, exchange.request.scope.get("root_path", "")))


async def docs(exchange: Exchange) -> None:
    """All of this, for people."""
    await exchange.send_page(page(document(ROUTES, exchange.request.scope.get("root_path", ""))))


_ALL = Parameter("all", "query", "1 where every model must be ready")

ROUTES: tuple[Route, ...] = (
    *OPENAI_ROUTES,
    *CAPTION_ROUTES,
    *TGI_ROUTES,
    Route(
        method="DELETE",
        path="/v1/requests/{id}",
        handler=cancel_request,
        dialect=SERVICE,
        answer=CancelledRequest,
    ),
    Route(method="GET", path="/health", handler=health, dialect=SERVICE, answer=Health, is_open=True),
    Route(method="GET", path="/ping", handler=health, dialect=TGI, answer=Health, is_open=True),  # SageMaker's
    Route(method="GET", path="/", handler=health, dialect=TGI, answer=Health, is_open=True),
    Route(
        method="GET",
        path="/ready",
        handler=ready,
        dialect=SERVICE,
        answer=Ready,
        unready_answer=Ready,
        parameters=(_ALL,),
        is_open=True,
    ),
    Route(method="GET", path="/openapi.json", handler=openapi, dialect=SERVICE, answer=dict[str, Any], is_open=True),
    Route(method="GET", path="/docs", handler=docs, dialect=SERVICE, answer=str, is_open=True),
)
