"""A list of rows as JSON bytes, in the forms that FastAPI sends under a response model.

Pydantic makes them: ``Z`` for UTC, decimals and UUIDs as strings, null for NaN.
"""

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import PydanticSerializationError, to_json

from .errors import InvalidRow


class Encoder:
    """Encodes one chunk of rows after the other, so that no call holds the GIL for long."""

    def __init__(self, row_type: Any = Any) -> None:
        """Encode rows of this type.

        Args:
            row_type: a pydantic model, or ``Any`` for dicts of plain values.
        """
        self._adapter: TypeAdapter[list[Any]] = TypeAdapter(list[row_type])

    def encode(self, rows: list[Any]) -> bytes:
        """The rows as JSON, comma between, without the brackets around.

        Raises:
            InvalidRow: a value has no JSON form.
        """
        try:
            return self._adapter.dump_json(rows, by_alias=True)[1:-1]
        except (PydanticSerializationError, UnicodeDecodeError) as error:
            raise InvalidRow(
                f"A row cannot be sent as JSON: {error}. Leave the field out with `fields`, or give "
                "a `schema` that says how to send it (ConfigDict(ser_json_bytes='base64') for binary data)."
            ) from error


def envelope(name: str, chunks: Iterable[bytes]) -> bytes:
    """The bytes of ``{"name": [rows]}`` from encoded chunks."""
    return b"{" + to_json(name) + b":[" + b",".join(chunk for chunk in chunks if chunk) + b"]}"


def digest(body: bytes) -> str:
    """A strong entity tag for these bytes (RFC 9110, 8.8.3)."""
    return f'"{blake2b(body, digest_size=16).hexdigest()}"'


def combine(bodies: Iterable[bytes]) -> bytes:
    """Several envelopes as one, ``{"a": [rows], "b": [rows]}``."""
    return b"{" + b",".join(body[1:-1] for body in bodies) + b"}"
