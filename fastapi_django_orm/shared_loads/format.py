"""A table as bytes that another process may trust: what a worker has loaded, on its way to the others.

A strict binary layout around the JSON that the rows are kept as anyhow. Nothing in it is code (pickle would
be), and whoever lacks the key of the application can neither change it nor make one.

Each part is a fingerprint of 16 bytes and some pages; before the pages of the first stands a header. A page
is its size in rows, that of its keys and that of its JSON in bytes; then the keys as JSON, how long each row
is, and the rows.
"""

import hmac
import json
import struct
from array import array
from collections.abc import Hashable, Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Any
from uuid import UUID

from ..errors import DjangoORMError
from ..rows.codec import PARSERS, RowCodec
from ..snapshots.pages import HEAD, Page

FORMAT = 1
PART = 2**20  # bytes, about

_SIGNED = 16
_LENGTH = struct.Struct("<I")
_PAGE = struct.Struct("<?III")
_KEYS: dict[str, Any] = {"int": int, "str": str, "UUID": UUID}
_TYPES = {kind.__name__: kind for kind in PARSERS}


class NotPortable(DjangoORMError):
    """A table has what JSON does not say all of, and stays in the process that has read it."""


class NotGenuine(DjangoORMError):
    """These bytes are not what another worker of this application has written."""


def pack(pages: Sequence[Page], keyed: bool, codec: RowCodec, key: bytes) -> Iterator[bytes]:
    """A table's parts, at least one.

    Args:
        pages: the table's.
        keyed: whether its rows have keys.
        codec: knows the columns' types.
        key: what to sign with, of up to 64 bytes; another for each table.

    Raises:
        NotPortable: a row has more than its JSON, or a key of a kind that cannot be written.
    """
    kinds = _kinds(pages) if keyed else []
    types = [kind and kind.__name__ for kind in codec.types.values()]
    header = json.dumps({"keys": kinds, "types": types, "pages": len(pages)}).encode()
    body, number = bytearray(_LENGTH.pack(len(header)) + header), 0
    for page in pages:
        if len(body) >= PART:
            yield _signature(key, number, body) + body
            body, number = bytearray(), number + 1
        _pack_page(page, kinds, body)
    yield _signature(key, number, body) + body


def unpack(parts: Iterable[bytes], codec: RowCodec, key: bytes) -> Iterator[Page]:
    """The pages of a table, of which each part is checked before it is used.

    Args:
        parts: what ``pack()`` has made.
        codec: learns the columns' types.
        key: what was signed with.

    Raises:
        NotGenuine: something was changed, or is missing; or a column has another type here.
    """
    kinds: list[str] = []
    expected, rows = -1, 0  # no part, no header
    for number, part in enumerate(parts):
        view = memoryview(part)
        body = view[_SIGNED:]
        if not hmac.compare_digest(bytes(view[:_SIGNED]), _signature(key, number, body)):
            raise NotGenuine("a part of a shared snapshot is damaged, or another application's")
        try:
            if number == 0:
                kinds, expected, body = _header(body, codec)
            while body:
                page, body = _unpack_page(body, kinds, rows)
                rows, expected = rows + len(page), expected - 1
                yield page
        except (struct.error, ValueError, KeyError, TypeError) as error:
            raise NotGenuine(f"a shared snapshot cannot be read: {error}") from error
    if expected != 0:
        raise NotGenuine("a part of a shared snapshot is missing")


def is_portable(pages: Sequence[Page]) -> bool:
    """Whether the rows' JSON says it all."""
    return all(page.objects is None for page in pages)


def _signature(key: bytes, number: int, body: "bytes | bytearray | memoryview") -> bytes:
    signature = blake2b(_LENGTH.pack(number), digest_size=_SIGNED, key=key)
    signature.update(body)
    return signature.digest()


def _kinds(pages: Sequence[Page]) -> list[str]:
    """The types of the keys' parts, after ``tuple`` if there may be several."""
    first = next((key for page in pages for key in page.keys), 0)
    kinds = [type(part).__name__ for part in (first if isinstance(first, tuple) else (first,))]
    if not _KEYS.keys() >= set(kinds):
        raise NotPortable(f"keys like {first!r} are not shared")
    return ["tuple", *kinds] if isinstance(first, tuple) else kinds


def _pack_page(page: Page, kinds: Sequence[str], body: bytearray) -> None:
    if page.objects is not None:
        raise NotPortable("a row has more than its JSON")
    keys = json.dumps([_written(key, kinds) for key in page.keys]).encode() if kinds else b""
    body += _PAGE.pack(page.start is HEAD, len(page), len(keys), len(page.json))
    body += keys
    body += page.ends
    body += page.json


def _written(key: Any, kinds: Sequence[str]) -> Any:
    if kinds[0] == "tuple":
        if type(key) is not tuple or len(key) != len(kinds) - 1:
            raise NotPortable("not all keys are of one kind")
        return [_written(part, [kind]) for part, kind in zip(key, kinds[1:], strict=True)]
    if type(key) is not _KEYS[kinds[0]]:
        raise NotPortable("not all keys are of one kind")
    return str(key) if kinds[0] == "UUID" else key


def _header(body: memoryview, codec: RowCodec) -> tuple[list[str], int, memoryview]:
    (length,) = _LENGTH.unpack_from(body)
    header = json.loads(bytes(body[_LENGTH.size : _LENGTH.size + length]))
    # A worker that has met nothing but nulls in a column knows no type, and another may.
    if not codec.expect([None if name is None else _TYPES[name] for name in header["types"]]):
        raise NotGenuine("a column of a shared snapshot has another type here")
    return header["keys"], header["pages"], body[_LENGTH.size + length :]


def _unpack_page(body: memoryview, kinds: Sequence[str], before: int) -> tuple[Page, memoryview]:
    is_head, rows, keys_length, json_length = _PAGE.unpack_from(body)
    ends, place = [], _PAGE.size
    for length in (keys_length, rows * 4, json_length):
        place += length
        ends.append(place)
    if place > len(body):
        raise ValueError("it ends too early")
    keys = _read_keys(body[_PAGE.size : ends[0]], kinds, range(before, before + rows))
    row_ends = array("I", bytes(body[ends[0] : ends[1]]))
    if len(keys) != rows or rows == 0 or row_ends[-1] + rows - 1 != json_length:
        raise ValueError("its lengths contradict each other")
    start: Hashable = HEAD if is_head else keys[0]
    return Page.restored(start, keys, bytes(body[ends[1] : ends[2]]), row_ends), body[place:]


def _read_keys(written: memoryview, kinds: Sequence[str], numbers: range) -> tuple[Hashable, ...]:
    if not kinds:
        return tuple(numbers)
    keys = json.loads(bytes(written))
    if kinds in (["int"], ["str"]):
        return tuple(keys)
    return tuple(_read(key, kinds) for key in keys)


def _read(key: Any, kinds: Sequence[str]) -> Hashable:
    if kinds[0] == "tuple":
        return tuple(_read(part, [kind]) for part, kind in zip(key, kinds[1:], strict=True))
    kind: type[Any] = _KEYS[kinds[0]]
    return UUID(key) if kind is UUID else kind(key)
