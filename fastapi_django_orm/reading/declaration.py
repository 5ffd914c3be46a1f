"""What a repository class declares, checked against the models it speaks of.

Runs once, at startup, when Django is set up: a wrong label or field ends the start with what to write
instead, before a request meets it.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from difflib import get_close_matches
from typing import Any, Protocol

from django.core.exceptions import FieldError
from django.db.models import QuerySet
from django.db.models.query import ModelIterable, ValuesIterable

from ..errors import InvalidRepository, UnknownField, nearest
from .models import unknown_field
from .readers import AnyQuerySet, Reader


class Declared(Protocol):
    """What is needed here of a repository; its own documentation says what each attribute means."""

    @property
    def label(self) -> str: ...  # noqa: D102
    @property
    def fields(self) -> Sequence[str] | None: ...  # noqa: D102
    @property
    def ordering(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def name(self) -> Any: ...  # noqa: D102
    @property
    def schema(self) -> Any: ...  # noqa: D102

    def queryset(self) -> AnyQuerySet: ...  # noqa: D102


class DeclaredCached(Declared, Protocol):
    """What is needed here of one that keeps its rows."""

    @property
    def max_age(self) -> Any: ...  # noqa: D102
    @property
    def indexes(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def rows_kept(self) -> Any: ...  # noqa: D102


def ordered(queryset: AnyQuerySet, ordering: Sequence[str]) -> AnyQuerySet:
    """The query in an order that is the same in every worker: the key decides where nothing else does."""
    query = queryset.query
    if query.is_sliced:
        return queryset  # Django would refuse to order it again
    # These can be ordered only by what they select.
    if query.combinator or query.distinct_fields or issubclass(queryset._iterable_class, ValuesIterable):
        return queryset.order_by(*ordering) if ordering else queryset
    wanted = ordering or query.order_by or queryset.model._meta.ordering
    names, pk = {str(item).lstrip("-") for item in wanted}, queryset.model._meta.pk
    # A key that is a relation sorts, by its name, as the other model does.
    if names & {"pk", pk.attname, "?", *(() if pk.is_relation else (pk.name,))}:
        return queryset.order_by(*wanted)
    return queryset.order_by(*wanted, "pk")


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
    """Refuse what looks like an attribute that is misspelled: it would be ignored without a word.

    Raises:
        InvalidRepository: there is one; the message has what was meant.
    """
    if error := _spelling_error(cls):
        raise error


def _spelling_error(cls: type[Any]) -> InvalidRepository | None:
    package = __package__.partition(".")[0]
    known = next(each for each in cls.__mro__ if each.__module__.partition(".")[0] == package)
    for each in cls.__mro__[: cls.__mro__.index(known)]:
        if not issubclass(each, known):
            continue  # a mixin, which may be for other classes too
        for name, meant in _misspelled(vars(each), known):
            return InvalidRepository(
                f"{each.__qualname__}.{name}: a repository has no such attribute. Did you mean {meant!r}? "
                f"If it is one of your own, call it _{name}."
            )
    return None


def _misspelled(attributes: Mapping[str, Any], known: type[Any]) -> Iterator[tuple[str, str]]:
    names = [name for name in _CAN_BE if name == "model" or hasattr(known, name)]
    for name, value in attributes.items():
        if name.startswith("_") or name in names or hasattr(known, name):
            continue
        for meant in get_close_matches(name, names, n=1, cutoff=0.8):
            # What is there under its right name as well was not misspelled.
            if meant not in attributes and _is_meant(name, value, meant):
                yield name, meant


def _is_meant(name: str, value: Any, meant: str) -> bool:
    """Whether a value could be that of an attribute whose name is like this one."""
    if name[0] != meant[0] or isinstance(value, bool) or not isinstance(value, _CAN_BE[meant]):
        return False
    if isinstance(value, str) and meant in ("fields", "indexes"):
        return not meant.startswith(name)  # field = "slug" is one
    if isinstance(value, str) and meant in ("model", "publish"):
        return ("." if meant == "model" else "/") in value
    # max_page = 50
    return not isinstance(value, int) or set(name) <= set(meant)


def no_model(cls: type[Any]) -> InvalidRepository:
    """The error of a repository that names no model, perhaps since the attribute is misspelled."""
    return _spelling_error(cls) or InvalidRepository(
        f'{cls.__qualname__} has no `model`. Write the label of one, app and class: model = "app.Model".'
    )


def check_shape(repository: Declared) -> None:
    """Refuse attributes of a wrong type, and what is no query for rows.

    Raises:
        InvalidRepository: a text where names are wanted, and the like; or a ``queryset()`` that gives
            something else.
    """
    label, name = repository.label, repository.name
    if not isinstance(name, str) or not name:
        raise InvalidRepository(f"{label}.name: write the key that the JSON has for the rows, not {name!r}.")
    for attribute in ("fields", "ordering"):
        _check_names(f"{label}.{attribute}", getattr(repository, attribute))
    if repository.fields is not None and not repository.fields:
        raise InvalidRepository(f"{label}.fields: name at least one field, or leave it out for all.")
    queryset = repository.queryset()
    iterable = getattr(queryset, "_iterable_class", None)
    if iterable is None or not issubclass(iterable, ModelIterable | ValuesIterable):
        raise InvalidRepository(
            f"{repository.label}.queryset(): give a query of model instances, or one that ends in .values(); "
            f"this is {_shape(queryset)}."
        )


def check_cached(repository: DeclaredCached, reader: Reader) -> None:
    """Refuse attributes that only a cached repository has, if they do not fit.

    Raises:
        InvalidRepository: a number where a time is wanted, and the like.
        UnknownField: ``indexes`` name what its rows do not have.
    """
    label, max_age, kept = repository.label, repository.max_age, repository.rows_kept
    _check_names(f"{label}.indexes", repository.indexes)
    if max_age is not None and (not isinstance(max_age, timedelta) or max_age <= timedelta(0)):
        seconds = max_age if type(max_age) in (int, float) and max_age > 0 else 60
        raise InvalidRepository(f"{label}.max_age: write timedelta(seconds={seconds}), not {max_age!r}.")
    if type(kept) is not int or kept < 0:
        raise InvalidRepository(f"{label}.rows_kept: write a number of rows, not {kept!r}.")
    unknown = [name for name in repository.indexes if name not in reader.names]
    if unknown:
        raise UnknownField(
            f"{label}.indexes: its rows have no field {unknown[0]!r}. {nearest(unknown[0], reader.names)}"
        )


def _check_names(where: str, names: Any) -> None:
    if isinstance(names, str):
        raise InvalidRepository(f"{where}: write ({names!r},), a tuple of names.")
    if not isinstance(names, Sequence) and not (names is None and where.endswith(".fields")):
        raise InvalidRepository(f"{where}: write a tuple of names, not {names!r}.")


def _shape(queryset: Any) -> str:
    return (
        "one that ends in .values_list()"
        if isinstance(queryset, QuerySet)
        else f"a {type(queryset).__name__}"
    )


def check_ordering(repository: Declared) -> None:
    """Refuse an ``ordering`` by what is not there.

    Raises:
        UnknownField: a name in it is neither a column, a relation's column nor an annotation.
    """
    queryset = repository.queryset()
    if repository.ordering and queryset.query.is_sliced:
        raise InvalidRepository(
            f"{repository.label}: queryset() is sliced, and only what is not can be ordered. Leave out "
            "`ordering`, and order before the slice."
        )
    for item in repository.ordering:
        try:
            _resolve_ordering(item, queryset.order_by(item))
        except FieldError as error:
            where = f"{repository.label}.ordering"
            if not isinstance(item, str):
                raise UnknownField(f"{where}: {error}") from None
            raise unknown_field(where, item.lstrip("-"), queryset) from None


def _resolve_ordering(item: Any, queryset: AnyQuerySet) -> None:
    # order_by() looks at a name's first part alone; the rest would fail in the first load.
    query = queryset.query.chain()
    if not isinstance(item, str):
        item.resolve_expression(query)
    elif item != "?" and item.lstrip("-") not in query.extra:
        query.resolve_ref(item.lstrip("-"))
