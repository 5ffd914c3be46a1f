"""Where workers agree on who loads, and share what was loaded: a few keys in Redis or Valkey.

A worker that wants rows draws a random *number* and leaves it on the server. The one that gets the lock
takes, in the same step, all numbers that are there, and only then begins to read. It signs them with the
rows, and so a worker that finds its number among them knows that the rows were read after it had asked:
whatever any clock says, whatever the server has lost or got back, and whatever else writes to it.

Nothing here is trusted. What the server returns is bounded in size, and verified by ``format``; what it
should have and has not is left there again with the next look.

Waiting is ``XREAD BLOCK`` on a stream that is rung like a bell, since a notification could come before the
subscription; the bell only means that it is time to look.
"""

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from .format import SIGNED, NotGenuine

PREFIX = "fastapi_django_orm:shared"
STORE_PATIENCE = 2.0  # seconds to connect, or for an answer
LOCK = 3.0  # seconds that a lock outlives its holder
ROWS_KEPT = 60  # seconds that rows stay for those who asked before they were read
STATE_KEPT = 3600  # seconds that the manifest and numbers stay
LOOK_INTERVAL = 1.0  # seconds between two looks
DRAWN = 16  # characters of a number
MOST_NUMBERS = 10_000  # and bytes of a manifest; more is not ours, and removed
MOST_BYTES = 2**20

# The state is a hash: the numbers, each a field of its own, and the manifest of the last load.
_LOOK = f"""
local state, lock, bell = KEYS[1], KEYS[2], KEYS[3]
local number, seen, token, patience = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
if redis.call('HSTRLEN', state, 'manifest') > {MOST_BYTES} or redis.call('HLEN', state) > {MOST_NUMBERS} then
    redis.call('DEL', state)
end
local manifest = redis.call('HGET', state, 'manifest') or ''
local signature = string.sub(manifest, 1, {SIGNED})
if manifest ~= '' and seen ~= '' and signature ~= seen then return {{'manifest', manifest}} end
if redis.call('SET', lock, token, 'NX', 'PX', patience) then
    local numbers = {{}}
    for _, name in ipairs(redis.call('HKEYS', state)) do
        if #name == {DRAWN} then
            table.insert(numbers, name)
            redis.call('HDEL', state, name)
        end
    end
    return {{'load', manifest, numbers}}
end
redis.call('HSET', state, number, '')
redis.call('EXPIRE', state, {STATE_KEPT})
local left = redis.call('PTTL', lock)
if left < 0 or left > patience then redis.call('PEXPIRE', lock, patience) end
local rung = redis.call('XREVRANGE', bell, '+', '-', 'COUNT', 1)
return {{'wait', signature, left, rung[1] and rung[1][1] or '0-0'}}
"""

_RENEW = """
return redis.call('GET', KEYS[2]) == ARGV[1] and redis.call('PEXPIRE', KEYS[2], ARGV[2])
"""

_RELEASE = f"""
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[2])
if ARGV[2] ~= '' then redis.call('HSET', KEYS[1], 'manifest', ARGV[2]) end
redis.call('EXPIRE', KEYS[1], {STATE_KEPT})
redis.call('XADD', KEYS[3], 'MAXLEN', 1, '*', 'rung', 1)
redis.call('EXPIRE', KEYS[3], {STATE_KEPT})
return 1
"""


