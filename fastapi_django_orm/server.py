"""Published answers below ASGI: ``uvicorn main:app --http fastapi_django_orm.server:Published``.

uvicorn makes a scope, a task and an object for each request, which costs more than an answer that is ready.
This protocol looks at a request when its headers are complete. It writes the answer at once if that consists
of published bytes, and leaves everything else to uvicorn.
"""

import asyncio
import urllib.parse
from typing import Any

try:
    from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
except ImportError as error:  # httptools is not installed
    raise ImportError(
        "fastapi_django_orm.server needs httptools: pip install 'uvicorn[standard]', or start uvicorn "
        "without --http fastapi_django_orm.server:Published."
    ) from error


from .http.directory import directory_of
from .responses.negotiation import at_once
from .responses.representation import Answer, Header, HeaderLines, Headers
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

    Published lists, windows and rows whose bytes are ready are answered here: outside of the application's
    middleware, as a web server answers static files.
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
        answer = self._answer()
        if answer is None:
            self._make_scope()
            super().on_headers_complete()
        elif self.transport.is_closing():
            self.cycle = _ANSWERED  # a request after the last one, which uvicorn drops as well
        else:
            self._write(*answer)

    def _answer(self) -> tuple[Answer, Header] | None:
        """The answer to the request, and its Cache-Control; None if ASGI has to answer."""
        directory = self._directory
        if directory is None or (method := _READING.get(self.parser.get_method())) is None:
            return None
        asked = directory.find(method, self.url, self.root_path)
        if asked is None or not self._is_free():
            return None
        for name, _ in self.headers:
            if name in _OUT_OF_THE_ORDINARY or (self.access_log and name in _FORWARDED):
                return None
        source, window, key = asked
        if (found := source.at_hand(window, key)) is None:
            return None
        if (answer := at_once(found, self.headers)) is None:
            return None
        directory.application.requests += 1
        return answer, source.cache_control

    def _is_free(self) -> bool:
        """Whether the connection can take an answer, and the server another request."""
        cycle: Any = self.cycle  # None before the first request
        if cycle is not None and not cycle.response_complete:
            return False  # answers go out in the order of requests
        if self.flow.write_paused:
            return False  # uvicorn waits until the client has read what it was sent
        limit = self.limit_concurrency
        return limit is None or (len(self.connections) < limit and len(self.tasks) < limit)

    def _write(self, answer: Answer, cache_control: Header) -> None:
        status, headers, body = answer
        if self.access_log:
            self._log(status)
        keep_alive = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
        head = b"".join(
            [
                STATUS_LINE[status],
                _default_lines(self.server_state.default_headers),
                headers.lines,
                b"%b: %b\r\n" % cache_control,
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
