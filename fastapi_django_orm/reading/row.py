"""Rows that every request shares and none can change.

A row is the ``dict`` that ``.values()`` gives, as a subclass that refuses changes: it equals a plain one, any
JSON library takes it, and ``dict(row)`` gives a copy to work on. Copying each row for each reader would cost
more than the request.
"""

from collections.abc import Callable
from copy import deepcopy
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, NoReturn
from uuid import UUID

from django.db.models import Model, QuerySet
from django.db.models.manager import BaseManager
from django.utils.functional import LazyObject, Promise
from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema

from ..errors import LazyValue

SCALARS: frozenset[type] = frozenset(
    {type(None), bool, int, float, str, bytes, Decimal, UUID} | {date, datetime, time, timedelta}
)


def _refuse(self: object, *args: object, **kwargs: object) -> NoReturn:
    raise TypeError("A cached row is shared by every request: change a copy, dict(row).")


class Row(dict[str, Any]):
    """A row as ``.values()`` gives it, which cannot be changed."""

    __slots__ = ()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Let handlers name rows as their return type: to pydantic they are dicts."""
        return handler(dict[str, Any])

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __copy__(self) -> dict[str, Any]:
        return dict(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return {key: deepcopy(value, memo) for key, value in self.items()}

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return type(self), (dict(self),)


class RowList(list[Any]):
    """A list inside a row (JSON, an array), which cannot be changed."""

    __slots__ = ()
    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse
    append = extend = insert = pop = remove = clear = sort = reverse = _refuse

    def __copy__(self) -> list[Any]:
        return list(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> list[Any]:
        return [deepcopy(value, memo) for value in self]

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return type(self), (list(self),)


def freeze(value: Any) -> Any:
    """Return the value in a form that can be shared.

    Raises:
        LazyValue: it holds a model instance, a query, a relation's manager or a lazy object.
    """
    if type(value) in SCALARS:
        return value
    match value:
        case dict():
            return Row((key, freeze(item)) for key, item in value.items())
        case list():
            return RowList(map(freeze, value))
        case tuple() if type(value) is tuple:
            return tuple(map(freeze, value))
        case set():
            return frozenset(map(freeze, value))
        case memoryview() | bytearray():  # what psycopg2 gives for a BinaryField
            return bytes(value)
        case Promise():  # a translated text: this is the last place that may ask for the language
            return str(value)
        case Model() | QuerySet() | BaseManager() | LazyObject():
            raise LazyValue(
                f"{type(value).__name__} would query when it is touched, and the event loop may not. "
                "Return plain values: name columns in `fields`, use .values(), or give the schema a "
                "field with a type of its own (a nested model instead of Any)."
            )
    return value


def copied(row: Any) -> Any:
    """Return a copy that its reader may change."""
    return row.model_copy(deep=True)
