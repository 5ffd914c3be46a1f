"""Full loads that a fleet of workers does once: one reads the database, the others take what it has read.

Only a load of everything is shared; one of a few keys is cheaper than asking. A worker that waits holds a
database thread meanwhile, as it would for its own load, and no connection.

Whatever goes wrong here (no server, a slow or a full one, keys or bytes that are not ours), the worker loads
for itself, as it would without.

Rows are shared only between workers that would send the same SQL to the same database, and only where the
database makes their JSON. Then no code has a part in them but Django's, which makes the SQL, and this
package's: what a field, a helper or a setting of the project changes is in the SQL. Of all other rows the
next release may make something else, so each worker reads those for itself.
"""

import secrets
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import django
import redis
from django.conf import settings
from django.core.exceptions import EmptyResultSet
from django.db import DatabaseError, connections
from django.db.backends.signals import connection_created

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
from .format import FORMAT, SIGNED, Manifest, NotGenuine, NotPortable, digest_of, kind_of, pack, unpack
from .store import Gone, LoadTurn, Room, Wait, connect, draw

LONGEST_WAIT_FOR_OTHERS = 30.0  # seconds
MOST_LOOKS = 200  # at the server for one load: another client may ring all the time
MOST_NUMBERS_KEPT = 1000  # of those for whom earlier rows were
REST = 10.0  # seconds without another attempt after a failure

_NOT_THE_DATABASE = ("PASSWORD", "TEST")  # the first may be changed while workers run


class SharedSnapshots:
    """Where the repositories of an application share, and whether that works at present."""

    def __init__(self, url: str) -> None:
        """Share on this Redis or Valkey server. Raises what ``connect()`` raises."""
        connect(url)
        self.url = url
        self._lock = renewed_at_fork(threading.Lock())
        self._failed_at: float | None = None

    @property
    def in_use(self) -> bool:
        """Whether to try to share."""
        return self._failed_at is None or monotonic() - self._failed_at > REST

    def loader(self, loader: Loader, queryset: Callable[[], AnyQuerySet], reader: Reader) -> RowLoader[Any]:
        """What a repository loads with: its loader of this query, ordered, and its reader may be shared."""
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
        self.alone = loader
        self.reader = reader
        self.shared = shared
        self._queryset = queryset
        self.load_keys = loader.load_keys
        self.load_keys_on_loop = loader.load_keys_on_loop
        self.let_go = loader.let_go

    def load(self, before: Snapshot[Any] | None) -> Snapshot[Any]:
        """All rows, read after this call by this worker or another. Raises what the loader raises."""
        if not self.shared.in_use:
            return self.alone.load(before)
        # One query for the question and for the load: the repository's next may have other parameters, and a
        # router may choose another database whenever it is asked.
        queryset = pinned(self._queryset())
        try:
            in_sql = self.reader.database_json(queryset)
        except DatabaseError:  # which the load meets again
            in_sql = None
        identity = identity_of(in_sql, queryset)
        if in_sql is None or identity is None:
            return self.alone.read(queryset, before)[0]
        if (call := calls.current()) is not None:
            call.give_back()  # or each repository that waits for others would keep a connection from all
        with connect(self.shared.url) as client:
            return _Attempt(self, Room(client, identity), queryset, before, in_sql, identity).load()


