"""A TCP proxy that misbehaves on command, for what a killed server cannot show.

A killed server resets its connections at once. A network that dies says nothing: the sockets stay
open and no byte comes. The proxy stands between a client and a server and does either, or only gets
slow.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from .ports import free_port

_CALL_DEADLINE = 10.0
_CHUNK = 65_536
_LISTEN_ATTEMPTS = 20
# On, zero seconds: close() drops what is unsent and answers with RST instead of FIN (socket(7)).
_RESET = struct.pack("ii", 1, 0)

T = TypeVar("T")


class TCPProxy:
    """Forward connections from a port of 127.0.0.1 to a server.

    Every method returns when it has taken effect. `resume` ends `black_hole`, `slow` and `refuse`.

    Args:
        target_host: Host of the server.
        target_port: Port of the server.

    """

    host = "127.0.0.1"

    def __init__(self, target_host: str, target_port: int) -> None:
        self._target = (target_host, target_port)
        self._delay = 0.0
        self._listener: socket.socket | None = None
        self._acceptor: asyncio.Task[None] | None = None
        self._links: dict[asyncio.Task[None], tuple[socket.socket, ...]] = {}
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tcp-proxy")
        self._thread.start()
        self.port = 0
        try:
            self._call(self._listen())
        except BaseException:
            self.close()
            raise

    @property
    def connections(self) -> int:
        """The number of connections that are open through the proxy."""
        return self._do(lambda: len(self._links))

    def black_hole(self) -> None:
        """Forward nothing more, in silence.

        Sockets stay open and a client that closes its end is not noticed by the server. New
        connections are taken by the kernel, as they would be by a server that hangs, but get no
        answer. After `resume` what was held back arrives.
        """
        self._do(self._flowing.clear)

    def reset(self) -> None:
        """Break the open connections with RST on both sides; new ones work."""
        self._call(self._close_links(reset=True))

    def slow(self, seconds: float) -> None:
        """Delay everything that is read from either side by this time, in both directions."""
        self._do(lambda: setattr(self, "_delay", seconds))

    def refuse(self) -> None:
        """Refuse new connections; the open ones go on."""
        self._call(self._stop_listening())

    def resume(self) -> None:
        """Forward at full speed again, on the same port."""
        self._delay = 0.0
        self._do(self._flowing.set)
        self._call(self._listen())

    def close(self) -> None:
        """Close every socket and end the thread."""
        if self._loop.is_closed():
            return
        self._call(self._stop_listening())
        self._call(self._close_links(reset=False))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CALL_DEADLINE)
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _do(self, function: Callable[[], T]) -> T:
        """Call a plain function on the proxy's thread, between two steps of its connections."""

        async def call() -> T:
            return function()

        return self._call(call())

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_CALL_DEADLINE)

    async def _listen(self) -> None:
        if self._listener is not None:
            return
        for attempt in range(_LISTEN_ATTEMPTS):
            port = self.port or free_port()
            try:
                self._listener = socket.create_server((self.host, port), backlog=512)
            except OSError:
                # The race that `ports` explains.
                if attempt == _LISTEN_ATTEMPTS - 1:
                    raise
                await asyncio.sleep(0.05)
            else:
                self.port = port
                self._listener.setblocking(False)
                self._acceptor = self._loop.create_task(self._accept(self._listener))
                return

    async def _stop_listening(self) -> None:
        if self._acceptor is not None:
            self._acceptor.cancel()
            await asyncio.wait([self._acceptor])
            self._acceptor = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            await self._flowing.wait()
            client, _ = await self._loop.sock_accept(listener)
            server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            for end in (client, server):
                end.setblocking(False)
                # Its delay, not the kernel's, is the only one that the proxy adds.
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = self._loop.create_task(self._forward(client, server))
            self._links[link] = (client, server)
            link.add_done_callback(self._unlink)

    async def _forward(self, client: socket.socket, server: socket.socket) -> None:
        try:
            await self._flowing.wait()
            await self._loop.sock_connect(server, self._target)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(client, server))
                pumps.create_task(self._pump(server, client))
        except (OSError, ExceptionGroup):
            # One side is gone or never was there: the other has to see a broken connection too.
            for end in (client, server):
                _reset_on_close(end)

    async def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        while True:
            data = await self._loop.sock_recv(source, _CHUNK)
            await asyncio.sleep(self._delay)
            await self._flowing.wait()
            if not data:
                sink.shutdown(socket.SHUT_WR)
                return
            await self._loop.sock_sendall(sink, data)

    def _unlink(self, link: asyncio.Task[None]) -> None:
        for end in self._links.pop(link):
            end.close()

    async def _close_links(self, *, reset: bool) -> None:
        links = dict(self._links)
        if reset:
            for end in (end for ends in links.values() for end in ends):
                _reset_on_close(end)
        for link in links:
            link.cancel()
        # Callbacks of a task run before whoever waits for it goes on, so the sockets are closed.
        if links:
            await asyncio.wait(links)


def _reset_on_close(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
