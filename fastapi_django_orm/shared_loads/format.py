"""Rows as bytes that another process may trust.

A table's pages go in *parts* of about a megabyte, in a binary layout around the rows' JSON. Nothing in it is
code (pickle would be). A *manifest* says whom the rows are for, and names each part by size and digest. It is
signed, so a client of the server without the application's key can neither change nor forge rows, nor pass
older rows for newer ones.

A page in a part is whether it is the first, its size in rows, that of its keys and that of its JSON in bytes;
then the keys as JSON, how long each row is, and the rows.
"""

import hmac
import json
import struct
from array import array
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any
from uuid import UUID

from ..errors import DjangoORMError
from ..memory.pages import HEAD, Page

FORMAT = 2
PART = 2**20  # bytes, about
SIGNED = 16  # bytes of a signature, with which a manifest begins

_PAGE = struct.Struct("<?III")
_KEYS: dict[str, Any] = {"int": int, "str": str, "UUID": UUID}


class NotPortable(DjangoORMError):
    """A table has keys that JSON cannot express, and stays in the process that has read it."""


class NotGenuine(DjangoORMError):
    """These bytes are not what another worker of this application has written."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a load has led to.

    Attributes:
        wanted_by: the numbers of the workers that had asked before it began to read: random, and each drawn
            for one question. No other may take its rows.
        version: under which the rows are on the server.
        kind: the type of the rows' keys.
        parts: the size and the digest of each part; None if every worker is to load for itself.
        before: the version that this one replaces, and how many parts that has.
    """

    wanted_by: Sequence[str]
    version: str = ""
    kind: str = ""
    parts: list[tuple[int, str]] | None = None
    before: tuple[str, int] = ("", 0)

    def signed(self, key: bytes) -> bytes:
        """The manifest as bytes, after their signature."""
        body = json.dumps(asdict(self)).encode()
        return _signature(key, body) + body

    @classmethod
    def verified(cls, signed: bytes, key: bytes) -> "Manifest":
        """The manifest that was signed with this key, or NotGenuine."""
        body = signed[SIGNED:]
        if not hmac.compare_digest(signed[:SIGNED], _signature(key, body)):
            raise NotGenuine("what stands for shared rows is damaged, or another application's")
        return cls(**json.loads(body))


def _signature(key: bytes, body: bytes) -> bytes:
    return blake2b(body, digest_size=SIGNED, key=key).digest()


def digest_of(part: bytes) -> str:
    """What identifies a part in a manifest, beside its size."""
    return blake2b(part, digest_size=16).hexdigest()


def kind_of(pages: Sequence[Page]) -> str:
    """The type of these pages' keys, or NotPortable: it cannot be written, or not the same for all."""
    kinds = set().union(*(map(type, page.keys) for page in pages)) or {int}
    names = [name for name, kind in _KEYS.items() if {kind} == kinds]
    if not names:
        raise NotPortable(f"keys of {kinds} are not shared")
    return names[0]


def pack(pages: Iterable[Page]) -> Iterator[bytes]:
    """Pages whose rows are JSON alone and whose keys are of one ``kind_of()``, as parts."""
    body = bytearray()
    for page in pages:
        if len(body) >= PART:
            yield bytes(body)
            body = bytearray()
        keys = json.dumps(page.keys, default=str).encode()
        body += _PAGE.pack(page.start is HEAD, len(page), len(keys), len(page.json))
        body += keys
        body += page.ends
        body += page.json
    if body:
        yield bytes(body)


def unpack(parts: Iterable[bytes], kind: str) -> Iterator[Page]:
    """The pages of these parts, which must have been verified: nothing is checked here."""
    for part in parts:
        body = memoryview(part)
        while body:
            page, body = _unpack_page(body, _KEYS[kind])
            yield page


def _unpack_page(body: memoryview, kind: Any) -> tuple[Page, memoryview]:
    is_head, rows, keys_length, json_length = _PAGE.unpack_from(body)
    first, second = _PAGE.size + keys_length, _PAGE.size + keys_length + rows * array("I").itemsize
    last = second + json_length
    written = json.loads(bytes(body[_PAGE.size : first]))
    keys = tuple(map(UUID, written)) if kind is UUID else tuple(written)
    start: Hashable = HEAD if is_head else keys[0]
    ends = array("I", bytes(body[first:second]))
    return Page.restored(start, keys, bytes(body[second:last]), ends), body[last:]
