"""Attributes of a repository that look misspelled: they would be ignored without a word.

A misspelled ``fields`` would serve every column. What a project may well mean is left alone: methods, names
with an underscore, values of a kind that the attribute cannot have.
"""

from collections.abc import Container, Iterator, Mapping
from datetime import timedelta
from difflib import get_close_matches
from typing import Any

from ..errors import InvalidRepository

# What each attribute can be, so that a value tells whether a name like it is one of these misspelled, or one
# of the user's own, as `published = True` and `publisher = "A"` are. `name` is left out: any text could be
# it, and where it is missing every response shows that.
_CAN_BE: dict[str, tuple[type[Any], ...]] = {
    "model": (str, type),
    "fields": (tuple, list, str),
    "ordering": (tuple, list, str),
    "schema": (type,),
    "publish": (str,),
    "cache_control": (str,),
    "max_age": (timedelta, int),
    "indexes": (tuple, list, str),
    "rows_kept": (int,),
    "depends_on": (tuple, list, str),
}


def check_spelling(cls: type[Any]) -> None:
    """Refuse a repository class with an attribute that looks misspelled.

    Raises:
        InvalidRepository: there is one; the message has what was meant.
    """
    if error := _spelling_error(cls):
        raise error


def _spelling_error(cls: type[Any]) -> InvalidRepository | None:
    package = __package__.partition(".")[0]
    known = next(each for each in cls.__mro__ if each.__module__.partition(".")[0] == package)
    own = cls.__mro__[: cls.__mro__.index(known)]
    written = {name for each in own for name in vars(each)}
    for each in own:
        if not issubclass(each, known):
            continue  # a mixin, which may be for other classes too
        for name, meant in _misspelled(vars(each), known, written):
            return InvalidRepository(
                f"{each.__qualname__}.{name}: a repository has no such attribute. Did you mean {meant!r}? "
                f"If it is one of your own, call it _{name}."
            )
    return None


def _misspelled(
    attributes: Mapping[str, Any], known: type[Any], written: Container[str]
) -> Iterator[tuple[str, str]]:
    names = [name for name in _CAN_BE if name == "model" or hasattr(known, name)]
    for name, value in attributes.items():
        if name.startswith("_") or name in names or hasattr(known, name):
            continue
        for meant in get_close_matches(name, names, n=1, cutoff=0.8):
            # What is there under its right name as well was not misspelled. `orderings` is a plural, and
            # `max_agee` a slip.
            is_longer = name.startswith(meant) and name != meant + meant[-1]
            if meant not in written and not is_longer and _is_meant(name, value, meant):
                yield name, meant


def _is_meant(name: str, value: Any, meant: str) -> bool:
    """Whether a value could be that of an attribute whose name is like this one."""
    if name[0] != meant[0] or isinstance(value, bool) or not isinstance(value, _CAN_BE[meant]):
        return False
    if isinstance(value, str) and meant in ("fields", "indexes"):
        return not meant.startswith(name)  # field = "slug" is one
    if isinstance(value, str) and meant in ("model", "publish"):
        return ("." if meant == "model" else "/") in value
    # `max_page = 50` is the user's own: it has a letter that `max_age` has not.
    return not isinstance(value, int) or set(name) <= set(meant)


def no_model(cls: type[Any]) -> InvalidRepository:
    """The error of a repository that names no model, perhaps since the attribute is misspelled."""
    return _spelling_error(cls) or InvalidRepository(
        f'{cls.__qualname__} has no `model`. Write the label of one, app and class: model = "app.Model".'
    )
