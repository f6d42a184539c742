"""The application: routes behind a gate, and one shape for everything that is refused."""

from __future__ import annotations

import importlib.metadata
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from seqtune.errors import SeqtuneError
from seqtune.serving import jobs, openai_routes, page, predicting
from seqtune.serving.gate import Gate
from seqtune.serving.limits import Limits
from seqtune.serving.measures import Measures
from seqtune.serving.refusals import Json, Refusal
from seqtune.serving.shelf import Shelf


@dataclass(slots=True)
class State:
    """Where a server stands.

    Attributes:
        draining: it finishes what it holds and takes on nothing new.
    """

    draining: bool = field(default=False)


def build(
    shelf: Shelf, limits: Limits, measures: Measures, state: State, token: str | None = None, origins: Sequence[str] = ()
) -> FastAPI:
    """The ASGI application.

    Args:
        shelf: the runs.
        limits: of the server.
        measures: what `/metrics` tells.
        state: is looked at for every request.
        token: what requests must bring; `None` for nothing.
        origins: pages of other origins that may ask.
    """
    middleware = [Middleware(Gate, limits, measures, token, origins, lambda: state.draining)]
    if origins:
        allowed: dict[str, Any] = {"allow_methods": ["GET", "POST", "DELETE"], "allow_headers": ["*"]}
        # before the gate: a browser's preflight request brings no token
        middleware.insert(0, Middleware(CORSMiddleware, allow_origins=list(origins), **allowed))
    files = jobs.Jobs(limits)

    @asynccontextmanager
    async def living(_: FastAPI) -> AsyncIterator[None]:
        async with files.open():
            yield

    settings: dict[str, Any] = {"docs_url": None, "redoc_url": None, "middleware": middleware, "lifespan": living}
    app = FastAPI(title="seqtune", version=importlib.metadata.version("seqtune"), **settings)
    _explain_refusals(app)
    _say_how_it_is(app, shelf, measures, state)
    for routes in (predicting, openai_routes, page):
        app.include_router(routes.router(shelf, limits))
    app.include_router(jobs.router(shelf, files))
    return app


def _say_how_it_is(app: FastAPI, shelf: Shelf, measures: Measures, state: State) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        """The process lives."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> dict[str, Any]:
        """Requests are taken on; while the server drains, the gate refuses this like any other."""
        return {"status": "ready", "runs": list(shelf.runs)}

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counters in the text format of Prometheus."""
        scheduler = shelf.desk.scheduler
        measures.waiting.set(scheduler.num_waiting)
        measures.active.set(scheduler.num_active)
        return Response(measures.text(), media_type="text/plain; version=0.0.4")


def _explain_refusals(app: FastAPI) -> None:
    @app.exception_handler(Refusal)
    async def refused(_: Request, error: Refusal) -> Response:
        return error.response()

    @app.exception_handler(SeqtuneError)
    async def mistaken(_: Request, error: SeqtuneError) -> Response:
        return Refusal(400, str(error)).response()

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        message = "the body is no JSON" if first["type"] == "json_invalid" else first["msg"]
        return Refusal(400, f"{place}: {message}" if place else message, param=place or None).response()

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        return Refusal(error.status_code, str(error.detail)).response()

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> Response:
        return Json(Refusal(500, "the server failed; its log tells how", "internal_error").body(), 500)
