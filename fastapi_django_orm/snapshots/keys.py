"""What a primary key must be for rows to be kept by it: found again, and the same in every process.

The keys that databases give are. A project's own field may make anything of them, and what that lacks would
show late: rows that a refresh doubles, entity tags that each worker has of its own.
"""

from collections.abc import Hashable, Iterable
from enum import Enum
from typing import Any

from ..errors import InvalidRow
from ..rows.row import SCALARS

_ADDRESS = " at 0x"  # in the text that Python gives an object of which it knows nothing else


def text_of(key: Hashable) -> str:
    """A key as text, the same in every process."""
    # Python shows a tuple's parts as repr() has them, and not as str() does.
    return "\n".join(map(text_of, key)) if type(key) is tuple else str(key)


def check(keys: Iterable[Any], kinds: Iterable[type]) -> None:
    """Refuse keys that rows cannot be kept by.

    Args:
        keys: the rows' keys.
        kinds: their types.

    Raises:
        InvalidRow: one cannot be hashed, is equal to nothing but itself, or has no text of its own.
    """
    if SCALARS.issuperset(kinds):
        return
    for key in keys:
        if (missing := _missing(key)) is not None:
            raise InvalidRow(
                f"Rows cannot be kept by a key that is a {type(key).__name__}: it has no {missing} of its "
                "own. Have the field's from_db_value() give something plain, such as a number, a text or a "
                "tuple of these; or give your class `__eq__`, `__hash__` and `__str__` that go by its value. "
                "Where the rows need no key, let queryset() end in .values() with the other columns.",
                key=key,
            )


def _missing(key: Any) -> str | None:
    for part in key if type(key) is tuple else (key,):
        try:
            hash(part)
        except TypeError:
            return "hash"
        if type(part) in SCALARS or isinstance(part, Enum):
            continue
        kind: Any = type(part)
        if kind.__eq__ is object.__eq__:
            return "equality"
        if _ADDRESS in text_of(part):
            return "text"
    return None
