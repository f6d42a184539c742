"""The server's process: a socket, signals, and an end at which nothing is lost."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn

from seqtune import progress
from seqtune.errors import ConfigError
from seqtune.serving.application import State, build
from seqtune.serving.gate import is_loopback
from seqtune.serving.limits import Limits
from seqtune.serving.measures import Measures
from seqtune.serving.scheduler import Scheduler
from seqtune.serving.served import Desk
from seqtune.serving.shelf import Shelf

SHORTEST_TOKEN = 16  # characters
GRACE = 5.0  # seconds beyond a request's limit, after which the end is not put off any longer


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens, and who may ask it.

    Attributes:
        host: name or address; other than loopback it needs a token.
        port: 0 for any that is free.
        token: what requests must bring; `None` for nothing.
        origins: pages of other origins that may ask.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    origins: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not is_loopback(self.host) and self.token is None:
            raise ConfigError(
                f"--host {self.host}: a server that others can reach needs --token-file FILE, whose token requests then bring "
                "(Authorization: Bearer TOKEN); for this machine alone, leave --host out"
            )


def read_token(file: Path) -> str:
    """The token in a file, blanks around it left out.

    Raises:
        ConfigError: there is no such file, or its text is too short, or no single word of ASCII.
    """
    try:
        token = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token-file {str(file)!r} cannot be read: {type(error).__name__}") from None
    if len(token) < SHORTEST_TOKEN or len(token.split()) != 1:
        raise ConfigError(
            f"--token-file {str(file)!r} must hold one word of at least {SHORTEST_TOKEN} characters, for instance of "
            "`openssl rand -hex 32`"
        )
    return token


def serve(paths: Mapping[str, str], address: Address, limits: Limits, tell: Callable[[str, list[str]], None]) -> None:
    """Serve runs until SIGTERM or SIGINT; what was taken on is finished then. SIGHUP loads anew what has changed.

    Args:
        paths: name -> run.
        address: where to listen.
        limits: what is taken on.
        tell: is told the server's URL and its runs when it listens.

    Raises:
        ConfigError: the port is taken.
        SeqtuneError: a run cannot be served.
    """
    listening = _listen(address)
    measures = Measures()
    scheduler = Scheduler(limits.queue, measures)
    desk = Desk(scheduler, measures)
    shelf = Shelf(paths, desk)
    try:
        shelf.load()
        scheduler.start()
        state = State()
        app = build(shelf, limits, measures, state, address.token, address.origins)
        settings = uvicorn.Config(
            app, access_log=False, log_level="warning", server_header=False, proxy_headers=False, lifespan="on",
            limit_concurrency=limits.connections, timeout_graceful_shutdown=int(limits.seconds + GRACE),
            timeout_keep_alive=15, h11_max_incomplete_event_size=2**15,
        )  # fmt: skip
        host = f"[{address.host}]" if ":" in address.host else address.host
        tell(f"http://{host}:{listening.getsockname()[1]}", list(shelf.runs))
        _Server(settings, state, shelf).run(sockets=[listening])
        scheduler.close()
    finally:
        listening.close()
        desk.close()


def _listen(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    # the protocol by its number: asyncio sends without delay (TCP_NODELAY) on those sockets alone that say they are TCP, and an
    # answer's second part would wait 40 ms for the client's word that the first has arrived
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((address.host, address.port))
    except OSError as error:
        made.close()
        raise ConfigError(
            f"{address.host}:{address.port} cannot be listened on ({error.strerror}); choose another --port, or 0 for any"
        ) from None
    made.listen(2048)  # else those who come while a run is loaded anew could be turned away
    return made


class _Server(uvicorn.Server):
    """uvicorn with our answers to signals: its own would end the process by the signal, not with 0."""

    def __init__(self, settings: uvicorn.Config, state: State, shelf: Shelf):
        super().__init__(settings)
        self.state, self.shelf, self.reloading = state, shelf, threading.Lock()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()

        def drain(number: int, _: FrameType | None) -> None:
            loop.call_soon_threadsafe(self._drain, number)

        def reload(number: int, _: FrameType | None) -> None:
            threading.Thread(target=self._reload, name="reloading", daemon=True).start()

        handlers = {signal.SIGTERM: drain, signal.SIGINT: drain}
        if hasattr(signal, "SIGHUP"):
            handlers[signal.SIGHUP] = reload
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _drain(self, number: int) -> None:
        if self.state.draining and number == signal.SIGINT:  # Ctrl-C once more
            self.force_exit = True
        self.state.draining = self.should_exit = True

    def _reload(self) -> None:
        with self.reloading:  # a signal that comes meanwhile is answered after this
            progress.console().print(f"loaded anew: {', '.join(self.shelf.reload()) or 'nothing has changed'}", markup=False)
