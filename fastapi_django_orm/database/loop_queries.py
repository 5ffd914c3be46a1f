"""Short queries that the event loop waits for by itself, on connections that Django has opened.

The way to a thread and back costs more than a short query does, and under load a thread waits for the
interpreter longer than for the database. psycopg 3 lets the connection's socket be waited for instead.

A connection is lent to such a query as to any call, so the bound holds. Where anything is out of the ordinary
(none is open and free, another driver, the server refuses the query) the caller has to ask on a database
thread, which opens connections, heals them, and raises what Django raises.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from django.core.exceptions import SynchronousOnlyOperation
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.connection import ConnectionDoesNotExist

from ..clock import monotonic
from .calls import Call, running_calls
from .pool import Pool, pool_of

Compose = Callable[[BaseDatabaseWrapper], bytes | None]
Answer = list[tuple[Any, ...]] | Exception | None
Done = Callable[[Answer], None]

# Classes of SQLSTATE: 22, the data, which may be one key's; 42, the query, of which a thread can tell more.
_OF_THE_QUERY = ("22", "42")


class LoopQueries:
    """The queries that one application's event loop waits for."""

    def __init__(self, pools: Callable[[str], Pool]) -> None:
        self._pools = pools
        self._waiting: set[_Query] = set()
        self._closed = False

    def ask(self, alias: str, compose: Compose, done: Done) -> bool:
        """Send a query, if that can be done without waiting for anything. In the event loop.

        Args:
            alias: the database.
            compose: gives the SQL, its parameters written out; None or any exception if there is none. It
                runs at once, and finds the connection that will be used in ``django.db.connections``.
            done: called in the loop, later, with the rows as Django would read them; with the error if the
                connection has broken, or the server fails for a reason other than the query; or with None if
                the query is refused, or its rows cannot be read.

        Returns:
            Whether ``done`` will be called. If not, ask on a thread.
        """
        if self._closed:
            return False
        try:
            connection = self._pools(alias).acquire_ready()
        except ConnectionDoesNotExist:
            return False
        if connection is None:
            return False
        call = _LoopCall(self._pools, connection)
        try:
            sql = call.look(compose, connection)
        except Exception:  # whatever it is, it comes again on a thread, where the caller gets it
            sql = None
        if sql is None:
            pool_of(connection).put_back(connection)
            return False

        def ended(answer: Answer, broken: bool) -> None:
            self._waiting.discard(query)
            running_calls.discard(call)
            pool_of(connection).put_back(connection, broken=broken)
            done(answer)

        query = _Query(connection, ended)
        try:
            query.send(sql)
        except NotImplementedError:  # this kind of loop cannot watch sockets, and nothing was sent
            pool_of(connection).put_back(connection)
            return False
        except Exception:
            query.leave()
            pool_of(connection).put_back(connection, broken=True)
            return False
        self._waiting.add(query)
        running_calls.add(call)
        return True

    def close(self) -> None:
        """Send no more."""
        self._closed = True

    def break_off(self) -> None:
        """End all queries with an error for their callers. In the event loop, when there will be no more."""
        while self._waiting:
            query = next(iter(self._waiting))
            query.end(RuntimeError("The application has shut down; its queries have ended."), broken=True)


class _LoopCall(Call):
    """A query of the loop, in the form that housekeeping looks after. It acquires nothing more."""

    __slots__ = ()

    def __init__(self, pools: Callable[[str], Pool], connection: BaseDatabaseWrapper) -> None:
        super().__init__(pools)
        self.held[connection.alias] = connection
        self.started = monotonic()

    def borrows(self) -> bool:
        return True

    def connection(self, alias: str) -> BaseDatabaseWrapper:
        connection = self.held.get(alias)
        if connection is None:  # to wait for one would stop the loop
            raise SynchronousOnlyOperation(f"The event loop cannot wait for a connection to {alias!r}.")
        return connection


class _Query:
    """One query, on its way. Only the event loop touches it, and the connection, until it has ended.

    Source: https://www.postgresql.org/docs/current/libpq-async.html
    """

    __slots__ = ("_connection", "_ended", "_loop", "_pgconn", "_results", "_socket", "_writing")

    def __init__(self, connection: Any, ended: Callable[[Answer, bool], None]) -> None:
        """Have ``ended`` called with the answer, and with whether the connection has broken."""
        self._connection = connection
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._pgconn = connection.connection.pgconn
        self._socket: int = self._pgconn.socket
        self._results: list[Any] = []
        self._writing = False

    def send(self, sql: bytes) -> None:
        """Send the query, and have the loop watch the socket. Raises what the driver raises."""
        self._loop.add_reader(self._socket, self._ready)
        self._pgconn.send_query(sql)
        self._flush()

    def end(self, answer: Answer, *, broken: bool) -> None:
        self.leave()
        self._ended(answer, broken)

    def leave(self) -> None:
        """Have the loop watch the socket no more."""
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
        except Exception as error:
            self.end(self._as_of_django(error), broken=True)
            return
        try:
            answer = self._answer()
        except Exception:  # a value that the driver cannot read; on a thread it will say so
            answer = None
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
        from psycopg import errors
        from psycopg.adapt import Transformer
        from psycopg.pq import DiagnosticField, ExecStatus

        (result,) = self._results
        if result.status != ExecStatus.TUPLES_OK:
            state = (result.error_field(DiagnosticField.SQLSTATE) or b"").decode()
            if state.startswith(_OF_THE_QUERY):
                return None
            return self._as_of_django(errors.lookup(state)(result.get_error_message()))
        transformer = Transformer(self._connection.connection)
        transformer.set_pgresult(result)
        return transformer.load_rows(0, result.ntuples, tuple)

    def _is_out_of_order(self) -> bool:
        from psycopg.pq import TransactionStatus

        return bool(self._pgconn.transaction_status != TransactionStatus.IDLE)

    def _as_of_django(self, error: Exception) -> Exception:
        try:
            with self._connection.wrap_database_errors:
                raise error
        except Exception as wrapped:
            return wrapped
