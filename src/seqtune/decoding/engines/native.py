"""Our decoding engine: a model run in our own way (`forwards`), step by step (`decoder`), over an open batch (`stream`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from seqtune.decoding.engines.frozen import FrozenModel
from seqtune.decoding.engines.stream import Listener, Stream
from seqtune.records import Candidate
from seqtune.sections import DecodeConfig


class NativeEngine:
    """Greedy and beam search with shared prompts; see the modules named above.

    Args:
        frozen: a model that fits (`seqtune.decoding.engines.exactness`).
        end: end token.
        config: the `decode` section.
    """

    def __init__(self, frozen: FrozenModel, end: int, config: DecodeConfig):
        self.frozen, self.end, self.config = frozen, end, config

    @torch.inference_mode()
    def generate(
        self, sources: Sequence[np.ndarray], limits: Sequence[int], listeners: Sequence[Listener] = ()
    ) -> Iterator[tuple[int, list[Candidate]]]:
        """See `Engine.generate`; the longest inputs come first, and are answered as they finish.

        Args:
            sources: prompt token ids, each [T].
            limits: the most tokens of each.
            listeners: with one beam, one of each: is told its tokens, and may end it (see `Stream.add`).
        """
        with self.frozen.forward() as forward:
            stream = Stream(self.frozen.model, forward, self.end, self.config)
            for rank, index in enumerate(sorted(range(len(sources)), key=lambda i: -len(sources[i]))):
                stream.add(index, sources[index], limits[index], rank, listeners[index] if listeners else None)
            while not stream.is_idle:
                for index, candidates in stream.step():
                    yield index, candidates[: self.config.num_return]
