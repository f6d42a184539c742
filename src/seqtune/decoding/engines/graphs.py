"""Steps of decoding as CUDA graphs: hundreds of small kernels are launched at once, from buffers that stay where they are.

A graph has fixed shapes, so rows and slots are rounded up. Rows beyond the active ones compute what nobody looks at, and write
to their first slots, which are overwritten when an input enters. Shapes that come for the first time are captured.

Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs. Not measured: no GPU was at hand. On CPUs the tests
run the same code with a graph that computes the step again.

Shapes: B active rows, R rows of the graph, K beams, S slots that it sees, D width.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch

from seqtune.decoding.engines.forwards import Described, Seen
from seqtune.decoding.engines.slot_cache import PromptPass, SlotCache, TokenPass

SLOTS = 64  # to a multiple of which what is seen is rounded up

# what a step computes -> how it is done again, and where its result then lies
Capture = Callable[[Callable[[], torch.Tensor]], tuple[Callable[[], object], torch.Tensor]]

_one_at_a_time = threading.Lock()  # as torch asks


class CudaGraphs:
    """Captures steps, in memory that they share: the result of each is used before the next one is taken."""

    def __init__(self) -> None:
        self.pool: Any = None

    def __call__(self, step: Callable[[], torch.Tensor]) -> tuple[Callable[[], object], torch.Tensor]:
        """The graph of a step."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries choose their kernels in a first call, which cannot be captured
            step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # other threads may load a model meanwhile
        with _one_at_a_time, torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            result = step()
        self.pool = graph.pool()
        return graph.replay, result


class _Step:
    """One shape's graph, with the buffers that it reads and the one that it writes."""

    def __init__(self, forward: Described, cache: SlotCache, seen: Seen, shape: tuple[int, int, int], capture: Capture):
        rows, beams, slots = shape
        device = seen.mask_B1KS.device
        whole = {"dtype": torch.long, "device": device}
        self.ids_RK = torch.zeros(rows, beams, **whole)
        self.idle_RK = (torch.arange(rows, **whole) * cache.num_slots)[:, None].expand(-1, beams)  # each row's first slot
        self.flat_RK = self.idle_RK.clone()
        self.places_RS, self.place_R1 = torch.zeros(rows, slots, **whole), torch.zeros(rows, 1, **whole)
        self.mask_R1KS = torch.full((rows, 1, beams, slots), -math.inf, dtype=seen.mask_B1KS.dtype, device=device)
        self.angles = forward.blocks.angles_PW  # must live as long as what reads it

        def step() -> torch.Tensor:
            into = TokenPass(cache, self.flat_RK.flatten(), rows, slots)
            return forward.write(self.ids_RK, Seen(self.mask_R1KS, self.places_RS, self.place_R1), into)

        self.graph: tuple[Callable[[], object], torch.Tensor] | None = None
        self.make_graph: Callable[[], Any] | None = lambda: capture(step)

    def __call__(self, ids_BK: torch.Tensor, flat_BK: torch.Tensor, seen: Seen) -> torch.Tensor:
        """The step with these inputs [B, K, D]; what is returned is overwritten by the next one."""
        rows, width = len(ids_BK), seen.places_BS.size(1)
        self.ids_RK[:rows], self.flat_RK[:rows], self.flat_RK[rows:] = ids_BK, flat_BK, self.idle_RK[rows:]
        self.place_R1[:rows], self.place_R1[rows:], self.places_RS[:rows, :width] = seen.place_BK, 0, seen.places_BS
        self.mask_R1KS.fill_(-math.inf)
        self.mask_R1KS[:rows, ..., :width] = seen.mask_B1KS
        self.mask_R1KS[rows:, ..., 0] = 0.0  # attention to nothing is undefined
        if self.make_graph:  # what is captured is also computed, and so with inputs that count
            self.graph, self.make_graph = self.make_graph(), None  # which held on to the cache
        assert self.graph is not None
        again, hidden_RKD = self.graph
        again()
        return hidden_RKD[:rows]


class Graphed:
    """A `Forward` whose steps are graphs; prompts are read as they come.

    Args:
        forward: is run.
        capture: makes the graph of a step; default: CUDA.

    Example:
        forward = Graphed(Described(blocks)) if model.device.type == "cuda" else Described(blocks)
    """

    takes_our_masks = True

    def __init__(self, forward: Described, capture: Capture | None = None):
        self.forward, self.capture = forward, capture or CudaGraphs()
        # a cache's graphs, for as long as its keys and values stay where they are
        self.steps: WeakKeyDictionary[SlotCache, tuple[ref[torch.Tensor], dict[Any, _Step]]] = WeakKeyDictionary()

    def head(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """See `Forward.head`."""
        return self.forward.head(hidden_ND)

    def read(self, ids_NT: torch.Tensor, cache: PromptPass, wanted_M: torch.Tensor) -> torch.Tensor:
        """See `Forward.read`."""
        return self.forward.read(ids_NT, cache, wanted_M)

    def write(self, ids_BK: torch.Tensor, seen: Seen, cache: TokenPass, wanted_M: torch.Tensor | None = None) -> torch.Tensor:
        """See `Forward.write`; each row's tokens stand at one place, and all are wanted."""
        assert wanted_M is None
        slots = cache.cache
        rows = min(slots.num_rows, 1 << (len(ids_BK) - 1).bit_length())
        shape = (rows, ids_BK.size(1), min(slots.num_slots, -(-cache.num_seen // SLOTS) * SLOTS))
        store, steps = self.steps.get(slots, (None, {}))
        if store is None or store() is not slots.stores[0]:
            steps = {}
            self.steps[slots] = ref(slots.stores[0]), steps
        if shape not in steps:
            self.forward.blocks.reach(slots.num_slots)
            steps[shape] = _Step(self.forward, slots, seen, shape, self.capture)
        return steps[shape](ids_BK, cache.flat_N.view(ids_BK.shape), seen)
