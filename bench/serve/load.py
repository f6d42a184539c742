"""Load on a server on this machine: so many clients that ask one after the other, or requests at a rate; prints JSON.

    python bench/serve/load.py http://127.0.0.1:8000 --inputs inputs.txt --clients 16 --seconds 20 --beams 5

A client of its own on raw sockets, because an HTTP library costs more than a small model's answer. Loopback only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from pathlib import Path
from urllib.parse import urlsplit

import psutil

BODIES = {
    "seqtune": ("/v1/predict", lambda text, o: {"inputs": text, "num_beams": o.beams, "num_return": 1}),
    "litserve": ("/predict", lambda text, o: {"text": text}),
    "openai": ("/v1/completions", lambda text, o: {"model": o.model, "prompt": text, "max_tokens": o.new, "temperature": 0}),
}


class Connection:
    """One keep-alive connection."""

    def __init__(self, host: str, port: int):
        self.host, self.port, self.reader, self.writer = host, port, None, None

    async def ask(self, path: str, body: bytes) -> int:
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection(self.host, self.port)
        head = f"POST {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.writer.write(head.encode() + body)
        header = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        status = int(header.split()[1])
        if "content-length:" in header:
            await self.reader.readexactly(int(header.split("content-length:")[1].split("\r\n")[0]))
        else:
            while size := int(await self.reader.readline(), 16):
                await self.reader.readexactly(size + 2)
            await self.reader.readline()
        if "connection: close" in header:
            self.writer.close()
            self.writer = None
        return status


def processor_seconds(pid: int | None) -> float:
    """What a process and its children have used; on a machine that others use too, it says more than the clock."""
    if pid is None:
        return 0.0
    first = psutil.Process(pid)
    times = [p.cpu_times() for p in (first, *first.children(recursive=True))]
    return sum(t.user + t.system for t in times)


async def measure(options: argparse.Namespace) -> dict[str, object]:
    address = urlsplit(options.url)
    assert address.hostname in ("127.0.0.1", "localhost"), "this machine only"
    path, body = BODIES[options.kind]
    texts = Path(options.inputs).read_text().splitlines()
    rng, seconds, statuses = random.Random(0), [], {}
    end = time.monotonic() + options.seconds
    free: list[Connection] = []

    async def one(connection: Connection, due: float) -> None:
        status = await connection.ask(path, json.dumps(body(rng.choice(texts), options)).encode())
        statuses[status] = statuses.get(status, 0) + 1
        seconds.append(time.monotonic() - due)

    async def client() -> None:
        connection = Connection(address.hostname, address.port)
        while time.monotonic() < end:
            await one(connection, time.monotonic())

    async def visitor(due: float) -> None:
        connection = free.pop() if free else Connection(address.hostname, address.port)
        await one(connection, due)
        free.append(connection)

    started, used = time.monotonic(), processor_seconds(options.pid)
    if options.rate:  # as they come: exponential gaps, whatever the server does
        tasks, due = [], time.monotonic()
        while due < end:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tasks.append(asyncio.create_task(visitor(due)))
            due += rng.expovariate(options.rate)
        await asyncio.gather(*tasks)
    else:
        await asyncio.gather(*(client() for _ in range(options.clients)))
    spent, ordered = time.monotonic() - started, sorted(seconds)
    ranks = {f"p{q}_ms": round(1000 * ordered[min(len(ordered) - 1, int(q / 100 * len(ordered)))], 1) for q in (50, 95, 99)}
    return {
        "kind": options.kind, "clients": options.clients, "rate": options.rate, "beams": options.beams, "requests": len(seconds),
        "statuses": statuses, "per_second": round(len(seconds) / spent, 2), **ranks,
        "cpu_ms_per_request": round(1000 * (processor_seconds(options.pid) - used) / len(seconds), 1),
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--kind", choices=list(BODIES), default="seqtune")
    parser.add_argument("--inputs", required=True)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--rate", type=float, help="requests a second, instead of clients")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--beams", type=int, default=1)
    parser.add_argument("--pid", type=int, help="the server's process: tells what a request costs")
    parser.add_argument("--model", default="")
    parser.add_argument("--new", type=int, default=64)
    print(json.dumps(asyncio.run(measure(parser.parse_args()))))
