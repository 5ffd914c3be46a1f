"""Cursors: the place of a page's last row as a text, for clients to send back.

A cursor has the values that a list is ordered by. It is signed with ``SECRET_KEY``, so what the database gets
is what it has given, and belongs to one list and order. It is not encrypted.
"""

from collections.abc import Callable, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from django.core.signing import BadSignature, Signer

from ..errors import InvalidParameter, InvalidRepository

_PLAIN = frozenset({type(None), bool, int, float, str})  # which JSON gives back as they were

_MICROSECOND = timedelta(microseconds=1)

# How to write values of other types, and how to read them.
_FORMS: dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "datetime": (datetime, datetime.isoformat, datetime.fromisoformat),
    "date": (date, date.isoformat, date.fromisoformat),
    "time": (time, time.isoformat, time.fromisoformat),
    "duration": (timedelta, lambda value: value // _MICROSECOND, lambda number: number * _MICROSECOND),
    "decimal": (Decimal, str, Decimal),
    "uuid": (UUID, str, UUID),
}
_NAMES = {kind: name for name, (kind, _, _) in _FORMS.items()}


def cursor_of(values: Sequence[Any], order: str, label: str) -> str:
    """Return the cursor of the row with these values; the same in every worker.

    Args:
        values: as the driver gives them.
        order: what they mean.
        label: of the repository, for messages.

    Raises:
        InvalidRepository: a cursor cannot carry a value of this type.
    """
    written: list[Any] = []
    for value in values:
        kind = type(value)
        if kind in _PLAIN:
            written.append(value)
        elif kind in _NAMES:
            name = _NAMES[kind]
            written.append([name, _FORMS[name][1](value)])
        elif kind.__module__ == "ipaddress":  # of psycopg; the database reads the text
            written.append(str(value))
        else:
            raise InvalidRepository(
                f"{label}: its rows are ordered by values of the type {kind.__qualname__}, which a cursor "
                "cannot carry. Order them by numbers, texts or dates."
            )
    return _signer(order).sign_object(written)


def values_of(cursor: str, order: str) -> list[Any]:
    """Return the values of a cursor.

    Raises:
        InvalidParameter: this worker's repository has not made it, or for another order. In a handler: 422.
    """
    try:
        written = _signer(order).unsign_object(cursor)
        return [_FORMS[each[0]][2](each[1]) if isinstance(each, list) else each for each in written]
    except (BadSignature, ValueError, UnicodeError):
        raise InvalidParameter(
            "after", "This is not the `next` of a page of this list in this order. Begin without `after`."
        ) from None


def _signer(order: str) -> Signer:
    return Signer(salt=f"fastapi_django_orm.queries {order}")
