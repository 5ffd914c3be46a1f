"""What processes send each other: "these rows of bbs.Topic have changed", never the rows.

A hint may be lost, doubled or late without harm, since a worker that receives one reads the database. Hence
decoding never fails: what cannot be understood (a later version of this package, another program's message)
means that anything may have changed.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

# PostgreSQL's channel and Redis'; the names of the triggers begin with it.
CHANNEL = "fastapi_django_orm"
VERSION = 1

# NOTIFY takes payloads of fewer than 8,000 bytes.
# https://www.postgresql.org/docs/current/sql-notify.html
MESSAGE_LIMIT = 7900  # bytes
READ_LIMIT = 1_000_000  # bytes, beyond which a message is not even parsed
MOST_KEYS_OF_HINT = 10_000  # beyond which a hint says "all"
MOST_KEYS_PENDING = 1000  # of one model, in PendingHints


@dataclass(frozen=True, slots=True)
class Hint:
    """Rows of a model have changed, or all may have.

    Attributes:
        label: the model's, ``"bbs.Topic"``; empty: any model.
        keys: the primary keys; those of a composite key are tuples. None: all rows.
    """

    label: str
    keys: tuple[Any, ...] | None = None


EVERYTHING = Hint("")


class PendingHints:
    """Hints that wait to be sent, merged by model: there are never more of them than models."""

    def __init__(self, most: int = MOST_KEYS_PENDING) -> None:
        """Hold at most so many keys of one model; with more, the hint says "all"."""
        self._keys: dict[str, set[Any] | None] = {}
        self._most = most

    def add(self, hint: Hint) -> None:
        """Add a hint."""
        keys = self._keys.setdefault(hint.label, set())
        if keys is None:
            return
        keys.update(hint.keys or ())
        if hint.keys is None or len(keys) > self._most:
            self._keys[hint.label] = None

    def take(self) -> list[Hint]:
        """Remove all hints, and return them."""
        keys, self._keys = self._keys, {}
        if EVERYTHING.label in keys:
            return [EVERYTHING]
        return [Hint(label, None if found is None else tuple(found)) for label, found in keys.items()]

    def __bool__(self) -> bool:
        return bool(self._keys)


def encode(hint: Hint, limit: int = MESSAGE_LIMIT) -> list[bytes]:
    """The messages for a hint: JSON ``{"v":1,"m":"bbs.Topic","k":[1,2]}``, without ``k`` for all rows.

    Keys are split over as many messages of at most ``limit`` bytes as they need. A hint with too many keys,
    or with a key that JSON cannot express, becomes one for all rows; one whose label is too long, one for
    all models.
    """
    every = _message(hint.label)
    if len(every) > limit:
        return [_message(EVERYTHING.label)]
    if hint.keys is None or len(hint.keys) > MOST_KEYS_OF_HINT:
        return [every]
    try:
        keys = [_dumps(_written(key)) for key in hint.keys]
    except (TypeError, ValueError):  # ValueError: an int of thousands of digits
        return [every]
    room = limit - len(_message(hint.label, []))
    if any(len(key) > room for key in keys):
        return [every]
    return [_message(hint.label, part) for part in parts(keys, room)]


def decode(payload: bytes | str) -> Hint:
    """The hint in a message; for all rows of the model if only its keys are unreadable.

    ``EVERYTHING`` if the message is longer than ``READ_LIMIT``, of another version, or not a hint.
    """
    if len(payload) > READ_LIMIT:
        return EVERYTHING
    try:
        message = json.loads(payload, parse_float=str)  # a float would not give a decimal key back
    except (ValueError, RecursionError):
        return EVERYTHING
    return understood(message)


def understood(message: Any) -> Hint:
    """As ``decode()``, for parsed JSON."""
    match message:
        case {"v": int(version), "m": str(label)} if version == VERSION:
            return Hint(label, _keys(message.get("k")))
    return EVERYTHING


def _dumps(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _message(label: str, keys: Sequence[bytes] | None = None) -> bytes:
    listed = b"" if keys is None else b',"k":[' + b",".join(keys) + b"]"
    return b'{"v":%d,"m":%s%s}' % (VERSION, _dumps(label), listed)


def parts(written: Sequence[bytes], room: int) -> Iterator[list[bytes]]:
    """As many keys at a time as fit into so many bytes, with commas between them."""
    part: list[bytes] = []
    size = 0
    for key in written:
        if part and size + len(key) > room:
            yield part
            part, size = [], 0
        part.append(key)
        size += len(key) + 1
    if part:
        yield part


def _written(key: Any) -> Any:
    """A key as JSON has it; ``to_python`` of the model's field makes the key of it again."""
    match key:
        case bool() | None:
            raise TypeError
        case int() | str():
            return key
        case tuple() | list():
            return [_written(part) for part in key]
        case UUID() | Decimal() | float() | date() | datetime() | time():
            return str(key)
    raise TypeError


def _keys(written: Any) -> tuple[Any, ...] | None:
    if not isinstance(written, list) or len(written) > MOST_KEYS_OF_HINT:
        return None
    try:
        return tuple(_read(key) for key in written)
    except TypeError:
        return None


def _read(key: Any) -> Any:
    match key:
        case bool():
            raise TypeError
        case int() | str():
            return key
        case list() if not any(isinstance(part, list) for part in key):
            return tuple(_read(part) for part in key)
    raise TypeError
