"""A run that answers requests: the steps of `Predictor.predict`, with decoding left to the scheduler."""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from seqtune.decoding.predictor import Predictor, Question
from seqtune.records import Candidate, Example, Prediction
from seqtune.sections import DecodeConfig
from seqtune.serving.measures import Measures
from seqtune.serving.scheduler import Asked, Loaded, Scheduler

T = TypeVar("T")
BYTE = re.compile("<0x[0-9A-F]{2}>")  # a token that stands for one byte
PORTION = 16  # inputs of a task with a set of answers that are answered in one go
KNOWN_SEARCHES = 64  # settings for which a predictor is kept


class Desk:
    """Who does the work of all runs of a server: a thread each for decoding, for texts and for verification.

    Tokenizers and verifiers are used by one thread at a time; neither must wait for the other.

    Args:
        scheduler: decodes.
        measures: are kept up to date.
    """

    def __init__(self, scheduler: Scheduler, measures: Measures):
        self.scheduler, self.measures = scheduler, measures
        self._texts, self._checks = (ThreadPoolExecutor(1, thread_name_prefix=name) for name in ("texts", "checks"))

    async def text(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function that tokenizes or puts tokens into words."""
        return await asyncio.get_running_loop().run_in_executor(self._texts, function, *arguments)

    async def check(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function that verifies or draws."""
        return await asyncio.get_running_loop().run_in_executor(self._checks, function, *arguments)

    def close(self) -> None:
        """End the threads when they have done what they hold."""
        self._texts.shutdown()
        self._checks.shutdown()


@dataclass(frozen=True, slots=True)
class Answered:
    """What came of one example.

    Attributes:
        prediction: the same as `Predictor.predict` gives.
        question: what the model was asked; `None` if it was not.
        candidates: the tokens of the hypotheses, best first.
    """

    prediction: Prediction
    question: Question | None
    candidates: list[Candidate]

    @property
    def num_read(self) -> int:
        """Prompt tokens."""
        return 0 if self.question is None else len(self.question.ids)

    @property
    def num_written(self) -> int:
        """Tokens of all hypotheses."""
        return sum(len(c.ids) for c in self.candidates)


class Served:
    """A run under its name.

    Args:
        name: what requests call it.
        predictor: with the run's own settings.
        desk: does the work.
    """

    def __init__(self, name: str, predictor: Predictor, desk: Desk):
        self.name, self.predictor, self.desk = name, predictor, desk
        self.loaded = Loaded(predictor)
        words = predictor.encoder.tokenizer.get_vocab()
        self._bytes = {token for word, token in words.items() if BYTE.fullmatch(word)}
        self._searches: OrderedDict[str, Predictor] = OrderedDict()

    @property
    def streams(self) -> bool:
        """An answer is what the model writes, from the first word on: nothing around it is taken away in the end."""
        predictor, chat = self.predictor, self.predictor.encoder.chat
        is_bare = predictor.template.target == "{output}" and not (chat and (chat.frame.lead + chat.frame.tail).strip())
        return is_bare and not predictor.task.answers

    def settled(self, ids: list[int]) -> list[int]:
        """The tokens whose text does not depend on those to come: without bytes at the end, if the tokenizer has such tokens.

        One that spells in bytes (Llama's kind) makes of a run of them what all of them say, or nothing that can be read.
        """
        last = next((place for place in range(len(ids), 0, -1) if ids[place - 1] not in self._bytes), 0)
        return ids[:last]

    def searching_by(self, decode: DecodeConfig) -> Predictor:
        """The predictor for a request's settings.

        Raises:
            ConfigError: the task has no verifier.
        """
        key = decode.model_dump_json()
        if key not in self._searches:
            self._searches[key] = self.predictor.searching_by(decode)
        self._searches.move_to_end(key)
        if len(self._searches) > KNOWN_SEARCHES:
            self._searches.popitem(last=False)
        return self._searches[key]

    async def answer(self, examples: Sequence[Example], decode: DecodeConfig) -> list[Answered]:
        """What `Predictor.predict` gives for these examples; when this is cancelled, their rows are free again.

        Raises:
            Refusal: the queue is full.
            DataError: an example lacks a column of the template.
        """
        predictor = self.searching_by(decode)
        asked = await self.desk.text(predictor.questions, list(examples))
        questions = [each for each in asked if isinstance(each, Question)]
        candidates = iter(await (self._chosen if predictor.task.answers else self._searched)(predictor, questions))
        found = [(q, next(candidates)[: predictor.num_candidates]) if isinstance(q, Question) else (q, []) for q in asked]
        predictions = await self.desk.text(_worded, predictor, found)
        if predictor.verifier is not None:  # else it would be one more change of threads
            predictions = await self.desk.check(predictor.verified, predictions)
        answers = [
            Answered(prediction, question if isinstance(question, Question) else None, these)
            for prediction, (question, these) in zip(predictions, found, strict=True)
        ]
        self._count(sum(a.num_read for a in answers), sum(a.num_written for a in answers))
        return answers

    async def _searched(self, predictor: Predictor, questions: list[Question]) -> list[list[Candidate]]:
        with self._submitted(predictor.decode, [Asked(q.ids, q.limit) for q in questions]) as futures:
            return await asyncio.gather(*map(asyncio.wrap_future, futures))

    async def _chosen(self, predictor: Predictor, questions: list[Question]) -> list[list[Candidate]]:
        """For a task with a set of answers, whose engine does not search: portion by portion, between the steps of others."""
        found: list[list[Candidate]] = []
        for first in range(0, len(questions), PORTION):
            some = questions[first : first + PORTION]

            def choose(some: list[Question] = some) -> list[list[Candidate]]:
                answers = dict(predictor.engine.generate([q.ids for q in some], [q.limit for q in some]))
                return [answers[i] for i in range(len(some))]

            found += await asyncio.wrap_future(self.desk.scheduler.call(choose, len(some)))
        return found

    @contextmanager
    def hearing(self, question: Question, decode: DecodeConfig) -> Iterator[Callable[[], Awaitable[int | None]]]:
        """A function that waits for the next token of a greedy answer, `None` at its end.

        The answer ends with the context, without waiting for anything: a client's hang-up cancels whoever would wait.

        Raises:
            Refusal: the queue is full.
        """
        assert decode.num_beams == 1
        loop, heard, number = asyncio.get_running_loop(), asyncio.Queue[int | None](), 0

        def tell(token: int | None) -> None:
            loop.call_soon_threadsafe(heard.put_nowait, token)

        async def hear() -> int | None:
            nonlocal number
            token = await heard.get()
            if token is None:
                future.result()  # raises what went wrong
                self._count(len(question.ids), number)
            number += 1
            return token

        with self._submitted(decode, [Asked(question.ids, question.limit, tell)]) as [future]:
            future.add_done_callback(lambda _: tell(None))
            yield hear

    async def log_probabilities(self, question: Question, candidates: Sequence[Candidate], num_top: int) -> list[Any]:
        """For each token of each answer its log-probability and the likeliest tokens; see `_log_probabilities`."""

        def read() -> list[Any]:
            return [_log_probabilities(self.loaded.model, question, c.ids, num_top) for c in candidates]

        return await asyncio.wrap_future(self.desk.scheduler.call(read))

    @contextmanager
    def _submitted(self, decode: DecodeConfig, inputs: list[Asked]):
        """Futures of inputs; whatever happens, none goes on when this is left."""
        futures: list[Future[list[Candidate]]] = self.desk.scheduler.submit(self.loaded, decode, inputs) if inputs else []
        try:
            yield futures
        finally:
            for future in futures:
                future.cancel()

    def _count(self, num_read: int, num_written: int) -> None:
        self.desk.measures.tokens.labels(self.name, "prompt").inc(num_read)
        self.desk.measures.tokens.labels(self.name, "completion").inc(num_written)


def _worded(predictor: Predictor, found: list[tuple[Any, list[Candidate]]]) -> list[Prediction]:
    return [predictor.answer(each, candidates) if isinstance(each, Question) else each for each, candidates in found]


def _log_probabilities(
    model: Any, question: Question, ids: list[int], num_top: int
) -> list[tuple[int, float, list[tuple[int, float]]]]:
    """Of each token: itself, its log-probability, and the likeliest tokens with theirs; by one forward over all of it."""
    text = torch.tensor([[*question.ids.tolist(), *ids]], device=model.device)
    logits_TV = model(input_ids=text, use_cache=False).logits[0, len(question.ids) - 1 : -1]
    log_probs_TV = logits_TV.float().log_softmax(-1)
    top = log_probs_TV.topk(max(1, num_top))
    own = log_probs_TV.gather(1, text[0, len(question.ids) :, None])[:, 0].tolist()
    rows = zip(ids, own, top.indices.tolist(), top.values.tolist(), strict=True)
    return [(token, value, list(zip(tokens, values, strict=True))[:num_top]) for token, value, tokens, values in rows]
