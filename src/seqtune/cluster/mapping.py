"""One function over many items on a Ray cluster, with the results in the items' order.

Source: https://docs.ray.io/en/latest/data/data.html.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import ray
import ray.data
from ray.exceptions import RayError

from seqtune.cluster.connection import connect, explained, settle

Make = Callable[..., Callable[[Any], pyarrow.Table]]


class _Worker:
    """A Ray actor: what `make` made, once for all of its items."""

    def __init__(self, make: Make, arguments: tuple[Any, ...], place: tuple[Path, Path]):
        settle(*place)
        self.work = make(*arguments)

    def __call__(self, items: pyarrow.Table) -> pyarrow.Table:
        [item] = items["item"].to_pylist()
        return self.work(item)


def mapped(
    make: Make,
    arguments: tuple[Any, ...],
    items: Sequence[Any],
    address: str,
    marker: Path,
    *,
    cpus: int = 1,
) -> Iterator[pyarrow.Table]:
    """Results of the items, in their order, as they come; a worker that dies is replaced, and its item done again.

    Args:
        make: makes the function, once in each worker; what it is made of stays there (a model, a Java machine).
        arguments: of `make`.
        items: whatever Arrow can hold, such as paths or numbers.
        address: of the cluster, or `local` for one on this machine.
        marker: a file by which a worker sees that it shares the file system.
        cpus: processors of a worker; all but one of the cluster's are used.

    Raises:
        RunError: there is no such cluster, it shares no file system, or it loses a worker again and again.
    """
    connect(address)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    num_cpus = int(ray.cluster_resources().get("CPU", 1))
    # one item a block: left to itself, Ray would put several into one
    given = ray.data.from_items([{"item": item} for item in items], override_num_blocks=len(items))
    done = given.map_batches(
        _Worker,
        fn_constructor_args=(make, arguments, (Path.cwd(), marker.resolve())),
        batch_format="pyarrow",
        batch_size=1,
        num_cpus=cpus,
        compute=ray.data.ActorPoolStrategy(size=max(1, (num_cpus - 1) // cpus)),  # one reads and sorts
    )
    try:
        yield from done.iter_batches(batch_format="pyarrow", batch_size=None)
    except RayError as error:
        raise explained(error, "a worker") from None
