"""`/v1/completions`, `/v1/chat/completions` and `/v1/models`, so that the clients of OpenAI's API work as they are."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from seqtune.decoding.predictor import Question
from seqtune.records import Example, Turn
from seqtune.serving.gate import hung_up, within
from seqtune.serving.limits import Limits
from seqtune.serving.openai_shapes import ChatRequest, Completing, CompletionRequest
from seqtune.serving.predicting import examples_of, settings, usage
from seqtune.serving.refusals import GONE, Json, Refusal
from seqtune.serving.served import Answered, Served
from seqtune.serving.shelf import Shelf
from seqtune.serving.streaming import Cutter

T = TypeVar("T")
ROLES = ("system", "user", "assistant")


class _Reply:
    """What answers to one request have in common.

    Args:
        asked: the request.
        run: that answers.
        examples: its inputs.
    """

    def __init__(self, asked: Completing, run: Served, examples: list[Example]):
        asked.check()
        self.asked, self.run, self.examples = asked, run, examples
        self.is_chat = isinstance(asked, ChatRequest)
        self.decode = settings(run.predictor, asked.search(run.predictor.decode.num_beams))
        kind = "chat.completion" if self.is_chat else "text_completion"
        self.head = {
            "id": ("chatcmpl-" if self.is_chat else "cmpl-") + secrets.token_hex(12),
            "object": kind,
            "created": int(time.time()),
            "model": run.name,
        }

    async def whole(self) -> Response:
        """Everything at once."""
        answers = await self.run.answer(self.examples, self.decode)
        choices = []
        for answer in answers:
            _check_asked(answer)
            notes = await self._log_probabilities(answer)
            for (text, finish), noted in zip(self._hypotheses(answer), notes, strict=True):
                choice = {"index": len(choices), "finish_reason": finish, "logprobs": noted}
                said = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.is_chat else {"text": text}
                choices.append(choice | said)
        return Json({**self.head, "choices": choices, "usage": usage(answers)})

    def _hypotheses(self, answer: Answered) -> list[tuple[str, str]]:
        """Texts and why they end; where verification found none that passes, and should abstain, there is one without text."""
        if answer.prediction.status == "abstained":
            return [("", "stop")]
        texts = [(Cutter(self.asked.stops).cut(h.text), h) for h in self._best(answer, answer.prediction.hypotheses)]
        return [(text, "stop" if h.finished or text != h.text else "length") for text, h in texts]

    async def _log_probabilities(self, answer: Answered) -> Sequence[dict[str, Any] | None]:
        """For each hypothesis, in the form of the endpoint; `None` if they were not asked for."""
        best = self._best(answer, answer.candidates)
        if self.asked.num_top is None or answer.question is None:
            return [None] * len(self._hypotheses(answer))
        found = await self.run.log_probabilities(answer.question, best, self.asked.num_top)
        return [self._noted(rows) for rows in found][: len(self._hypotheses(answer))]

    def _best(self, answer: Answered, found: Sequence[T]) -> list[T]:
        """The first `n`, that which verification chose before the others."""
        rank = int(answer.prediction.details.get("rank", "1")) - 1
        return [found[rank], *found[:rank], *found[rank + 1 :]][: self.asked.n]

    def _noted(self, rows: list[tuple[int, float, list[tuple[int, float]]]]) -> dict[str, Any]:
        def word(token: int) -> str:
            return str(self.run.predictor.encoder.tokenizer.decode([token]))

        if self.is_chat:

            def entry(token: int, value: float) -> dict[str, Any]:
                return {"token": word(token), "logprob": value, "bytes": list(word(token).encode(errors="replace"))}

            return {
                "content": [entry(t, v) | {"top_logprobs": [entry(*each) for each in top]} for t, v, top in rows],
                "refusal": None,
            }
        words = [word(token) for token, _, _ in rows]
        offsets = [sum(map(len, words[:i])) for i in range(len(words))]
        return {
            "tokens": words,
            "token_logprobs": [value for _, value, _ in rows],
            # of tokens that look alike, such as parts of a character, the likeliest
            "top_logprobs": [{word(t): v for t, v in reversed(top)} for _, _, top in rows],
            "text_offset": offsets,
        }

    async def pieces(self, request: Request, seconds: float) -> AsyncIterator[bytes]:
        """Server-sent events: a greedy answer grows with every token, others come as one piece."""
        try:
            async with asyncio.timeout(seconds):
                async for event in self._events(request):
                    yield b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"
            yield b"data: [DONE]\n\n"
        except TimeoutError:
            yield _error(Refusal(504, f"there was no whole answer within {seconds:g} seconds", "timeout"))
        except Refusal as refusal:
            yield _error(refusal)

    async def _events(self, request: Request) -> AsyncIterator[dict[str, Any]]:
        read = written = 0
        for index, example in enumerate(self.examples):
            [question] = await self.run.desk.text(self.run.searching_by(self.decode).questions, [example])
            if self.is_chat:
                yield self._piece(index, "", None, role="assistant")
            if isinstance(question, Question) and self.decode.num_beams == 1 and self.run.streams:
                read += len(question.ids)
                async for text, tokens, finish in self._growing(question, example, request):
                    written += tokens
                    if text or finish:
                        yield self._piece(index, text, finish)
                continue
            [answer] = await self.run.answer([example], self.decode)
            _check_asked(answer)
            for place, (text, finish) in enumerate(self._hypotheses(answer)):
                yield self._piece(index * self.asked.n + place, text, None)
                yield self._piece(index * self.asked.n + place, "", finish)
            read, written = read + answer.num_read, written + answer.num_written
        if self.asked.stream_options and self.asked.stream_options.include_usage:
            counts = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
            yield {**self._piece(0, "", None), "choices": [], "usage": counts}

    async def _growing(
        self, question: Question, example: Example, request: Request
    ) -> AsyncIterator[tuple[str, int, str | None]]:
        """What is new in a greedy answer, tokens that it took, and at the end why it ends."""
        cutter, ids, end = Cutter(self.asked.stops), [], self.run.predictor.encoder.end
        with self.run.hearing(question, self.decode) as hear, _noticing(request) as gone:
            while True:
                coming = asyncio.ensure_future(hear())
                try:
                    await asyncio.wait((coming, gone), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    if not coming.done():
                        coming.cancel()
                if not coming.done():
                    raise Refusal(GONE, "the client hung up", "gone")
                token = coming.result()
                if token is None:
                    text = await self.run.desk.text(self.run.predictor.text_of, ids, example)
                    yield cutter.grow(text, last=True), 0, "stop" if ids[-1:] == [end] or cutter.is_over else "length"
                    return
                ids.append(token)
                text = await self.run.desk.text(self.run.predictor.text_of, self.run.settled(ids), example)
                new = cutter.grow(text)
                yield new, 1, "stop" if cutter.is_over else None
                if cutter.is_over:
                    return

    def _piece(self, index: int, text: str, finish: str | None, role: str | None = None) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "finish_reason": finish, "logprobs": None}
        if self.is_chat:
            choice["delta"] = ({"role": role} if role else {}) | ({"content": text} if text or role else {})
        else:
            choice["text"] = text
        kind = "chat.completion.chunk" if self.is_chat else self.head["object"]
        return {**self.head, "object": kind, "choices": [choice]}


@contextmanager
def _noticing(request: Request) -> Iterator[asyncio.Future[None]]:
    """What is done when the client hangs up."""
    gone = asyncio.ensure_future(hung_up(request.receive))
    try:
        yield gone
    finally:
        gone.cancel()


def _error(refusal: Refusal) -> bytes:
    return b"data: " + json.dumps(refusal.body()).encode() + b"\n\n"


def _check_asked(answer: Answered) -> None:
    """Refuse a request with an input that the model was not asked, and so did not answer."""
    if answer.question is None:
        status = answer.prediction.status
        code = "context_length_exceeded" if status == "too_long" else status
        raise Refusal(400, f"input {answer.prediction.id} cannot be answered: {status.replace('_', ' ')}", code)


async def _respond(reply: _Reply, request: Request, limits: Limits) -> Response:
    if not reply.asked.stream:
        return await within(request, limits.seconds, reply.whole())
    if reply.asked.num_top is not None:
        raise Refusal(400, "logprobs come with whole answers: leave stream out", "unsupported_value", "logprobs")
    reply.run.desk.scheduler.check_room(len(reply.examples))  # while it can still be said with a status
    return StreamingResponse(reply.pieces(request, limits.seconds), media_type="text/event-stream")


def _conversation(asked: ChatRequest, run: Served, limits: Limits) -> Example:
    """The last message as input, and those before it as its context.

    Raises:
        Refusal: the run reads no conversations, or the last turn is not the user's.
    """
    *before, last = [(message.role, message.text) for message in asked.messages]
    odd = next((role for role, _ in (*before, last) if role not in ROLES), None)
    if odd is not None or last[0] != "user":
        wrong = f"a message of {odd!r}" if odd is not None else f"the last message is the {last[0]}'s"
        raise Refusal(400, f"{wrong}; roles are {', '.join(ROLES)}, and the user speaks last", param="messages")
    if before and run.predictor.template.opening is None:
        raise Refusal(
            400,
            f"{run.name!r} answers one input at a time: its template is no chat template, so send one message, the user's",
            "unsupported_value",
            "messages",
        )
    if sum(len(text) for _, text in (*before, last)) > limits.characters:
        raise Refusal(400, f"the messages may have {limits.characters:,} characters in all", param="messages")
    [example] = examples_of([last[1]], run.predictor.task.input, limits)
    return Example(example.id, example.input, None, example.fields, context=tuple(Turn(*turn) for turn in before))


def router(shelf: Shelf, limits: Limits) -> APIRouter:
    """The routes."""
    made = APIRouter()
    started = int(time.time())

    def described(name: str) -> dict[str, Any]:
        return {"id": shelf.find(name).name, "object": "model", "created": started, "owned_by": "seqtune"}

    @made.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The runs."""
        return {"object": "list", "data": [described(name) for name in shelf.runs]}

    @made.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """One run."""
        return described(name)

    @made.post("/v1/completions")
    async def completions(asked: CompletionRequest, request: Request) -> Response:
        """Answer prompts."""
        run = shelf.find(asked.model)
        prompts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
        examples = examples_of(list(prompts), run.predictor.task.input, limits)
        return await _respond(_Reply(asked, run, examples), request, limits)

    @made.post("/v1/chat/completions")
    async def chat(asked: ChatRequest, request: Request) -> Response:
        """Answer the last message of a conversation."""
        run = shelf.find(asked.model)
        return await _respond(_Reply(asked, run, [_conversation(asked, run, limits)]), request, limits)

    return made