def draw() -> str:
    """A number for one question."""
    return secrets.token_hex(DRAWN // 2)


NONE_SEEN = b"none"  # a signature that no manifest has


@dataclass(frozen=True, slots=True)
class Loaded:
    """Another worker has loaded since our last look; here is the manifest, not verified."""

    manifest: bytes


@dataclass(frozen=True, slots=True)
class LoadTurn:
    """It is for us to load: the lock is ours.

    Attributes:
        token: identifies us to the lock.
        manifest: the last load's, not verified; empty if there is none.
        numbers: those that others, and perhaps we, have left before the lock was ours.
    """

    token: str
    manifest: bytes
    numbers: list[str]


@dataclass(frozen=True, slots=True)
class Wait:
    """Another worker loads. Look again when the bell has rung, or after so many seconds."""

    signature: bytes
    seconds: float
    bell: bytes


class Gone(Exception):
    """Rows were dropped since."""


class Room:
    """What workers with one identity share on the server; used for one load."""

    def __init__(self, client: "redis.Redis", identity: str) -> None:
        self._client = client
        self._name = f"{PREFIX}:{{{identity}}}"  # in braces: a cluster keeps them on one server
        self._keys = [f"{self._name}:{what}" for what in ("state", "lock", "bell")]

    def look(self, number: str, seen: bytes) -> Loaded | LoadTurn | Wait:
        """What to do now; our number is left for the next loader unless there is something to do.

        Args:
            number: ours.
            seen: the signature of the last manifest that we know of; empty with the first look, since no
                manifest from before it can have our number.
        """
        token = secrets.token_hex(16)
        match self._run(_LOOK, number, seen, token, _ms(LOCK)):
            case [b"manifest", bytes(manifest)]:
                return Loaded(manifest)
            case [b"load", bytes(manifest), list(numbers)]:
                return LoadTurn(token, manifest, [each.decode(errors="replace") for each in numbers])
            case [b"wait", bytes(signature), int(left), bytes(bell)]:
                seconds = left / 1000 if 0 < left < _ms(LOOK_INTERVAL) else LOOK_INTERVAL
                return Wait(signature or NONE_SEEN, seconds, bell)
        raise NotGenuine("the server with shared rows gives an answer that is not ours")

    def wait(self, wait: Wait) -> None:
        """Return when the bell has rung since, or the time is over."""
        self._client.xread({self._keys[2]: wait.bell}, count=1, block=max(1, _ms(wait.seconds)))

    @contextmanager
    def held(self, turn: LoadTurn) -> Iterator[None]:
        """Keep the lock for as long as the block takes."""
        over = threading.Event()

        def renew() -> None:
            while not over.wait(LOCK / 3):
                with suppress(redis.RedisError, OSError):  # then it is lost, and another begins
                    self._run(_RENEW, turn.token, _ms(LOCK))

        thread = threading.Thread(target=renew, name="shared-lock", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def release(self, turn: LoadTurn, manifest: bytes) -> None:
        """Release the lock, and leave this manifest to all who wait; an empty one changes nothing."""
        self._run(_RELEASE, turn.token, manifest)

    def put(self, version: str, number: int, part: bytes) -> None:
        """Leave a part of some rows."""
        self._client.set(self._part(version, number), part, ex=ROWS_KEPT)

    def part(self, version: str, number: int, size: int) -> bytes:
        """A part of some rows, or whatever stands in its place, up to a byte more than it should have."""
        part: bytes = self._client.getrange(self._part(version, number), 0, size)  # type: ignore[assignment]
        if not part:
            raise Gone
        return part

    def drop(self, version: str, parts: int) -> None:
        """Remove rows that no worker takes any more."""
        if parts:
            self._client.unlink(*(self._part(version, number) for number in range(parts)))

    def clear(self) -> None:
        """Remove all but rows: what is damaged would stay so. Others leave their numbers again."""
        self._client.unlink(*self._keys)

    def _part(self, version: str, number: int) -> str:
        return f"{self._name}:{version}:{number}"

    def _run(self, script: str, *arguments: str | bytes | int) -> object:
        return self._client.eval(script, len(self._keys), *self._keys, *arguments)


def connect(url: str) -> "redis.Redis":
    """A client for one load, which is rare, so nothing stays open; ValueError if redis-py refuses the URL.

    It is ``redis://…``, ``rediss://…`` or ``unix://…``; ``valkey://…`` as well.
    """
    client = redis.Redis.from_url(
        url.replace("valkey", "redis", 1) if url.startswith("valkey") else url,
        socket_connect_timeout=STORE_PATIENCE,
        socket_timeout=STORE_PATIENCE,
        retry=Retry(NoBackoff(), 0),
    )
    try:
        client.connection_pool.make_connection()  # connects to nothing
    except TypeError as error:
        raise ValueError(str(error)) from None
    return client


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
