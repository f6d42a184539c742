"""Reckons the memory and the time of a training before there is a machine for it; docs/planning.md says how.

    python docs/plan_training.py opt hidden_size=2048 ffn_dim=8192 num_hidden_layers=24 num_attention_heads=32 \
        vocab_size=50272 word_embed_proj_dim=2048 --processes 8 --rows 16 --length 512 --precision bf16 \
        --flops 400e12 --bandwidth 3e12 --link 300e9

The model is made of fake tensors, which have shapes and no storage, and takes one step: our own loss, forward and backward.
Every operation on the way is noted, with what it allocates, what is freed, the bytes it reads and writes, and its products.
"""

from __future__ import annotations

import argparse
import ast
import json
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from seqtune.models import loss as losses
from seqtune.records import Batch

FLOAT = 4  # bytes of a weight, of its gradient and of each of AdamW's two moments; bf16 is for products only
OPTIMIZER_TRAFFIC = 7 * FLOAT  # AdamW reads weight, gradient and moments, and writes weight and moments
ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"
ATTENTION_PRODUCTS = {"": 2, "_backward": 5}  # the backward pass makes the scores again


@dataclass
class Step:
    """What one process does in one step, as fake tensors show it.

    Attributes:
        allocated: (storage, bytes) of every allocation, and (storage, -bytes) of every release, in order.
        work: (floating-point operations, bytes read and written) of every operation.
        gradients: the storages that are gradients of weights in the end.
    """

    allocated: list[tuple[int, int]] = field(default_factory=list)
    work: list[tuple[float, int]] = field(default_factory=list)
    gradients: set[int] = field(default_factory=set)


class _Notes(TorchDispatchMode):
    """Notes operations; storages that are there before it begins do not count."""

    def __init__(self, step: Step, known: Iterator[torch.Tensor]):
        super().__init__()
        self.step = step
        self.number = weakref.WeakKeyDictionary((t.untyped_storage(), -1) for t in known)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        results = [t for t in tree_leaves(made) if isinstance(t, torch.Tensor)]
        moved = sum(t.numel() * t.element_size() for t in [*given, *results])
        is_view = all(t.untyped_storage() in self.number for t in results) and not func._schema.is_mutable
        self.step.work.append((_operations(func, args, kwargs or {}, made), 0 if is_view else moved))
        for tensor in results:
            self._note(tensor.untyped_storage())
        return made

    def _note(self, storage: Any) -> None:
        if storage in self.number:
            return
        number, size = len(self.step.allocated), storage.nbytes()
        self.number[storage] = number
        self.step.allocated.append((number, size))
        weakref.finalize(storage, self.step.allocated.append, (number, -size))


def _operations(func: Any, args: Any, kwargs: Any, made: Any) -> float:
    """Floating-point operations of matrix products; all others count as their bytes alone."""
    name = func._overloadpacket.__name__
    if name.startswith(ATTENTION):
        query, key = (args[1], args[2]) if name.endswith("_backward") else args[:2]
        return 2.0 * ATTENTION_PRODUCTS[name.removeprefix(ATTENTION)] * query.numel() * key.size(-2)
    count = flop_registry.get(func._overloadpacket)
    return float(count(*args, **kwargs, out_val=made)) if count else 0.0


def model_of(kind: str, settings: dict[str, Any]) -> PreTrainedModel:
    """A family's model with weights that have shapes and no values; call it within a `FakeTensorMode`."""
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings))


def take_step(
    model: PreTrainedModel, rows: int, length: int, share: float, dtype: torch.dtype, *, on_cpu: bool = False
) -> Step:
    """One step on a batch of `rows` x `length` tokens, a share of which carries loss.

    Args:
        model: of `model_of`, in the same `FakeTensorMode`.
        rows: of one process.
        length: tokens of a row.
        share: of the tokens that carry loss.
        dtype: of the products.
        on_cpu: as training there goes, past the family's modules where it is whole in each process.
    """
    loss = losses.TargetLoss.__new__(losses.TargetLoss)  # whose constructor would look at values
    torch.nn.Module.__init__(loss)
    loss.model, loss.backbone_is_exact = model, True
    loss.blocks = losses.blocks_to_train(model) if on_cpu else None
    model.train()
    ids, positions = torch.zeros(rows, length, dtype=torch.int64), torch.arange(max(1, round(share * rows * length)))
    batch = Batch(ids, positions, torch.zeros_like(positions), rows * length)
    step = Step()
    notes = _Notes(step, iter([*model.parameters(), *model.buffers(), ids, positions, batch.targets_N]))
    with notes, torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        loss(batch).backward()
    step.gradients = {notes.number[p.grad.untyped_storage()] for p in model.parameters() if p.grad is not None}
    return step


