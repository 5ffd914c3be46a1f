"""Rows as JSON bytes, in the forms that FastAPI sends under a response model.

Pydantic makes them: ``Z`` for UTC, decimals and UUIDs as strings, null for NaN. Time zones are texts, as they
are to pydantic where a schema names their type. The errors of rows that cannot be served may be logged, so
they name columns, types and cures, and no value.
"""

from collections.abc import Hashable, Iterable, Mapping
from hashlib import blake2b, sha256
from typing import Any, get_args
from zoneinfo import ZoneInfo

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, PydanticSerializationError, from_json, to_json
from pydantic_core.core_schema import ErrorType

from ..errors import InvalidRow
from .row import Row

CLOSING = b"]}"
DIGEST_SIZE = 16  # bytes

# Pydantic's own messages name what was expected, except these, which quote the value or another error.
_PLAIN = frozenset(get_args(ErrorType)) - {
    "assertion_error",
    "get_attribute_error",
    "iteration_error",
    "mapping_type",
    "union_tag_invalid",
    "value_error",
}


class Encoder:
    """Encodes rows one by one, so that each can be sent alone and no call holds the GIL for long."""

    def __init__(self, row_type: Any = Any) -> None:
        self._dump = TypeAdapter(row_type).dump_json

    def encode(self, key: Hashable, row: Any) -> bytes:
        """Return the row as JSON; the key is for the message.

        Raises:
            InvalidRow: a value has no JSON form.
        """
        try:
            return self._dump(row, by_alias=True, fallback=_text_of)
        except (PydanticSerializationError, UnicodeError) as error:
            # Not `from error`: its text may have the value, and a traceback shows it.
            raise self._without_json(key, row, str(error)) from None

    def _without_json(self, key: Hashable, row: Any, message: str) -> InvalidRow:
        column = self._first_bad(row)
        if column is None:
            return InvalidRow(f"{_row(key)} cannot be sent as JSON: a serializer raises an error.", key=key)
        value = row[column] if isinstance(row, Mapping) else getattr(row, column)
        what, cure = _what_and_cure(column, value, message)
        return InvalidRow(
            f"{_row(key)} cannot be sent as JSON: the column {column!r} holds {what}. Leave the column out "
            f"with `fields`, or give a `schema` that says how to send it: {cure}.",
            key=key,
        )

    def _first_bad(self, row: Any) -> str | None:
        for name in row if isinstance(row, Mapping) else type(row).model_fields:
            try:
                self._dump(row, by_alias=True, fallback=_text_of, include={name})
            except (PydanticSerializationError, UnicodeError):
                return str(name)
        return None


def _text_of(value: Any) -> str:
    """Return the form of a value that pydantic has none for.

    Raises:
        TypeError: there is none on which pydantic, Django and Django REST framework agree.
    """
    if isinstance(value, ZoneInfo):
        return str(value)
    raise TypeError(f"<class '{type(value).__module__}.{type(value).__qualname__}'>")


def not_fitting(schema: type[Any], key: Hashable, error: ValidationError) -> InvalidRow:
    """Return the error of a row that a schema refuses."""
    reasons = "; ".join(map(_reason, error.errors(include_url=False)))
    return InvalidRow(f"{_row(key)} does not fit {schema.__name__}: {reasons}.", key=key)


def _row(key: Hashable) -> str:
    # A number identifies nobody, and finds the row; another key may be an address or a secret.
    return f"The row with the key {key}" if type(key) is int else "A row"


def _reason(detail: ErrorDetails) -> str:
    where = str(detail["loc"][0]) if detail["loc"] else "the row"  # what follows may be keys of its JSON
    kind = detail["type"]
    if kind in _PLAIN:
        return f"{where}: {detail['msg']}"
    raised: Any = detail.get("ctx", {}).get("error")
    by = f" by a validator ({type(raised).__name__})" if isinstance(raised, Exception) else ""
    return f"{where}: {_kind(detail['input'])} is refused{by}, {kind}"


def _what_and_cure(column: str, value: Any, message: str) -> tuple[str, str]:
    if isinstance(value, bytes):
        return "bytes that are not UTF-8", "model_config = ConfigDict(ser_json_bytes='base64')"
    # For a part of a value pydantic names the type: "Unable to serialize unknown type: <class 'a.B'>".
    _, found, inner = message.partition("<class '")
    kind = inner.partition("'>")[0] if found else _kind(value)
    if "surrogates" in message:
        kind += ", a text with half a character (surrogates not allowed)"
    return (
        f"a value of {kind}, which has no JSON form",
        f"{column}: Annotated[str, BeforeValidator(str)], with the function that makes a text of it",
    )


def _kind(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


plain_encoder = Encoder()  # of rows without a schema


def in_forms_of_rows(content: Any) -> Any:
    """Return a value with each row in it as ``response()`` sends it: a decimal as text, ``Z`` for UTC.

    Without a response model FastAPI would send other forms: a decimal as a number, ``+00:00``.
    """
    if isinstance(content, Row):
        try:
            return from_json(plain_encoder.encode(None, content))
        except InvalidRow:  # FastAPI may know what to do with it
            return content
    if type(content) is dict:
        return {key: in_forms_of_rows(value) for key, value in content.items()}
    if type(content) in (list, tuple):
        return [in_forms_of_rows(item) for item in content]
    return content


def opening(name: str) -> bytes:
    """Return what stands before the rows in ``{"name": [rows]}``; ``CLOSING`` stands after them."""
    return b"{" + to_json(name) + b":["


def digest(body: bytes | bytearray) -> bytes:
    """Return a digest of ``DIGEST_SIZE`` bytes."""
    return blake2b(body, digest_size=DIGEST_SIZE).digest()


def tag_of(body: bytes) -> bytes:
    """Return an entity tag, without quotes: the same in every worker."""
    return sha256(body).hexdigest()[:32].encode()


def combine(bodies: Iterable[bytes]) -> bytes:
    """Join several envelopes into one, ``{"a": [rows], "b": [rows]}``."""
    return b"{" + b",".join(body[1:-1] for body in bodies) + b"}"
