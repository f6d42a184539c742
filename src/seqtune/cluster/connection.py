"""The way into a Ray cluster, and what its workers need before they can work."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path

import ray
from ray.exceptions import RayError, RayTaskError

from seqtune.errors import RunError, SeqtuneError

CONNECT_SECONDS = 5.0  # Ray itself would knock for many minutes


def connect(address: str) -> None:
    """Enter a cluster, or start one on this machine.

    Args:
        address: `host:port`, `ray://host:port`, `auto`, or `local` for one on this machine.

    Raises:
        RunError: nothing answers there.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if port.isdigit():
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        where = None if address == "local" else address
        ray.init(address=where, ignore_reinit_error=True, log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(f"no Ray cluster answers at {address!r} ({reason}); give host:port, auto, or local") from None


def settle(folder: Path, marker: Path) -> None:
    """In a worker: be where the driver is.

    Args:
        folder: the driver's working folder.
        marker: a file by which the worker sees that it shares the driver's file system.

    Raises:
        RunError: it does not.
    """
    if not marker.exists():
        raise RunError(
            f"{socket.gethostname()} does not see {marker}; --ray needs a file system that all machines of the cluster share, "
            "with the folders and the data of this command on it"
        )
    os.chdir(folder)


def explained(error: RayError, work: str) -> SeqtuneError:
    """What went wrong on a cluster: the worker's own error if the user can put it right, else that work was lost."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, SeqtuneError) and not isinstance(cause, RayError):
            return cause
        cause = cause.cause if isinstance(cause, RayTaskError) else cause.__cause__
    return RunError(f"the Ray cluster lost {work}: {str(error).strip().splitlines()[-1]}")