def memory(model: PreTrainedModel, step: Step, processes: int, parallel: str) -> dict[str, float]:
    """Bytes that one process holds, and the most at once; nothing but tensors.

    `ddp` keeps gradients a second time in the buckets that it exchanges. `fsdp` keeps a share of everything, and whole the
    parameters outside the blocks with their gradients, and two blocks with the gradients of one.
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    every = sum(p.numel() for p in model.parameters())
    names = set(model._no_split_modules or ())
    blocks = [sum(p.numel() for p in m.parameters()) for m in model.modules() if type(m).__name__ in names]
    sharded = parallel == "fsdp" and processes > 1
    part = 1 / processes if sharded else 1.0
    extra = 0.0
    if sharded:
        extra = FLOAT * (2 * (every - sum(blocks)) + 3 * max(blocks))
    elif processes > 1:
        extra = FLOAT * trained
    held = {"weights": FLOAT * every * part, "optimizer": 2 * FLOAT * trained * part, "to share": extra}
    activations = gradients = 0
    most = (0.0, 0, 0)
    for number, size in step.allocated:
        if number in step.gradients:
            gradients += size
        else:
            activations += size
        most = max(most, (activations + part * gradients, activations, gradients))
    at_most = {"gradients at the peak": part * most[2], "activations at the peak": float(most[1])}
    return held | at_most | {"gradients": FLOAT * trained * part, "peak": sum(held.values()) + most[0]}


@dataclass(frozen=True)
class Machine:
    """What a process has, all in units a second.

    Attributes:
        flops: floating-point operations of matrix products.
        bandwidth: bytes of its memory.
        link: bytes between processes, one way.
    """

    flops: float
    bandwidth: float
    link: float


def seconds(model: PreTrainedModel, step: Step, machine: Machine, processes: int, parallel: str) -> dict[str, float]:
    """The least time of a step (the roofline): each operation takes the longer of its products and its bytes.

    What goes between processes is hidden behind the computing where that takes longer: weights are gathered twice and gradients
    scattered once (`fsdp`), or gradients summed, which is a scatter and a gather (`ddp`).
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    every = sum(p.numel() for p in model.parameters())
    sharded = parallel == "fsdp" and processes > 1
    computing = sum(max(operations / machine.flops, moved / machine.bandwidth) for operations, moved in step.work)
    updating = OPTIMIZER_TRAFFIC * trained / machine.bandwidth / (processes if sharded else 1)
    sent = FLOAT * (2 * every + trained if sharded else 2 * trained) * (processes - 1) / processes
    exchanging = sent / machine.link if processes > 1 else 0.0
    return {
        "floating-point operations": sum(operations for operations, _ in step.work),
        "computing": computing,
        "updating": updating,
        "exchanging": exchanging,
        "step": max(computing, exchanging) + updating,
    }


def main() -> None:
    """Read the command line and print the plan as JSON."""
    parser = argparse.ArgumentParser(description="Reckons the memory and the time of a training.")
    parser.add_argument("family", help="transformers' name for it, such as opt or llama")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="of its configuration")
    parser.add_argument("--processes", type=int, default=1, help="one a GPU")
    parser.add_argument("--parallel", choices=("ddp", "fsdp"), default="fsdp")
    parser.add_argument("--rows", type=int, default=16, help="of one process in a step")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row")
    parser.add_argument("--loss-share", type=float, default=0.5, help="share of the tokens that carry loss")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--cpu", action="store_true", help="train on CPUs, which hold fewer logits at once")
    parser.add_argument("--checkpointing", action="store_true", help="train.gradient_checkpointing")
    for name, what in (("flops", "operations"), ("bandwidth", "bytes of memory"), ("link", "bytes between processes")):
        parser.add_argument(f"--{name}", type=float, help=f"{what} a second; with all three the time is reckoned")
    asked = parser.parse_args()
    settings = {key: ast.literal_eval(value) for key, _, value in (text.partition("=") for text in asked.settings)}
    if not asked.cpu:
        losses.CHUNK_LOGITS = losses.GPU_CHUNK_LOGITS
    with FakeTensorMode():
        model = model_of(asked.family, settings)
        if asked.checkpointing:
            model.gradient_checkpointing_enable()
        dtype = torch.bfloat16 if asked.precision == "bf16" else torch.float32
        on_cpu = asked.cpu and (asked.parallel == "ddp" or asked.processes == 1)
        step = take_step(model, asked.rows, asked.length, asked.loss_share, dtype, on_cpu=on_cpu)
        found = memory(model, step, asked.processes, asked.parallel)
        plan: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters())}
        plan["GiB of each process"] = {name: round(size / 2**30, 2) for name, size in found.items()}
        if asked.flops and asked.bandwidth and asked.link:
            machine = Machine(asked.flops, asked.bandwidth, asked.link)
            times = seconds(model, step, machine, asked.processes, asked.parallel)
            plan["seconds at least"] = {name: float(f"{value:.3g}") for name, value in times.items()}
            tokens = asked.processes * asked.rows * asked.length
            plan["steps a second at most"] = float(f"{1 / times['step']:.3g}")
            plan["tokens a second at most"] = float(f"{tokens / times['step']:.3g}")
    print(json.dumps(plan, indent=2))


if __name__ == "__main__":
    main()
