"""What a repository class declares, checked against the models it speaks of.

Runs once, at startup, when Django is set up: a wrong label or field ends the start with what to write
instead, before a request meets it.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Protocol

from django.core.exceptions import FieldError
from django.db.models import Model, QuerySet
from django.db.models.query import ModelIterable, ValuesIterable

from ..errors import InvalidRepository, UnknownField, nearest
from .key_columns import AnyQuerySet
from .models import unknown_field
from .observed import Observed
from .readers import Reader


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
    @property
    def publish(self) -> str | None: ...  # noqa: D102
    @property
    def model_class(self) -> type[Model]: ...  # noqa: D102

    def queryset(self) -> AnyQuerySet: ...  # noqa: D102
    def ordered_queryset(self) -> AnyQuerySet: ...  # noqa: D102


class DeclaredCached(Declared, Protocol):
    """What is needed here of one that keeps its rows."""

    @property
    def max_age(self) -> Any: ...  # noqa: D102
    @property
    def indexes(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def max_decoded_rows(self) -> Any: ...  # noqa: D102
    @property
    def depends_on(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def observed(self) -> Observed: ...  # noqa: D102


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
    label, max_age, kept = repository.label, repository.max_age, repository.max_decoded_rows
    _check_names(f"{label}.indexes", repository.indexes)
    if max_age is not None and (not isinstance(max_age, timedelta) or max_age <= timedelta(0)):
        seconds = max_age if type(max_age) in (int, float) and max_age > 0 else 60
        raise InvalidRepository(f"{label}.max_age: write timedelta(seconds={seconds}), not {max_age!r}.")
    if type(kept) is not int or kept < 0:
        raise InvalidRepository(f"{label}.max_decoded_rows: write a number of rows, not {kept!r}.")
    unknown = [name for name in repository.indexes if name not in reader.names]
    if unknown:
        raise UnknownField(
            f"{label}.indexes: its rows have no field {unknown[0]!r}. {nearest(unknown[0], reader.names)}"
        )


def _check_names(where: str, names: Any) -> None:
    if names == "__all__":
        raise InvalidRepository(f"{where}: name the fields, or leave it out for all of them.")
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
