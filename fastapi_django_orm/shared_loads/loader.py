"""Full loads that a fleet of workers does once: one reads the database, the others take what it has read.

Only a load of everything is shared; one of a few keys is cheaper than asking. Whoever waits holds a database
thread meanwhile, as it would for a load of its own, and no connection.

Whatever goes wrong here (no server, a slow or a full one, keys or bytes that are not ours), the worker loads
for itself, as it would without.
"""

import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

import redis
from django.core.exceptions import EmptyResultSet
from django.db import DatabaseError

from ..clock import monotonic
from ..database import calls
from ..errors import text_of
from ..events import logger
from ..memory.loading import Loader
from ..memory.pages import Page
from ..memory.refreshing import RowLoader
from ..memory.snapshot import Snapshot
from ..reading.codec import RowCodec
from ..reading.keys import AnyQuerySet
from ..reading.own_ways import pinned
from ..reading.postgresql_json import DatabaseJSON
from ..reading.readers import ColumnReader, Reader
from ..shared import renewed_at_fork
from .format import SIGNED, Manifest, NotGenuine, NotPortable, digest_of, kind_of, pack, unpack
from .identity import identity_of, secret
from .store import Gone, LoadTurn, Room, SharedStore, Wait, draw

LONGEST_WAIT_FOR_OTHERS = 30.0  # seconds to wait for others
MOST_LOOKS = 200  # at the server for one load: somebody may ring all the time
MOST_NUMBERS_KEPT = 1000  # of those for whom earlier rows were
REST = 10.0  # seconds without another attempt after a failure


class SharedSnapshots:
    """Where the repositories of an application share, and whether that works at present."""

    def __init__(self, url: str) -> None:
        """Connect to nothing yet.

        Args:
            url: of the Redis or Valkey server.

        Raises:
            ValueError: it cannot be understood.
        """
        self.store = SharedStore(url)
        self._lock = renewed_at_fork(threading.Lock())
        self._failed_at: float | None = None

    @property
    def in_use(self) -> bool:
        """Whether to try to share."""
        return self._failed_at is None or monotonic() - self._failed_at > REST

    def loader(self, loader: Loader, queryset: Callable[[], AnyQuerySet], reader: Reader) -> RowLoader[Any]:
        """What a repository loads with.

        Args:
            loader: what reads the database.
            queryset: gives what to read, ordered.
            reader: the repository's.
        """
        if not isinstance(reader, ColumnReader):
            return loader  # Python makes its rows
        return SharedLoader(loader, queryset, reader, self)

    def failed(self, error: Exception) -> None:
        """Note a failure, in one line of the log for as long as failures last."""
        with self._lock:
            was, self._failed_at = self._failed_at, monotonic()
        if was is None:
            cause = text_of(error) or type(error).__name__
            logger.error("shared_snapshots_lost", error=type(error).__name__, cause=cause)

    def worked(self) -> None:
        """Note a success, in one line of the log if it ends failures."""
        with self._lock:
            was, self._failed_at = self._failed_at, None
        if was is not None:
            logger.info("shared_snapshots_back")


class SharedLoader:
    """Loads one repository. Its methods run on a database thread, one at a time."""

    def __init__(
        self,
        loader: Loader,
        queryset: Callable[[], AnyQuerySet],
        reader: ColumnReader,
        shared: SharedSnapshots,
    ) -> None:
        """Share what this loader loads.

        Args:
            loader: what reads the database.
            queryset: gives what to read, ordered.
            reader: the repository's.
            shared: where.
        """
        self._loader = loader
        self._queryset = queryset
        self._reader = reader
        self._shared = shared
        self.load_keys = loader.load_keys
        self.load_keys_on_loop = loader.load_keys_on_loop
        self.let_go = loader.let_go

    def load(self, before: Snapshot[Any] | None) -> Snapshot[Any]:
        """All rows, read after this call by this worker or another.

        Raises:
            The same as the loader's.
        """
        if not self._shared.in_use:
            return self._loader.load(before)
        # One query for the question and for the load: the repository's next may have other parameters, and a
        # router may choose another database whenever it is asked.
        queryset = pinned(self._queryset())
        in_sql = self._database_json(queryset)
        identity = None if in_sql is None else self._identity(in_sql, queryset)
        if in_sql is None or identity is None:
            return self._loader.read(queryset, before)[0]
        if (call := calls.current()) is not None:
            call.give_back()  # or each repository that waits for others would keep a connection from all
        attempt = _Attempt(
            self._shared,
            identity,
            read=lambda: self._loader.read(queryset, before),
            take=lambda pages, asked_at: self._loader.take(
                pages, RowCodec(self._reader.names, in_sql.kinds), before, asked_at
            ),
            # The columns' types may turn out to be others while they are being read.
            is_shared=lambda made_by: self._identity(made_by, queryset) == identity,
        )
        with self._shared.store.room(identity) as room:
            return attempt.load(room)

    def _database_json(self, queryset: AnyQuerySet) -> DatabaseJSON | None:
        try:
            return self._reader.database_json(queryset)
        except DatabaseError:  # which the load meets again
            return None

    def _identity(self, in_sql: DatabaseJSON, queryset: AnyQuerySet) -> str | None:
        """What rows of this query, made in this way, are shared under; None if they are not."""
        try:
            return identity_of(in_sql, queryset)
        except (EmptyResultSet, DatabaseError):  # which the load meets again
            return None


