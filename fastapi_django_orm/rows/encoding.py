"""Rows as JSON bytes, in the forms that FastAPI sends under a response model.

Pydantic makes them: ``Z`` for UTC, decimals and UUIDs as strings, null for NaN.
"""

from collections.abc import Hashable, Iterable
from hashlib import blake2b, sha256
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import PydanticSerializationError, to_json

from ..errors import InvalidRow

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
            return self._dump(row, by_alias=True)
        except (PydanticSerializationError, UnicodeDecodeError) as error:
            raise InvalidRow(
                f"The row with the key {key!r} cannot be sent as JSON: {error}. Leave the field out with "
                "`fields`, or give a `schema` that says how to send it (ConfigDict(ser_json_bytes='base64') "
                "for binary data)."
            ) from error


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
