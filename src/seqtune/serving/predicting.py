"""`POST /v1/predict`: everything that `seqtune predict` can be asked."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, StrictStr

from seqtune.config import validate
from seqtune.decoding.predictor import Predictor, with_overrides
from seqtune.records import Example
from seqtune.sections import DecodeConfig
from seqtune.serving.gate import within
from seqtune.serving.limits import Limits
from seqtune.serving.refusals import Json, Refusal
from seqtune.serving.served import Answered
from seqtune.serving.shelf import Shelf

Input = StrictStr | dict[str, StrictStr]


class PredictRequest(BaseModel):
    """Inputs and how their answers are searched for; what is left out is as the run has it."""

    model_config = ConfigDict(extra="forbid")

    inputs: Annotated[
        Input | list[Input],
        Field(description="a text, or its columns by name where the template needs several; or a list of these"),
    ]
    model: StrictStr | None = Field(default=None, description="name of the run; default: the first one")
    num_beams: int | None = None
    num_return: int | None = None
    length_penalty: float | None = None
    max_new_tokens: int | None = None
    verify: bool | None = None
    abstain: bool | None = None


class HypothesisAnswer(BaseModel):
    """One text that the search found."""

    text: str
    score: float
    num_tokens: int
    finished: bool
    verdict: str | None = None


class PredictionAnswer(BaseModel):
    """The answer to one input; see `records.Prediction`."""

    id: str
    input: str
    reference: str | None
    prediction: str
    score: float
    hypotheses: list[HypothesisAnswer]
    status: str
    details: dict[str, str] | None = None
    fields: dict[str, str] | None = None


class Usage(BaseModel):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class PredictAnswer(BaseModel):
    """The answers, in the order of the inputs."""

    model: str
    predictions: list[PredictionAnswer]
    usage: Usage
    seconds: float


def usage(answers: list[Answered]) -> dict[str, int]:
    """Tokens read and written for some answers."""
    read, written = sum(a.num_read for a in answers), sum(a.num_written for a in answers)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def settings(predictor: Predictor, changes: dict[str, Any]) -> DecodeConfig:
    """A run's `decode` section with a request's changes; what is `None` stays.

    Raises:
        ConfigError: a setting is wrong, or they contradict each other.
    """
    given = {key: value for key, value in changes.items() if value is not None}
    if given.get("verify") is False:
        given.setdefault("abstain", False)
    return validate(DecodeConfig, with_overrides(predictor.decode.model_dump(), given))


def examples_of(inputs: list[Input], column: str, limits: Limits) -> list[Example]:
    """Inputs as rows of a table, numbered from 1.

    Raises:
        Refusal: there are too many, one is too long, or lacks the input column.
    """
    if not 0 < len(inputs) <= limits.inputs:
        raise Refusal(400, f"a request may have 1 to {limits.inputs} inputs, and this one has {len(inputs)}", param="inputs")
    found = []
    for number, each in enumerate(inputs, start=1):
        fields = {column: each} if isinstance(each, str) else dict(each)
        text = fields.get(column, fields.get("input"))
        if text is None:
            raise Refusal(
                400, f"input {number} lacks {column!r}; it has: {', '.join(sorted(fields)) or 'nothing'}", param="inputs"
            )
        length = sum(map(len, fields.values()))
        if length > limits.characters:
            raise Refusal(
                400, f"input {number} has {length:,} characters; an input may have {limits.characters:,}", param="inputs"
            )
        found.append(Example(str(number), text, None, fields))
    return found


def router(shelf: Shelf, limits: Limits) -> APIRouter:
    """The route."""
    made = APIRouter()

    @made.post("/v1/predict", response_model=PredictAnswer)
    async def predict(asked: PredictRequest, request: Request) -> Json:
        """Answer one or many inputs."""
        started = time.monotonic()
        run = shelf.find(asked.model)
        inputs = asked.inputs if isinstance(asked.inputs, list) else [asked.inputs]
        examples = examples_of(inputs, run.predictor.task.input, limits)
        decode = settings(run.predictor, asked.model_dump(exclude={"inputs", "model"}))
        answers = await within(request, limits.seconds, run.answer(examples, decode))
        return Json(
            {
                "model": run.name,
                "predictions": [a.prediction.to_dict() for a in answers],
                "usage": usage(answers),
                "seconds": round(time.monotonic() - started, 4),
            }
        )

    return made
