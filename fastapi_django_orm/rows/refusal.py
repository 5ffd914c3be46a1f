"""Why a row cannot be served, in words that may be logged: columns, kinds and cures, and no value."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails, PydanticSerializationError
from pydantic_core.core_schema import ErrorType

from ..errors import InvalidRow

# Pydantic's own messages name what was expected, but for these, which quote the value or somebody's error.
_PLAIN = frozenset(get_args(ErrorType)) - {
    "assertion_error",
    "get_attribute_error",
    "iteration_error",
    "mapping_type",
    "union_tag_invalid",
    "value_error",
}


def not_fitting(schema: type[Any], key: Hashable, error: ValidationError) -> InvalidRow:
    """The error of a row that a schema refuses.

    Args:
        schema: a pydantic model.
        key: the row's.
        error: pydantic's.
    """
    reasons = "; ".join(map(_reason, error.errors(include_url=False)))
    return InvalidRow(f"{_row(key)} does not fit {schema.__name__}: {reasons}.", key=key)


def without_json(
    key: Hashable, row: Any, dump: Callable[..., bytes], error: PydanticSerializationError | UnicodeError
) -> InvalidRow:
    """The error of a row that has a value without a JSON form.

    Args:
        key: the row's.
        row: a dict or an instance of a pydantic model.
        dump: encodes those of its fields that ``include`` names.
        error: what it has raised for the whole row.
    """
    column = _first_bad(row, dump)
    if column is None:
        return InvalidRow(f"{_row(key)} cannot be sent as JSON: a serializer raises an error.", key=key)
    value = row[column] if isinstance(row, Mapping) else getattr(row, column)
    what, cure = _what_and_cure(column, value, str(error))
    return InvalidRow(
        f"{_row(key)} cannot be sent as JSON: the column {column!r} holds {what}. Leave the column out with "
        f"`fields`, or give a `schema` that says how to send it: {cure}.",
        key=key,
    )


def _row(key: Hashable) -> str:
    # A number says nothing of anybody, and finds the row; another key may be an address or a secret.
    return f"The row with the key {key}" if type(key) is int else "A row"


def _reason(detail: ErrorDetails) -> str:
    where = str(detail["loc"][0]) if detail["loc"] else "the row"  # what follows may be keys of its JSON
    kind = detail["type"]
    if kind in _PLAIN:
        return f"{where}: {detail['msg']}"
    raised: Any = detail.get("ctx", {}).get("error")
    by = f" by a validator ({type(raised).__name__})" if isinstance(raised, Exception) else ""
    return f"{where}: {_kind(detail['input'])} is refused{by}, {kind}"


def _first_bad(row: Any, dump: Callable[..., bytes]) -> str | None:
    for name in row if isinstance(row, Mapping) else type(row).model_fields:
        try:
            dump(row, include={name})
        except (PydanticSerializationError, UnicodeError):
            return str(name)
    return None


def _what_and_cure(column: str, value: Any, message: str) -> tuple[str, str]:
    if isinstance(value, bytes):
        return "bytes that are not UTF-8", "model_config = ConfigDict(ser_json_bytes='base64')"
    # Of a part of it, pydantic says the kind: "Unable to serialize unknown type: <class 'a.B'>".
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
