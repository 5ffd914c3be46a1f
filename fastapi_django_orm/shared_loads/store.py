"""Where workers agree on who loads, and hand over what was loaded: a few keys in Redis or Valkey.

Whoever wants rows draws a *number*. Whoever gets the lock notes, in the same step, the last number that was
drawn, and only then begins to read; so what it has read satisfies all numbers up to this one, whatever
anybody's clock says. The result is taken only while its lock still stands, and only under the *epoch* in
which the numbers were drawn: a server that has lost what it knew (restarted, failed over to a replica
that lags, short of memory) has lost the lock or the epoch as well, and nobody takes too old rows for new.

Waiting is ``XREAD BLOCK`` on a stream that is rung like a bell, since a notification could come before the
subscription; the bell tells nothing but that it is time to look.
"""

import secrets
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

PREFIX = "fastapi_django_orm:shared"
STORE_PATIENCE = 2.0  # seconds to connect, or for an answer
LOCK = 3.0  # seconds that a lock outlives its holder
ROWS_KEPT = 60  # seconds that rows stay for those who asked before they were read
STATE_KEPT = 3600  # seconds that the numbers stay
LOOK_INTERVAL = 1.0  # seconds between two looks

# What is in the hash: epoch; asked, the last number drawn; covers, up to which number the rows satisfy;
# version and parts, which rows; alone, up to which number everybody is to load for itself.
_ASK = """
redis.call('HSETNX', KEYS[1], 'epoch', ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
return {redis.call('HGET', KEYS[1], 'epoch'), redis.call('HINCRBY', KEYS[1], 'asked', 1)}
"""

_LOOK = """
local number, s = tonumber(ARGV[2]), redis.call(
    'HMGET', KEYS[1], 'epoch', 'asked', 'covers', 'alone', 'version', 'parts')
local covers, alone = tonumber(s[3] or 0), tonumber(s[4] or 0)
if s[1] ~= ARGV[1] then return {'lost'} end
if covers >= number and s[5] ~= ARGV[5] then return {'take', s[5], tonumber(s[6])} end
if alone >= number then return {'alone'} end
if redis.call('SET', KEYS[2], ARGV[3], 'NX', 'PX', ARGV[4]) then
    return {'load', s[2], s[2] - math.max(covers, alone)}
end
local bell = redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 1)
return {'wait', redis.call('PTTL', KEYS[2]), bell[1] and bell[1][1] or '0-0'}
"""

_RENEW = """
return redis.call('GET', KEYS[2]) == ARGV[1] and redis.call('PEXPIRE', KEYS[2], ARGV[2])
"""

_PUBLISH = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] or redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[2] then return 0 end
local before = redis.call('HMGET', KEYS[1], 'version', 'parts', 'old_version', 'old_parts')
redis.call('HSET', KEYS[1], 'covers', ARGV[3], 'version', ARGV[4], 'parts', ARGV[5],
    'old_version', before[1] or '', 'old_parts', before[2] or 0)
return {before[3] or '', tonumber(before[4] or 0)}
"""

_RELEASE = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[2])
if ARGV[3] ~= '' and redis.call('HGET', KEYS[1], 'epoch') == ARGV[2] then
    redis.call('HSET', KEYS[1], 'alone', ARGV[3])
end
redis.call('XADD', KEYS[3], 'MAXLEN', 1, '*', 'rung', 1)
redis.call('EXPIRE', KEYS[3], ARGV[4])
return 1
"""


@dataclass(frozen=True, slots=True)
class Ticket:
    """That somebody wants rows that are read from now on."""

    epoch: bytes
    number: int


@dataclass(frozen=True, slots=True)
class Take:
    """There are rows that are new enough."""

    version: str
    parts: int


