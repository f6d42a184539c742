"""The way into a Ray cluster; the only module beside its users that imports Ray."""

from __future__ import annotations

import socket

import ray

from seqtune.errors import RunError

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
        ray.init(address=None if address == "local" else address, ignore_reinit_error=True, log_to_driver=False)
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(f"no Ray cluster answers at {address!r} ({reason}); give host:port, auto, or local") from None