class _Attempt:
    """One load."""

    def __init__(
        self,
        shared: SharedSnapshots,
        identity: str,
        *,
        read: Callable[[], tuple[Snapshot[Any], DatabaseJSON | None]],
        take: Callable[[Iterator[Page], datetime], Snapshot[Any]],
        is_shared: Callable[[DatabaseJSON], bool],
    ) -> None:
        self._shared = shared
        self._read = read
        self._take = take
        self._is_shared = is_shared
        # What is signed for one query is worth nothing for another.
        self._key = blake2b(identity.encode(), digest_size=32, key=secret()).digest()
        self._number = draw()
        self._asked_at = datetime.now(UTC)  # for ourselves, and not compared with anybody's
        self._failed = False

    def load(self, room: Room) -> Snapshot[Any]:
        found: Snapshot[Any] | LoadTurn | None = None
        # Everything may be wrong with what the server has, and none of it is a reason not to load.
        try:
            found = self._wait(room)
        except Exception as error:
            self._fail(room, error)
        if isinstance(found, LoadTurn):
            found = self._load(room, found)
        if not self._failed:
            self._shared.worked()
        return self._read()[0] if found is None else found

    def _wait(self, room: Room) -> Snapshot[Any] | LoadTurn | None:
        """Rows that another has read for us, or the turn to read them; None if we are to load alone."""
        end, seen = monotonic() + LONGEST_WAIT_FOR_OTHERS, b""
        for _ in range(MOST_LOOKS):
            step = room.look(self._number, seen)
            if isinstance(step, LoadTurn):
                return step
            if isinstance(step, Wait):
                seen = step.signature
                if monotonic() > end:
                    return None
                room.wait(step)
                continue
            seen = step.manifest[:SIGNED]
            manifest = Manifest.verified(step.manifest, self._key)
            if self._number in manifest.wanted_by:  # or it was read for others, and perhaps before we asked
                if manifest.parts is None:
                    return None
                with suppress(Gone):
                    return self._taken(room, manifest)
        return None

    def _taken(self, room: Room, manifest: Manifest) -> Snapshot[Any]:
        snapshot = self._take(unpack(_parts(room, manifest), manifest.kind), self._asked_at)
        logger.debug("shared_snapshot_taken", repository=snapshot.name, shared=manifest.version)
        return snapshot

    def _load(self, room: Room, turn: LoadTurn) -> Snapshot[Any]:
        with room.held(turn):
            try:
                snapshot, made_by = self._read()
            except BaseException:
                # The next in line tries: what has failed for us may be our own fault.
                self._release(room, turn, b"")
                raise
            self._release(room, turn, self._handed_over(room, turn, snapshot, made_by))
            return snapshot

    def _handed_over(
        self, room: Room, turn: LoadTurn, snapshot: Snapshot[Any], made_by: DatabaseJSON | None
    ) -> bytes:
        """The manifest, once the rows are on the server, if anybody may take them."""
        others = [number for number in turn.numbers if number != self._number]
        if not others:
            return b"" if turn.manifest else Manifest(()).signed(self._key)
        old = Manifest(())
        if turn.manifest:
            with suppress(NotGenuine):  # as it may be for nobody, it is replaced
                old = Manifest.verified(turn.manifest, self._key)
        # Some for whom the last rows were may not have looked yet, and these are as good for them.
        manifest = Manifest([*others, *old.wanted_by][: max(len(others), MOST_NUMBERS_KEPT)])
        try:
            if made_by is not None and self._is_shared(made_by):
                manifest = self._put(room, manifest, old, snapshot.table.pages)
        except NotPortable:
            pass
        except Exception as error:
            self._fail(room, error)
        return manifest.signed(self._key)

    def _put(self, room: Room, manifest: Manifest, old: Manifest, pages: Sequence[Page]) -> Manifest:
        kind, version, parts = kind_of(pages), secrets.token_hex(8), []
        for number, part in enumerate(pack(pages)):
            room.put(version, number, part)
            parts.append((len(part), digest_of(part)))
        # Somebody may still be taking the last rows; nobody takes those before them.
        room.drop(*old.before)
        before = old.version, len(old.parts or ())
        return replace(manifest, version=version, kind=kind, parts=parts, before=before)

    def _release(self, room: Room, turn: LoadTurn, manifest: bytes) -> None:
        try:
            room.release(turn, manifest)
        except Exception as error:
            self._fail(room, error)

    def _fail(self, room: Room, error: Exception) -> None:
        self._failed = True
        self._shared.failed(error)
        if not isinstance(error, redis.ConnectionError | redis.TimeoutError | OSError):
            with suppress(Exception):
                room.clear()  # what is damaged would stay so


def _parts(room: Room, manifest: Manifest) -> Iterator[bytes]:
    """The parts of some rows.

    Raises:
        Gone: one of them is no longer there.
        NotGenuine: one of them is not what was signed.
    """
    for number, (size, digest) in enumerate(manifest.parts or ()):
        part = room.part(manifest.version, number, size)
        if len(part) != size or digest_of(part) != digest:
            raise NotGenuine("a part of shared rows is damaged")
        yield part