@dataclass(frozen=True, slots=True)
class LoadTurn:
    """It is for us to load: the lock is ours.

    Attributes:
        token: by which the lock knows us.
        epoch: of the numbers.
        covers: the last number that was drawn before the lock was ours.
        wanted: how many were drawn since rows were read last, ours included.
    """

    token: str
    epoch: bytes
    covers: int
    wanted: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Somebody else loads. Look again when the bell has rung, or after so many seconds."""

    seconds: float
    bell: bytes


class Lost(Exception):
    """The server knows our number no more: draw another."""


class Alone(Exception):
    """What was read for us cannot be shared."""


class Room:
    """What one kind of worker shares on the server; used for one load."""

    def __init__(self, client: "redis.Redis", identity: str) -> None:
        """Enter, over this client, the room of this fingerprint."""
        self._client = client
        self._name = f"{PREFIX}:{{{identity}}}"  # in braces: a cluster keeps them on one server
        self._keys = [f"{self._name}:{what}" for what in ("state", "lock", "bell")]

    def ask(self) -> Ticket:
        """Draw a number. What is read from now on is wanted."""
        epoch, number = self._run(_ASK, secrets.token_hex(8), STATE_KEPT)
        return Ticket(epoch, number)

    def look(self, ticket: Ticket, without: str = "") -> Take | LoadTurn | Wait:
        """What to do now.

        Args:
            ticket: ours.
            without: a version that we could not take.

        Raises:
            Lost: draw another number.
            Alone: load without the others.
        """
        token = secrets.token_hex(16)
        match self._run(_LOOK, ticket.epoch, ticket.number, token, _ms(LOCK), without):
            case [b"take", version, parts]:
                return Take(version.decode(), parts)
            case [b"load", covers, wanted]:
                return LoadTurn(token, ticket.epoch, int(covers), wanted)
            case [b"wait", left, bell]:
                return Wait(min(LOOK_INTERVAL, max(left, 1) / 1000), bell)
            case [b"alone"]:
                raise Alone
        raise Lost

    def wait(self, wait: Wait) -> None:
        """Return when the bell has rung since, or the time is over."""
        self._client.xread({self._keys[2]: wait.bell}, count=1, block=max(1, _ms(wait.seconds)))

    @contextmanager
    def held(self, turn: LoadTurn) -> Iterator[None]:
        """Keep the lock for as long as the block takes."""
        over = threading.Event()

        def renew() -> None:
            while not over.wait(LOCK / 3):
                with suppress(redis.RedisError, OSError):  # then it is lost, and what we publish refused
                    self._run(_RENEW, turn.token, _ms(LOCK))

        thread = threading.Thread(target=renew, name="shared-lock", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def publish(self, turn: LoadTurn, version: str, parts: Iterable[bytes]) -> bool:
        """Hand these rows to all whose numbers they satisfy; False if the lock was lost meanwhile."""
        count = 0
        for part in parts:
            self._client.set(self._part(version, count), part, ex=ROWS_KEPT)
            count += 1
        old = self._run(_PUBLISH, turn.token, turn.epoch, turn.covers, version, count)
        # Whoever takes the last but one is still at it; nobody wants the one before that.
        gone = (version, count) if old == 0 else (old[0].decode(), old[1])
        self._drop(*gone)
        return bool(old)

    def release(self, turn: LoadTurn, *, alone: bool = False) -> None:
        """Give the lock away.

        Args:
            turn: ours.
            alone: tell those who wait to load for themselves.
        """
        self._run(_RELEASE, turn.token, turn.epoch, turn.covers if alone else "", STATE_KEPT)

    def parts(self, take: Take) -> Iterator[bytes]:
        """The parts of the rows to take.

        Raises:
            LookupError: one is no longer there.
        """
        for number in range(take.parts):
            part: Any = self._client.get(self._part(take.version, number))
            if part is None:
                raise LookupError(take.version)
            yield part

    def _part(self, version: str, number: int) -> str:
        return f"{self._name}:{version}:{number}"

    def _drop(self, version: str, parts: int) -> None:
        if parts:
            self._client.unlink(*(self._part(version, number) for number in range(parts)))

    def _run(self, script: str, *arguments: Any) -> Any:
        return self._client.eval(script, len(self._keys), *self._keys, *arguments)


class SharedStore:
    """The server, for all repositories of an application."""

    def __init__(self, url: str) -> None:
        """Connect to nothing yet.

        Args:
            url: ``redis://…``, ``rediss://…`` or ``unix://…``; ``valkey://…`` as well.

        Raises:
            ValueError: it has a part or an option that redis-py does not know.
        """
        self._url = url.replace("valkey", "redis", 1) if url.startswith("valkey") else url
        try:
            self._client().connection_pool.make_connection()
        except TypeError as error:
            raise ValueError(str(error)) from None

    @contextmanager
    def room(self, identity: str) -> Iterator[Room]:
        """A room, over a connection of its own: a load is rare, and nothing is left to be closed.

        Args:
            identity: the fingerprint of those who share it.
        """
        with self._client() as client:
            yield Room(client, identity)

    def _client(self) -> "redis.Redis":
        return redis.Redis.from_url(
            self._url,
            socket_connect_timeout=STORE_PATIENCE,
            socket_timeout=STORE_PATIENCE,
            retry=Retry(NoBackoff(), 0),
        )


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
