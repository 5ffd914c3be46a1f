"""The condition that a filter's values make, in Django's own lookups."""

from datetime import datetime
from enum import Enum
from typing import Any

from django.conf import settings
from django.db.models import Q
from django.utils import timezone

from ..errors import InvalidParameter
from .filter import Filter, declaration_of


def condition_of(where: Filter) -> Q:
    """Return what rows must fulfil; an empty ``Q`` if all do.

    Raises:
        InvalidParameter: no column can have such a value. In a handler: 422.
    """
    declared = declaration_of(where)
    given = {name: getattr(where, name) for name in declared.lookups}
    found = Q(**{name: _value(name, value) for name, value in given.items() if value is not None})
    for word in (where.__dict__.get("search") or "").split():
        text = _value("search", word)
        found &= Q(*((lookup, text) for lookup in declared.search), _connector=Q.OR)
    return found


def _value(name: str, value: Any) -> Any:
    """The form of a value that Django takes."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, str) and "\x00" in value:
        raise InvalidParameter(name, "No row has a text with a NUL character.")
    if isinstance(value, datetime):
        try:
            return in_zone(value)
        except OverflowError:
            raise InvalidParameter(name, "This time is out of range.") from None
    if isinstance(value, list | tuple | set | frozenset):
        return [_value(name, each) for each in value]
    return value


def in_zone(moment: datetime) -> datetime:
    """Return a time as rows have it, with or without a zone.

    Django would warn of a zone that a client has left out, and some databases would refuse one.

    Raises:
        OverflowError: there is no such time in the other form.
    """
    if timezone.is_aware(moment) == settings.USE_TZ:
        return moment
    zone = timezone.get_default_timezone()
    return timezone.make_aware(moment, zone) if settings.USE_TZ else timezone.make_naive(moment, zone)
