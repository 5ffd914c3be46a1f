"""Rows as JSON bytes, in the forms that FastAPI sends under a response model.

Pydantic makes them: ``Z`` for UTC, decimals and UUIDs as strings, null for NaN. Time zones are texts, as they
are to pydantic where a schema names their type.
"""

from collections.abc import Hashable, Iterable
from hashlib import blake2b, sha256
from typing import Any
from zoneinfo import ZoneInfo

from pydantic import TypeAdapter
from pydantic_core import PydanticSerializationError, from_json, to_json

from ..errors import InvalidRow
from .refusal import without_json
from .row import Row

CLOSING = b"]}"
DIGEST_SIZE = 16  # bytes


class Encoder:
    """Encodes rows one by one, so that each can be sent alone and no call holds the GIL for long."""

    def __init__(self, row_type: Any = Any) -> None:
        """Encode rows of this type.

        Args:
            row_type: a pydantic model, or ``Any`` for dicts of plain values.
        """
        self._dump = TypeAdapter(row_type).dump_json

    def encode(self, key: Hashable, row: Any) -> bytes:
        """The row as JSON.

        Args:
            key: the row's, for the message.
            row: what to encode.

        Raises:
            InvalidRow: a value has no JSON form.
        """
        try:
            return self._dump(row, by_alias=True, fallback=_text_of)
        except (PydanticSerializationError, UnicodeError) as error:
            # Not `from error`: its text may have the value, and a traceback shows it.
            raise without_json(key, row, self._dump_part, error) from None

    def _dump_part(self, row: Any, include: set[str]) -> bytes:
        return self._dump(row, by_alias=True, fallback=_text_of, include=include)


def _text_of(value: Any) -> str:
    """The form of a value that pydantic has none for.

    Raises:
        TypeError: there is none on which pydantic, Django and Django REST framework agree.
    """
    if isinstance(value, ZoneInfo):
        return str(value)
    raise TypeError(f"<class '{type(value).__module__}.{type(value).__qualname__}'>")


_any = Encoder()


def in_forms_of_rows(content: Any) -> Any:
    """A value with rows in it, the rows as ``response()`` sends them: a decimal as text, ``Z`` for UTC.

    Without a response model FastAPI would send others: a decimal as a number, ``+00:00``.
    """
    if isinstance(content, Row):
        try:
            return from_json(_any.encode(None, content))
        except InvalidRow:  # FastAPI may know what to do with it
            return content
    if type(content) is dict:
        return {key: in_forms_of_rows(value) for key, value in content.items()}
    if type(content) in (list, tuple):
        return [in_forms_of_rows(item) for item in content]
    return content


def opening(name: str) -> bytes:
    """What stands before the rows in ``{"name": [rows]}``; ``CLOSING`` stands after them."""
    return b"{" + to_json(name) + b":["


def digest(body: bytes | bytearray) -> bytes:
    """A fingerprint of these bytes, of ``DIGEST_SIZE`` bytes."""
    return blake2b(body, digest_size=DIGEST_SIZE).digest()


def tag_of(body: bytes) -> bytes:
    """An entity tag for bytes, without quotes: alike wherever these are."""
    return sha256(body).hexdigest()[:32].encode()


def combine(bodies: Iterable[bytes]) -> bytes:
    """Several envelopes as one, ``{"a": [rows], "b": [rows]}``."""
    return b"{" + b",".join(body[1:-1] for body in bodies) + b"}"
