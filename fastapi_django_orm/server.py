"""Published answers below ASGI: ``uvicorn main:app --http fastapi_django_orm.server:Published``.

uvicorn makes a scope, a task and an object for each request, which costs more than an answer that is ready.
This protocol looks at a request when its headers are complete. It writes the answer at once if that consists
of published bytes. What is read from the database for the request has to be waited for, which takes uvicorn's
task, but not the application. Everything else is left to uvicorn.
"""

import asyncio
import urllib.parse
from functools import partial
from typing import Any

try:
    from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
except ImportError as error:  # httptools is not installed
    raise ImportError(
        "fastapi_django_orm.server needs httptools: pip install 'uvicorn[standard]', or start uvicorn "
        "without --http fastapi_django_orm.server:Published."
    ) from error

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from .http.directory import directory_of
from .http.published_route import FAILED, GONE
from .http.sources import LiveSource, Question
from .responses.negotiation import at_once, deliver
from .responses.representation import Answer, HeaderLines, Headers
from .responses.response import READING

__all__ = ["Published"]

COPIED = 16 * 1024  # bytes: a body up to this size is sent together with the headers, which copies it

# Headers that make a request more than a plain question for a representation: a body, a handshake, or a path
# that a proxy has changed. Range is not among them, since ASGI answers such a request in full, too.
_OUT_OF_THE_ORDINARY = frozenset(
    {
        b"content-length",
        b"transfer-encoding",
        b"expect",
        b"upgrade",
        b"x-forwarded-prefix",
        b"x-http-method-override",
        b"x-original-uri",
        b"x-original-url",
        b"x-rewrite-url",
        b"x-script-name",
    }
)
_FORWARDED = frozenset({b"forwarded", b"x-forwarded-for"})  # by which the access log names the client
_READING = {method.encode(): method for method in READING}


class _Answered:
    """Stands for a request that was answered here, where uvicorn asks about the last one."""

    response_complete = True
    disconnected = False
    message_event = asyncio.Event()  # uvicorn sets it when the connection ends; nothing waits for it


_ANSWERED: Any = _Answered()


class Published(HttpToolsProtocol):
    """``uvicorn main:app --http fastapi_django_orm.server:Published``.

    Published lists, windows and rows are answered here, if their bytes are ready or are read for the request:
    outside of the application's middleware, as a web server answers static files.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._directory = directory_of(self.app)

    def on_message_begin(self) -> None:
        """Put off the scope, which an answer does not need."""
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def _make_scope(self) -> None:
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)  # the list that is in the scope now

    def on_headers_complete(self) -> None:
        """Answer, or have uvicorn call the application."""
        asked = self._asked()
        answer = None if asked is None else self._ready(asked)
        if asked is None or answer is None:
            self._make_scope()
            self._call_application(asked)
        elif self.transport.is_closing():
            self.cycle = _ANSWERED  # a request after the last one, which uvicorn drops as well
        else:
            self._write(asked, *answer)

    def _asked(self) -> Question | None:
        """What the request asks for, if it can be answered here."""
        directory = self._directory
        if directory is None or (method := _READING.get(self.parser.get_method())) is None:
            return None
        asked = directory.find(method, self.url, self.root_path)
        if asked is None or not self._is_free():
            return None
        for name, _ in self.headers:
            if name in _OUT_OF_THE_ORDINARY or (self.access_log and name in _FORWARDED):
                return None
        return asked

    def _ready(self, asked: Question) -> Answer | None:
        found = asked.source.at_hand(asked.window, asked.key)
        return None if found is None else at_once(found, self.headers)

    def _call_application(self, asked: Question | None) -> None:
        """Have uvicorn call it; or, for what is read from the database, what stands in its place."""
        app = self.app
        if asked is not None and isinstance(asked.source, LiveSource):
            self.app = partial(self._read, asked)
        try:
            super().on_headers_complete()
        finally:
            self.app = app

    async def _read(self, asked: Question, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer from the database. If that fails, the route raises the error, as it would by itself."""
        source, window, key = asked
        try:
            found = await source.read(window, key, receive)
        except ClientDisconnect:
            await GONE(scope, receive, send)
        except Exception as error:
            scope[FAILED] = error
            await self.app(scope, receive, send)
        else:
            self._count()
            await deliver(found, scope, send, source.cache_control)

    def _count(self) -> None:
        assert self._directory is not None
        self._directory.application.requests += 1

    def _is_free(self) -> bool:
        """Whether the connection can take an answer, and the server another request."""
        cycle: Any = self.cycle  # None before the first request
        if cycle is not None and not cycle.response_complete:
            return False  # answers go out in the order of requests
        if self.flow.write_paused:
            return False  # uvicorn waits until the client has read what it was sent
        limit = self.limit_concurrency
        return limit is None or (len(self.connections) < limit and len(self.tasks) < limit)

    def _write(self, asked: Question, status: int, headers: HeaderLines, body: bytes | None) -> None:
        self._count()
        if self.access_log:
            self._log(status)
        keep_alive = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
        head = b"".join(
            [
                STATUS_LINE[status],
                _default_lines(self.server_state.default_headers),
                headers.lines,
                b"%b: %b\r\n" % asked.source.cache_control,
                b"\r\n" if keep_alive else b"connection: close\r\n\r\n",
            ]
        )
        if body is None or self.parser.get_method() == b"HEAD":
            body = b""
        if len(body) > COPIED:
            self.transport.write(head)
            self.transport.write(body)
        else:
            self.transport.write(head + body)
        self.cycle = _ANSWERED
        if not keep_alive:
            self.transport.close()
        self.on_response_complete()

    def _log(self, status: int) -> None:
        path, question_mark, query = self.url.decode("latin-1").partition("?")
        self.access_logger.info(
            '%s - "%s %s HTTP/%s" %d',
            "{}:{}".format(*self.client) if self.client else "",
            self.parser.get_method().decode(),
            urllib.parse.quote(self.root_path + urllib.parse.unquote(path)) + question_mark + query,
            self.parser.get_http_version(),
            status,
        )


_rendered: tuple[Headers, bytes] = [], b""


def _default_lines(headers: Headers) -> bytes:
    """The lines of uvicorn's own headers, the date among them. uvicorn makes a new list each second."""
    global _rendered
    if _rendered[0] is not headers:
        _rendered = headers, HeaderLines(headers).lines
    return _rendered[1]
