"""One thread decodes for all requests: it takes a step in each stream in turn, so that none holds up another for long."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from seqtune.decoding.engines.choices import ChoiceEngine
from seqtune.decoding.engines.native import NativeEngine
from seqtune.decoding.engines.stream import Listener, Stream
from seqtune.decoding.predictor import Predictor
from seqtune.records import Candidate
from seqtune.sections import DecodeConfig
from seqtune.serving.measures import Measures
from seqtune.serving.refusals import Refusal

T = TypeVar("T")
REMEMBERED = 256  # finished inputs that tell how fast the work goes
LONGEST_RETRY = 600.0  # seconds


class Loaded:
    """The model that a predictor's engine runs, laid out for decoding as long as this lives.

    Args:
        predictor: its engine is one of ours.
    """

    def __init__(self, predictor: Predictor):
        engine = predictor.engine
        assert isinstance(engine, NativeEngine | ChoiceEngine)
        self.model, self.end = engine.frozen.model, predictor.encoder.end
        self._open = ExitStack()
        with torch.inference_mode():
            self.forward = self._open.enter_context(engine.frozen.forward())


@dataclass(frozen=True, slots=True)
class Asked:
    """One input for the scheduler; `heard` is called in its thread with each token of a greedy answer."""

    source: np.ndarray
    limit: int
    heard: Listener | None = None


@dataclass(slots=True)
class _Lane:
    """A stream, and who waits for what it finds."""

    loaded: Loaded
    stream: Stream
    futures: dict[int, Future[list[Candidate]]]


@dataclass(frozen=True, slots=True)
class _Arrival:
    name: int
    lane: tuple[int, int, float]
    loaded: Loaded
    decode: DecodeConfig
    asked: Asked
    rank: int
    future: Future[list[Candidate]]


@dataclass(frozen=True, slots=True)
class _Call:
    """A function for the thread that decodes, which answers so many inputs."""

    function: Callable[[], Any]
    num_inputs: int
    future: Future[Any]

    def __call__(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            self.future.set_result(self.function())
        except Exception as error:
            self.future.set_exception(error)


class Scheduler:
    """Decodes what requests submit.

    Inputs of one request wait behind one another, those of several requests beside one another: the second input of a long
    request does not come before the first one of a short request that is there.

    Args:
        most_waiting: inputs that may wait; more are refused.
        measures: are kept up to date.

    Example:
        scheduler = Scheduler(1024, Measures())
        scheduler.start()
        [future] = scheduler.submit(Loaded(predictor), DecodeConfig(num_beams=5), [Asked(source, limit=40)])
        future.result()   # candidates; future.cancel() frees the row
    """

    def __init__(self, most_waiting: int, measures: Measures):
        self.most_waiting, self.measures = most_waiting, measures
        self._wake = threading.Condition()
        self._arrivals: list[_Arrival] = []
        self._calls: deque[_Call] = deque()
        self._cancelled: deque[tuple[tuple[int, int, float], int]] = deque()
        self._lanes: dict[tuple[int, int, float], _Lane] = {}
        self._names = itertools.count()
        self._finished: deque[float] = deque(maxlen=REMEMBERED)
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)

    def start(self) -> None:
        """Begin to decode."""
        self._thread.start()

    def close(self) -> None:
        """End when everything that was submitted is answered."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    @property
    def num_waiting(self) -> int:
        """Inputs that are not being decoded yet."""
        with self._wake:
            called = sum(call.num_inputs for call in list(self._calls))
            return called + len(self._arrivals) + sum(lane.stream.num_waiting for lane in self._lanes.values())

    @property
    def num_active(self) -> int:
        """Inputs that are being decoded."""
        with self._wake:
            return sum(lane.stream.num_active for lane in self._lanes.values())

    def retry_after(self) -> float:
        """Seconds until what waits now is done, by the speed of the last inputs; 1 where none is known."""
        finished = list(self._finished)
        if len(finished) < 2:
            return 1.0
        seconds = max(1e-3, time.monotonic() - finished[0])
        return min(LONGEST_RETRY, max(1.0, self.num_waiting * seconds / len(finished)))

    def check_room(self, number: int) -> None:
        """See that so many inputs may wait.

        Raises:
            Refusal: the queue is full.
        """
        waiting = self.num_waiting
        if waiting + number > self.most_waiting:
            raise Refusal(
                429,
                f"{waiting} inputs are waiting and this request brings {number}; the queue holds {self.most_waiting}: "
                "try again later",
                "queue_full",
                retry_after=self.retry_after(),
            )

    def submit(self, loaded: Loaded, decode: DecodeConfig, inputs: Sequence[Asked]) -> list[Future[list[Candidate]]]:
        """Have inputs decoded: all of them, or none if the queue has no room for them.

        Args:
            loaded: the model.
            decode: beams, length penalty and token budget; candidates are as many as beams.
            inputs: of one request.

        Returns:
            A future each; cancelling it frees the input's row.

        Raises:
            Refusal: the queue is full.
        """
        self.check_room(len(inputs))
        penalty = decode.length_penalty if decode.num_beams > 1 else 1.0
        lane, futures = (id(loaded), decode.num_beams, penalty), [Future() for _ in inputs]
        arrivals = [
            _Arrival(next(self._names), lane, loaded, decode, asked, rank, future)
            for rank, (asked, future) in enumerate(zip(inputs, futures, strict=True))
        ]
        with self._wake:
            self._arrivals += arrivals
            self._wake.notify()
        for arrival in arrivals:
            arrival.future.add_done_callback(lambda future, a=arrival: self._note_cancelled(future, a))
        return futures

    def call(self, function: Callable[[], T], num_inputs: int = 0) -> Future[T]:
        """Have a function called between two steps, by the thread that decodes: it may use a model.

        Args:
            function: takes no longer than a few steps.
            num_inputs: that it answers; they count as waiting until it is called.

        Raises:
            Refusal: the queue is full.
        """
        if num_inputs:
            self.check_room(num_inputs)
        future: Future[T] = Future()
        with self._wake:
            self._calls.append(_Call(function, num_inputs, future))
            self._wake.notify()
        return future

    def _note_cancelled(self, future: Future[Any], arrival: _Arrival) -> None:
        if future.cancelled():
            self._cancelled.append((arrival.lane, arrival.name))

    def _run(self) -> None:
        with torch.inference_mode():
            while self._admit():
                self._drop_cancelled()
                if self._calls:  # one, and then a step of each stream
                    self._calls.popleft()()
                for key, lane in list(self._lanes.items()):
                    self._step(key, lane)

    def _admit(self) -> bool:
        """Wait for work and take in what has arrived; false at the end."""
        with self._wake:
            while not (self._arrivals or self._lanes or self._calls):
                if self._closing:
                    return False
                self._finished.clear()  # idle time says nothing about speed
                self._wake.wait()
            for arrival in self._arrivals:
                if arrival.future.cancelled():
                    continue
                lane = self._lanes.get(arrival.lane)
                if lane is None:
                    stream = Stream(arrival.loaded.model, arrival.loaded.forward, arrival.loaded.end, arrival.decode)
                    lane = self._lanes[arrival.lane] = _Lane(arrival.loaded, stream, {})
                lane.futures[arrival.name] = arrival.future
                asked = arrival.asked
                lane.stream.add(arrival.name, asked.source, asked.limit, lane.stream.clock + arrival.rank, asked.heard)
            self._arrivals.clear()
        return True

    def _drop_cancelled(self) -> None:
        while self._cancelled:
            key, name = self._cancelled.popleft()
            lane = self._lanes.get(key)
            if lane is not None and lane.futures.pop(name, None) is not None:
                lane.stream.remove(name)
                self.measures.cancelled.inc()

    def _step(self, key: tuple[int, int, float], lane: _Lane) -> None:
        """One step of a stream; what it finds goes to those who wait for it."""
        try:
            found = lane.stream.step()
        except Exception as error:
            for future in lane.futures.values():
                if future.set_running_or_notify_cancel():
                    future.set_exception(error)
            self._close(key)
            return
        self.measures.batch.observe(lane.stream.num_active + len(found))
        for name, candidates in found:
            self._finished.append(time.monotonic())
            future = lane.futures.pop(name)
            if future.set_running_or_notify_cancel():  # else it was cancelled just now
                future.set_result(candidates)
        if lane.stream.is_idle:
            self._close(key)

    def _close(self, key: tuple[int, int, float]) -> None:
        """Forget a stream, and with it the memory of its keys and values."""
        with self._wake:
            del self._lanes[key]
