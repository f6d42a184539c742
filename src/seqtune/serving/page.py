"""The page at `/`, and what it shows beside answers: a run's scores, its wrong answers, molecules."""

from __future__ import annotations

import math
from importlib import resources
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, StrictStr
from starlette.responses import Response

from seqtune import plugins, runs
from seqtune.report.scores import scores_of
from seqtune.scoring.evaluate import read_predictions
from seqtune.serving.limits import Limits
from seqtune.serving.refusals import Json
from seqtune.serving.served import Served
from seqtune.serving.shelf import Shelf

ASSETS = {"app.js": "text/javascript", "style.css": "text/css", "icon.svg": "image/svg+xml"}
MOST_PICTURES = 64
MOST_ERRORS = 200

Drawable = Annotated[StrictStr, Field(max_length=2000)]


class PicturesRequest(BaseModel):
    """Texts to draw."""

    model_config = ConfigDict(extra="forbid")

    model: StrictStr | None = None
    texts: Annotated[list[Drawable], Field(max_length=MOST_PICTURES)]


def router(shelf: Shelf, limits: Limits) -> APIRouter:
    """The routes."""
    made = APIRouter()
    folder = resources.files("seqtune") / "assets" / "serve"
    page = (folder / "index.html").read_text(encoding="utf-8")
    files = {name: (folder / name).read_text(encoding="utf-8") for name in ASSETS}

    @made.get("/", include_in_schema=False)
    async def index() -> Response:
        return Response(page, media_type="text/html")

    for name, kind in ASSETS.items():

        async def asset(content: str = files[name], kind: str = kind) -> Response:
            return Response(content, media_type=kind)

        # a route each, and no parameters: a path never comes from a request
        made.add_route(f"/assets/{name}", _plain(asset), include_in_schema=False)

    @made.get("/v1/runs")
    async def described() -> Json:
        """What each run reads, can do, and how well it does."""
        bounds = {"inputs": limits.inputs, "characters": limits.characters, "file": limits.file, "rows": limits.rows}
        return Json({"runs": [_described(shelf, run) for run in shelf.runs.values()], "limits": bounds})

    @made.get("/v1/runs/{name}/errors")
    async def errors(name: str) -> Json:
        """The wrong answers of the run's own test, those that it was surest of first."""
        return Json(await shelf.desk.text(_wrong_answers, shelf, shelf.find(name).name))

    @made.post("/v1/pictures")
    async def pictures(asked: PicturesRequest) -> Json:
        """A drawing of each text as SVG; "" for one that cannot be drawn."""
        pack = shelf.find(asked.model).predictor.task.pack
        if pack is None or pack.picture is None:
            return Json({"pictures": ["" for _ in asked.texts]})
        draw = plugins.load(pack.picture)
        return Json({"pictures": [await shelf.desk.check(draw, text) for text in asked.texts]})

    return made


def _plain(answer: Any) -> Any:
    async def endpoint(_: object) -> Response:
        return await answer()

    return endpoint


def _described(shelf: Shelf, run: Served) -> dict[str, Any]:
    predictor, folder = run.predictor, shelf.folder(run.name)
    pack, decode = predictor.task.pack, predictor.decode
    file = folder / "metrics.json" if folder else None
    metrics = runs.read_json(file) if file and file.exists() else {}
    return {
        "name": run.name,
        "input": predictor.task.input,
        "columns": sorted(predictor.template.source_columns - {predictor.task.input}),
        "decode": {name: getattr(decode, name) for name in ("num_beams", "num_return", "verify", "abstain")},
        "can_verify": pack is not None and pack.verifier is not None,
        "can_draw": pack is not None and pack.picture is not None,
        "num_items": metrics.get("num_items", 0),
        "scores": [{"name": name, **{k: s[k] for k in ("value", "low", "high")}} for name, s in scores_of(metrics).items()],
    }


def _wrong_answers(shelf: Shelf, name: str) -> dict[str, Any]:
    folder = shelf.folder(name)
    if folder is None or not (folder / runs.PREDICTIONS).exists():
        return {"num_items": 0, "num_wrong": 0, "errors": []}
    predictions = read_predictions(folder)
    wrong = [p for p in predictions if p.reference is not None and p.prediction != p.reference]
    wrong.sort(key=lambda p: -p.score if p.hypotheses else math.inf)
    shown = [
        {
            "id": p.id, "input": p.input, "prediction": p.prediction, "reference": p.reference, "status": p.status,
            "confidence": math.exp(min(0.0, p.score)) if p.hypotheses else None,
        }
        for p in wrong[:MOST_ERRORS]
    ]  # fmt: skip
    return {"num_items": len(predictions), "num_wrong": len(wrong), "errors": shown}
