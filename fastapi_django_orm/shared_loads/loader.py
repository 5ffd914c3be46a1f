"""Full loads that a fleet of workers does once: one reads the database, the others take what it has read.

Only a load of everything is shared; one of a few keys is cheaper than asking. Whoever waits holds a database
thread meanwhile, as it would for a load of its own, and no connection.

Whatever goes wrong here (no server, a slow or a full one, bytes that are not ours), the worker loads
for itself, as it would without.
"""

import secrets
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

import redis
import structlog
from django.core.exceptions import EmptyResultSet
from django.db import DatabaseError

from ..reading.declaration import Declared
from ..reading.loading import Loader
from ..reading.readers import Reader
from ..reading.refresh import RowLoader
from ..rows.codec import RowCodec
from ..snapshots.snapshot import Snapshot
from .format import NotGenuine, NotPortable, is_portable, pack, unpack
from .identity import Identity, secret
from .store import Alone, LoadTurn, Lost, Room, SharedStore, Take

logger = structlog.get_logger("fastapi_django_orm")

LONGEST_WAIT_FOR_OTHERS = 30.0  # seconds to wait for others
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
        self._lock = threading.Lock()
        self._failed_at: float | None = None

    @property
    def in_use(self) -> bool:
        """Whether to try to share."""
        return self._failed_at is None or time.monotonic() - self._failed_at > REST

    def loader(self, loader: Loader, repository: Declared, reader: Reader) -> RowLoader[Any]:
        """What a repository loads with.

        Args:
            loader: what reads the database.
            repository: the repository, prepared.
            reader: the repository's.
        """
        if not reader.as_json:
            return loader  # rows of a schema are Python objects, which stay where they are
        return SharedLoader(loader, Identity(repository, reader.names), repository, reader.names, self)

    def failed(self, error: Exception) -> None:
        """Note a failure, in one line of the log for as long as failures last."""
        with self._lock:
            was, self._failed_at = self._failed_at, time.monotonic()
        if was is None:
            cause = str(error) or type(error).__name__
            logger.error("shared_snapshots_lost", error=type(error).__name__, cause=cause)

    def worked(self) -> None:
        """Note a success, in one line of the log if it ends failures."""
        with self._lock:
            was, self._failed_at = self._failed_at, None
        if was is not None:
            logger.info("shared_snapshots_back")


class SharedLoader:
    """RowLoader one repository. Its methods run on a database thread, one at a time."""

    def __init__(
        self,
        loader: Loader,
        identity: Identity,
        repository: Declared,
        names: Sequence[str],
        shared: SharedSnapshots,
    ) -> None:
        """Share what this loader loads.

        Args:
            loader: what reads the database.
            identity: who shares with us.
            repository: gives the query.
            names: the rows' fields.
            shared: where.
        """
        self._loader = loader
        self._identity = identity
        self._repository = repository
        self._names = names
        self._shared = shared
        self.load_keys = loader.load_keys
        self.load_keys_on_loop = loader.load_keys_on_loop
        self.let_go = loader.let_go

    def load(self, before: Snapshot[Any] | None) -> Snapshot[Any]:
        """All rows, read after this call by this worker or another.

        Raises:
            The same as the loader's.
        """
        if not self._shared.in_use or not (before is None or is_portable(before.table.pages)):
            return self._loader.load(before)
        try:
            identity = self._identity.of(self._repository.ordered_queryset())
        except (EmptyResultSet, DatabaseError):
            return self._loader.load(before)
        return _Attempt(self._loader, self._names, self._shared, identity).load(before)


class _Attempt:
    """One load."""

    def __init__(self, loader: Loader, names: Sequence[str], shared: SharedSnapshots, identity: str) -> None:
        self._loader = loader
        self._names = names
        self._shared = shared
        self._identity = identity
        self._failed = False
        self._asked_at = datetime.now(UTC)  # for ourselves, and not compared with anybody's

    def load(self, before: Snapshot[Any] | None) -> Snapshot[Any]:
        found: Snapshot[Any] | LoadTurn | None
        with self._shared.store.room(self._identity) as room:
            try:
                found = self._wait(room, before)
            except (redis.RedisError, OSError, NotGenuine) as error:
                self._fail(error)
                found = None
            if isinstance(found, LoadTurn):
                found = self._load(room, found, before)
            if not self._failed:
                self._shared.worked()
            return self._loader.load(before) if found is None else found

    def _wait(self, room: Room, before: Snapshot[Any] | None) -> Snapshot[Any] | LoadTurn | None:
        """Rows that another has read, or the turn to read them; None when neither comes in time."""
        end = time.monotonic() + LONGEST_WAIT_FOR_OTHERS
        ticket, missing = room.ask(), ""
        while time.monotonic() < end:
            try:
                step = room.look(ticket, missing)
            except Lost:
                ticket = room.ask()
                continue
            except Alone:
                return None
            if isinstance(step, LoadTurn):
                return step
            if isinstance(step, Take):
                try:
                    return self._take(room, step, before)
                except LookupError:  # it was dropped meanwhile
                    missing = step.version
            else:
                room.wait(step)
        return None

    def _take(self, room: Room, take: Take, before: Snapshot[Any] | None) -> Snapshot[Any]:
        codec = RowCodec(self._names)  # it learns the types from what comes
        pages = unpack(room.parts(take), codec, self._key(take.version))
        snapshot = self._loader.take(pages, codec, before, self._asked_at)
        logger.debug("shared_snapshot_taken", repository=snapshot.name, shared=take.version)
        return snapshot

    def _load(self, room: Room, turn: LoadTurn, before: Snapshot[Any] | None) -> Snapshot[Any]:
        with room.held(turn):
            shares = False
            try:
                snapshot = self._loader.load(before)
                # If nobody else has asked so far, nobody may take it.
                shares = turn.wanted > 1 and self._hand_over(room, turn, snapshot)
            except BaseException:
                # The next in line tries: what has failed for us may be our own fault.
                self._release(room, turn, alone=False)
                raise
            self._release(room, turn, alone=not shares)
            return snapshot

    def _hand_over(self, room: Room, turn: LoadTurn, snapshot: Snapshot[Any]) -> bool:
        version = secrets.token_hex(8)
        keyed = snapshot.table.where is not None
        codec = snapshot.cache.codec
        assert codec is not None, "such rows come with a codec"
        try:
            parts = pack(snapshot.table.pages, keyed, codec, self._key(version))
            return room.publish(turn, version, parts)
        except NotPortable:
            return False
        except (redis.RedisError, OSError) as error:
            self._fail(error)
            return False

    def _release(self, room: Room, turn: LoadTurn, *, alone: bool) -> None:
        try:
            room.release(turn, alone=alone)
        except (redis.RedisError, OSError) as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._failed = True
        self._shared.failed(error)

    def _key(self, version: str) -> bytes:
        """What one version is signed with, so that no part of another passes for one of it."""
        return blake2b((self._identity + version).encode(), digest_size=32, key=secret()).digest()