class _Attempt:
    def __init__(
        self,
        owner: SharedLoader,
        room: Room,
        queryset: AnyQuerySet,
        before: Snapshot[Any] | None,
        in_sql: DatabaseJSON,
        identity: str,
    ) -> None:
        self._owner = owner
        self._room = room
        self._queryset = queryset
        self._before = before
        self._in_sql = in_sql
        self._identity = identity
        # What is signed for one query is worth nothing for another.
        self._key = blake2b(identity.encode(), digest_size=32, key=_secret()).digest()
        self._number = draw()
        self._asked_at = datetime.now(UTC)  # for ourselves, and not compared with another clock
        self._failed = False

    def load(self) -> Snapshot[Any]:
        found: Snapshot[Any] | LoadTurn | None = None
        # Everything may be wrong with what the server has, and none of it is a reason not to load.
        try:
            found = self._wait()
        except Exception as error:
            self._fail(error)
        if isinstance(found, LoadTurn):
            found = self._load(found)
        if not self._failed:
            self._owner.shared.worked()
        return self._read()[0] if found is None else found

    def _read(self) -> tuple[Snapshot[Any], DatabaseJSON | None]:
        return self._owner.alone.read(self._queryset, self._before)

    def _wait(self) -> Snapshot[Any] | LoadTurn | None:
        """Rows that another has read for us, or the turn to read them; None if we are to load alone."""
        end, seen = monotonic() + LONGEST_WAIT_FOR_OTHERS, b""
        for _ in range(MOST_LOOKS):
            step = self._room.look(self._number, seen)
            if isinstance(step, LoadTurn):
                return step
            if isinstance(step, Wait):
                seen = step.signature
                if monotonic() > end:
                    return None
                self._room.wait(step)
                continue
            seen = step.manifest[:SIGNED]
            manifest = Manifest.verified(step.manifest, self._key)
            if self._number in manifest.wanted_by:  # or it was read for others, and perhaps before we asked
                if manifest.parts is None:
                    return None
                with suppress(Gone):
                    return self._taken(manifest)
        return None

    def _taken(self, manifest: Manifest) -> Snapshot[Any]:
        pages = unpack(_parts(self._room, manifest), manifest.kind)
        codec = RowCodec(self._owner.reader.names, self._in_sql.kinds)
        snapshot = self._owner.alone.take(pages, codec, self._before, self._asked_at)
        logger.debug("shared_snapshot_taken", repository=snapshot.name, shared=manifest.version)
        return snapshot

    def _load(self, turn: LoadTurn) -> Snapshot[Any]:
        with self._room.held(turn):
            try:
                snapshot, made_by = self._read()
            except BaseException:
                # The next in line tries: what has failed for us may be our own fault.
                self._release(turn, b"")
                raise
            self._release(turn, self._handed_over(turn, snapshot, made_by))
            return snapshot

    def _handed_over(self, turn: LoadTurn, snapshot: Snapshot[Any], made_by: DatabaseJSON | None) -> bytes:
        """The manifest, once the rows are on the server, if other workers may take them."""
        others = [number for number in turn.numbers if number != self._number]
        if not others:
            return b"" if turn.manifest else Manifest(()).signed(self._key)
        old = Manifest(())
        if turn.manifest:
            with suppress(NotGenuine):  # then it is worth nothing to others either, and is replaced
                old = Manifest.verified(turn.manifest, self._key)
        # Some for whom the last rows were may not have looked yet, and these are as good for them.
        manifest = Manifest([*others, *old.wanted_by][: max(len(others), MOST_NUMBERS_KEPT)])
        try:
            # The columns' types may have turned out to be others while they were being read.
            if identity_of(made_by, self._queryset) == self._identity:
                manifest = self._put(manifest, old, snapshot.table.pages)
        except NotPortable:
            pass
        except Exception as error:
            self._fail(error)
        return manifest.signed(self._key)

    def _put(self, manifest: Manifest, old: Manifest, pages: Sequence[Page]) -> Manifest:
        kind, version, parts = kind_of(pages), secrets.token_hex(8), []
        for number, part in enumerate(pack(pages)):
            self._room.put(version, number, part)
            parts.append((len(part), digest_of(part)))
        # Another worker may still be taking the last rows; none takes those before them.
        self._room.drop(*old.before)
        before = old.version, len(old.parts or ())
        return replace(manifest, version=version, kind=kind, parts=parts, before=before)

    def _release(self, turn: LoadTurn, manifest: bytes) -> None:
        try:
            self._room.release(turn, manifest)
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._failed = True
        self._owner.shared.failed(error)
        if not isinstance(error, redis.ConnectionError | redis.TimeoutError | OSError):
            with suppress(Exception):
                self._room.clear()  # what is damaged would stay so


def _parts(room: Room, manifest: Manifest) -> Iterator[bytes]:
    """The verified parts of some rows; Gone or NotGenuine if one is missing or not what was signed."""
    for number, (size, digest) in enumerate(manifest.parts or ()):
        part = room.part(manifest.version, number, size)
        if len(part) != size or digest_of(part) != digest:
            raise NotGenuine("a part of shared rows is damaged")
        yield part


def identity_of(in_sql: DatabaseJSON | None, queryset: AnyQuerySet) -> str | None:
    """What the rows of a query are called among all that share a server; None if they are not shared."""
    if in_sql is None:
        return None
    connection = connections[queryset.db]
    if not _is_plain(connection) or not _is_of_django(queryset.model._meta.pk):
        return None
    try:
        sql, params = in_sql.compiled(queryset)
    except (EmptyResultSet, DatabaseError):  # which the load meets again
        return None
    where = sorted(
        (name, repr(value))
        for name, value in connections.settings[queryset.db].items()
        if name not in _NOT_THE_DATABASE
    )
    versions = [FORMAT, _version(), sys.byteorder, sys.version_info[:2], django.VERSION]
    types = [kind.__name__ for kind in in_sql.kinds]
    what = repr([versions, where, types, sql, [(type(one), one) for one in params]])
    return blake2b(what.encode(errors="backslashreplace"), digest_size=16, key=_secret()).hexdigest()


def _secret() -> bytes:
    """What the workers of one deployment know and others do not, made of Django's ``SECRET_KEY``."""
    return blake2b(str(settings.SECRET_KEY).encode(), digest_size=32, person=b"shared snapshot").digest()


def _is_plain(connection: Any) -> bool:
    """Whether no code but Django's prepares a connection; what is around its queries was asked before."""
    signalled = connection_created._live_receivers(type(connection))
    code = [type(connection), *(receiver for kind in signalled for receiver in kind)]
    return all(getattr(each, "__module__", "").startswith("django.") for each in code)


def _is_of_django(key: Any) -> bool:
    """Whether a key's values are made by Django's own field: they come beside the JSON."""
    while key.is_relation:
        key = key.target_field
    return type(key).__module__.startswith("django.db.models.")


def _version() -> str:
    try:
        return version("fastapi-django-orm")
    except PackageNotFoundError:
        return ""
