"""The condition that a filter's values make, in Django's own lookups."""

import re
from datetime import datetime
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from math import isfinite
from typing import Any

from django.conf import settings
from django.db.models import Q
from django.utils import timezone
from django.utils.text import smart_split, unescape_string_literal

from ..errors import InvalidParameter
from .filter import Filter, declaration_of


def condition_of(where: Filter, vendor: str) -> Q:
    """Return what rows must fulfil; an empty ``Q`` if all do.

    Args:
        where: the filter.
        vendor: of the database, as Django calls it.

    Raises:
        InvalidParameter: no column can have such a value. In a handler: 422.
    """
    declared = declaration_of(where)
    given = {name: _value(name, getattr(where, name), vendor) for name in declared.lookups}
    words = [_value("search", word, vendor) for word in words_of(where.__dict__.get("search") or "")]
    if vendor == "sqlite":  # whose errors do not say what was wrong
        for name in declared.patterns:
            _check_patterns(name, words if name == "search" else [given[name]])
    found = Q(**{name: value for name, value in given.items() if value is not None})
    for word in words:
        found &= Q(*((lookup, word) for lookup in declared.search), _connector=Q.OR)
    return found


def words_of(search: str) -> list[str]:
    """The words of ``?search``, as Django's admin splits them: quotes keep several together."""
    return [
        unescape_string_literal(word) if word[0] in "\"'" and word[0] == word[-1] else word
        for word in smart_split(search)
    ]


def _check_patterns(name: str, patterns: list[str | None]) -> None:
    """Refuse what is not a regular expression to Python, whose ``re`` Django uses for SQLite."""
    for pattern in patterns:
        try:
            re.compile(pattern or "")
        except (re.error, OverflowError, RecursionError):
            raise InvalidParameter(name, "This is not a regular expression.") from None


def _value(name: str, value: Any, vendor: str) -> Any:
    """The form of a value that Django and the driver take."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, str) and "\x00" in value:
        raise InvalidParameter(name, "No row has a text with a NUL character.")
    if isinstance(value, float) and vendor == "mysql" and not isfinite(value):
        raise InvalidParameter(name, "This database does not have this number.")
    if isinstance(value, IPv4Address | IPv6Address):
        return str(value)
    if isinstance(value, datetime):
        try:
            return in_zone(value)
        except OverflowError:
            raise InvalidParameter(name, "This time is out of range.") from None
    if isinstance(value, list | tuple | set | frozenset):
        return [_value(name, each, vendor) for each in value]
    return value


def in_zone(moment: datetime) -> datetime:
    """Return a time as rows have it, with or without a zone.

    Django would warn of a zone that a client has left out, and some databases would refuse one.

    Raises:
        OverflowError: the other form cannot express the time.
    """
    if timezone.is_aware(moment) == settings.USE_TZ:
        return moment
    zone = timezone.get_default_timezone()
    return timezone.make_aware(moment, zone) if settings.USE_TZ else timezone.make_naive(moment, zone)
