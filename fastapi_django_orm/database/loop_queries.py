"""Short queries that the event loop waits for by itself, on connections that Django has opened.

The way to a thread and back costs more than a short query does, and under load a thread waits for the
interpreter longer than for the database. psycopg 3 lets the connection's socket be waited for instead.

A connection is lent to such a query as to any call, so the bound holds. Where anything is out of the ordinary
(none is open and free, another driver, the server refuses the query) the caller is told to ask on a database
thread, which opens connections, heals them, and raises what Django raises.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from django.core.exceptions import SynchronousOnlyOperation
from django.db.backends.base.base import BaseDatabaseWrapper

from .calls import Call, running_calls
from .pool import Pool

Compose = Callable[[BaseDatabaseWrapper], bytes | None]
Answer = list[tuple[Any, ...]] | Exception | None
Done = Callable[[Answer], None]


class LoopQueries:
    """The queries that one application's event loop waits for."""

    def __init__(self, pools: Callable[[str], Pool]) -> None:
        """Wait for none yet.

        Args:
            pools: the connections, by alias.
        """
        self._pools = pools
        self._waiting: set[_Query] = set()

    def ask(self, alias: str, compose: Compose, done: Done) -> bool:
        """Send a query, if that can be done without waiting for anything. In the event loop.

        Args:
            alias: the database.
            compose: gives the SQL, its parameters written out; None or any exception if there is none. It
                runs at once, and finds the connection that will be used in ``django.db.connections``.
            done: called in the loop, later, with the rows as Django would read them; with the error if the
                connection has broken; or with None if the server refuses the query.

        Returns:
            Whether ``done`` will be called. If not, ask on a thread.
        """
        pool = self._pools(alias)
        connection = pool.take_ready()
        if connection is None:
            return False
        call = _LoopCall(self._pools, connection)
        try:
            sql = call.look(compose, connection)
        except Exception:  # whatever it is, it comes again where it can be told to somebody
            sql = None
        if sql is None:
            pool.put_back(connection)
            return False
        query = _Query(connection)
        try:
            query.send(sql)
        except Exception:
            query.leave()
            pool.drop(connection)
            return False
        query.ended = lambda answer, broken: self._ended(query, call, done, answer, broken)
        self._waiting.add(query)
        running_calls.add(call)
        return True

    def _ended(self, query: "_Query", call: Call, done: Done, answer: Answer, broken: bool) -> None:
        self._waiting.discard(query)
        running_calls.discard(call)
        pool = self._pools(query.connection.alias)
        if broken:
            pool.drop(query.connection)
        else:
            pool.put_back(query.connection)
        done(answer)

    def break_off(self) -> None:
        """End all queries, and tell who waits for them. In the event loop."""
        for query in tuple(self._waiting):
            query.end(RuntimeError("The application has shut down; its queries have ended."), broken=True)


class _LoopCall(Call):
    """A query of the loop, as it is seen by those who look after calls. It borrows nothing more."""

    __slots__ = ()

    def __init__(self, pools: Callable[[str], Pool], connection: BaseDatabaseWrapper) -> None:
        super().__init__(pools)
        self.held[connection.alias] = connection
        self.started = time.monotonic()

    def connection(self, alias: str) -> BaseDatabaseWrapper:
        connection = self.held.get(alias)
        if connection is None:  # to wait for one would stop the loop
            raise SynchronousOnlyOperation(f"The event loop cannot wait for a connection to {alias!r}.")
        return connection


class _Query:
    """One query, on its way.

    Attributes:
        connection: what it was sent on.
        ended: called with the answer, and with whether the connection has broken.

    Source: https://www.postgresql.org/docs/current/libpq-async.html
    """

    __slots__ = ("_loop", "_pgconn", "_results", "_socket", "_writing", "connection", "ended")

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self.connection: Any = connection
        self.ended: Callable[[Answer, bool], None]
        self._loop = asyncio.get_running_loop()
        self._pgconn = self.connection.connection.pgconn
        self._socket: int = self._pgconn.socket
        self._results: list[Any] = []
        self._writing = False

    def send(self, sql: bytes) -> None:
        """Send it.

        Raises:
            Exception: the connection does not take it; or the loop cannot wait for sockets.
        """
        self._loop.add_reader(self._socket, self._ready)
        self._pgconn.send_query(sql)
        self._flush()

    def end(self, answer: Answer, *, broken: bool) -> None:
        """Wait no more."""
        self.leave()
        self.ended(answer, broken)

    def leave(self) -> None:
        """Have the loop forget the socket."""
        with suppress(Exception):  # it may never have known it
            self._loop.remove_reader(self._socket)
            if self._writing:
                self._loop.remove_writer(self._socket)

    def _ready(self) -> None:
        try:
            self._pgconn.consume_input()
            if self._writing:
                self._flush()
            if not self._is_complete():
                return
            answer = self._answer()
        except Exception as error:
            self.end(self._as_of_django(error), broken=True)
        else:
            self.end(answer, broken=self._is_out_of_order())

    def _flush(self) -> None:
        before, self._writing = self._writing, bool(self._pgconn.flush())
        if self._writing and not before:
            self._loop.add_writer(self._socket, self._ready)
        elif before and not self._writing:
            self._loop.remove_writer(self._socket)

    def _is_complete(self) -> bool:
        while not self._pgconn.is_busy():
            result = self._pgconn.get_result()
            if result is None:
                return True
            self._results.append(result)
        return False

    def _answer(self) -> Answer:
        from psycopg.adapt import Transformer
        from psycopg.pq import ExecStatus

        (result,) = self._results
        if result.status != ExecStatus.TUPLES_OK:
            return None
        transformer = Transformer(self.connection.connection)
        transformer.set_pgresult(result)
        return transformer.load_rows(0, result.ntuples, tuple)

    def _is_out_of_order(self) -> bool:
        from psycopg.pq import TransactionStatus

        return bool(self._pgconn.transaction_status != TransactionStatus.IDLE)

    def _as_of_django(self, error: Exception) -> Exception:
        try:
            with self.connection.wrap_database_errors:
                raise error
        except Exception as wrapped:
            return wrapped
