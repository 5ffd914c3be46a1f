"""The load: `wrk` where it is installed, otherwise keep-alive clients of our own.

The fallback is Python and therefore slower than the fast peers: it squeezes their ratios together.
The report names the generator; numbers of one must not be compared with those of the other.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import subprocess
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import httptools

SCRIPT = Path(__file__).with_name("load.lua")


@dataclass(frozen=True)
class Load:
    """What to ask for.

    Attributes:
        keys: if there are any, a random key from 1 to this is appended to the URL.
        etag: what clients have already, if they do; the answer is 304 then.
    """

    url: str
    clients: int
    seconds: int
    keys: int = 0
    etag: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What came back: good answers, these a second, everything else, and latencies in milliseconds."""

    answers: int
    rate: float
    errors: int
    p50: float
    p99: float


def generator() -> str:
    """Name the generator that `measure` uses here."""
    return "wrk" if shutil.which("wrk") else "asyncio"


def measure(load: Load) -> Outcome:
    """Run the load and wait for its end."""
    return wrk(load) if generator() == "wrk" else asyncio.run(clients(load))


def wrk(load: Load) -> Outcome:
    """Run `wrk` with one thread; a slow answer is slow, not an error."""
    command = f"wrk -t1 -c{load.clients} -d{load.seconds}s --timeout 60s -s".split()
    command += [str(SCRIPT), load.url, "--", str(load.keys), *([load.etag] if load.etag else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seen = json.loads(done.stdout.splitlines()[-1])
    answers = seen["requests"] - seen["bad"]
    return Outcome(
        answers=answers,
        rate=answers / seen["seconds"],
        errors=seen["bad"] + seen["broken"],
        p50=seen["p50"],
        p99=seen["p99"],
    )


class Client(asyncio.Protocol):
    """One keep-alive connection that asks again as soon as it is answered."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.latencies: list[float] = []
        self.errors = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start asking."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        """Send the next request."""
        url = urlsplit(self.load.url)
        key = random.randint(1, self.load.keys) if self.load.keys else ""
        self.parser = httptools.HttpResponseParser(self)
        self.started = time.perf_counter()
        path = url._replace(scheme="", netloc="").geturl()
        held = f"If-None-Match: {self.load.etag}\r\n" if self.load.etag else ""
        head = f"GET {path}{key} HTTP/1.1\r\nHost: {url.netloc}\r\n{held}\r\n"
        self.transport.write(head.encode())

    def data_received(self, data: bytes) -> None:
        """Feed the parser, which calls `on_message_complete`."""
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        """Count the answer."""
        self.latencies.append((time.perf_counter() - self.started) * 1e3)
        self.errors += self.parser.get_status_code() != (304 if self.load.etag else 200)
        # Not inside the parser's callback: it must not be replaced while it runs.
        asyncio.get_running_loop().call_soon(self.ask)


async def clients(load: Load) -> Outcome:
    """Keep the connections busy for the time given."""
    url, loop = urlsplit(load.url), asyncio.get_running_loop()
    assert url.hostname
    assert url.port
    protocols = [Client(load) for _ in range(load.clients)]
    started = time.perf_counter()
    for protocol in protocols:
        await loop.create_connection(partial(lambda same: same, protocol), url.hostname, url.port)
    await asyncio.sleep(load.seconds)
    elapsed = time.perf_counter() - started
    broken = sum(protocol.transport.is_closing() for protocol in protocols)
    bad = sum(protocol.errors for protocol in protocols)
    for protocol in protocols:
        protocol.transport.abort()
    answers = sum(len(protocol.latencies) for protocol in protocols) - bad
    latencies = sorted(ms for protocol in protocols for ms in protocol.latencies) or [0.0]
    return Outcome(
        answers=answers,
        rate=answers / elapsed,
        errors=bad + broken,
        p50=latencies[len(latencies) // 2],
        p99=latencies[len(latencies) * 99 // 100],
    )
