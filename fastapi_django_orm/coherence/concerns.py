"""Which hints concern a repository, found from what it declares and from the SQL that loads it.

A table that is missed leaves stale rows behind, and one too many costs a load that was not needed. So every
doubt is decided for the table: its name anywhere in the SQL counts.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from django.apps import apps
from django.core.exceptions import EmptyResultSet
from django.db import DatabaseError, connections
from django.db.models import Model, QuerySet
from django.db.models.query import ValuesIterable

from ..errors import InvalidRepository
from ..reading.declaration import DeclaredCached, ordered
from ..reading.models import resolve_model
from .hints import Hint
from .relations import prefetched, related_models


@dataclass(frozen=True, slots=True)
class Concern:
    """What a repository reads.

    Attributes:
        alias: the database that it reads.
        own: labels of models whose keys are those of its rows, so that a hint's keys name the rows.
        related: labels of the other models; None: they are not known, and any may be one.
        tables: those of all these models that are known, with the models' labels.
        to_key: makes a row's key of what a hint has.
        explained: labels of those that may be views, since `depends_on` says what is behind them.
        embedded: whether that database is a file, and no server.
    """

    alias: str
    own: frozenset[str]
    related: frozenset[str] | None
    tables: Mapping[str, str]
    to_key: Callable[[Any], Any]
    explained: frozenset[str]
    embedded: bool

    def is_hit(self, hint: Hint) -> bool:
        """Whether rows may have changed."""
        return not hint.label or self.related is None or hint.label in self.own | self.related

    def keys(self, hint: Hint) -> frozenset[Any] | None:
        """The keys of the rows that may have changed; None: any may."""
        if hint.keys is None or hint.label not in self.own:
            return None
        try:
            return frozenset(self.to_key(key) for key in hint.keys)
        except Exception:  # whatever a field raises for what is none of its keys
            return None


def concern_of(repository: DeclaredCached) -> Concern:
    """What a repository reads. On a database thread.

    Raises:
        UnknownModel: ``depends_on`` names a model that is not installed.
        InvalidRepository: it is not a tuple of labels.
    """
    queryset = ordered(repository.queryset(), repository.ordering)
    model: Any = queryset.model._meta.concrete_model  # which need not be the one that the repository names
    named = set(_named(repository))
    linked = set(related_models(repository, queryset))
    statement = _statement(queryset, repository.fields)
    beside = (*prefetched(queryset), *_managed(linked, queryset.db))
    statements = [statement, *map(_statement, beside)]
    followed = {model._meta.label for model in linked if model is not None}
    found = {
        installed._meta.label
        for each in statements
        if each is not None
        for installed in _perhaps_in(each)
        if _mentions(each, installed)
    }
    same_keys = {same._meta.label for same in _same_keys(model)}
    every = found | followed | named | same_keys
    if statement is None or None in statements or None in linked:  # there is more than could be found
        return _concern(queryset, every, frozenset(), None, bool(named))
    exact = _is_row_by_row(queryset, statement)
    own = {
        same._meta.label
        for same in _same_keys(model)
        if exact and same._meta.label not in named | followed and _mentions(statement, same) <= 1
    }
    return _concern(queryset, every, frozenset(own), frozenset(every - own), bool(named))


def _managed(linked: Collection[type[Model] | None], alias: str) -> Iterator[QuerySet[Any]]:
    """The queries by which relations are read: a manager may have one of its own."""
    for model in linked:
        if model is not None:
            yield model._default_manager.using(alias)


def _concern(
    queryset: QuerySet[Any],
    labels: Collection[str],
    own: frozenset[str],
    related: frozenset[str] | None,
    explained: bool,
) -> Concern:
    known = _tables(_installed())
    tables = {known[label]: label for label in sorted(labels) if label in known}
    return Concern(
        queryset.db,
        own,
        related,
        tables,
        _to_key(queryset.model),
        explained=frozenset(labels if explained else ()),
        embedded=connections[queryset.db].vendor == "sqlite",
    )


def _named(repository: DeclaredCached) -> Iterator[str]:
    depends_on = repository.depends_on
    where = f"{repository.label}.depends_on"
    if isinstance(depends_on, str):
        raise InvalidRepository(f"{where}: write ({depends_on!r},), a tuple of models' labels.")
    for model in depends_on:
        yield resolve_model(where, model)._meta.concrete_model._meta.label  # type: ignore[union-attr]


def _perhaps_in(statement: str) -> Iterator[type[Model]]:
    """The models whose tables a statement may name: all words of the table's name are among its own.

    To look for each table in each statement costs models times repositories.
    """
    known = _by_word(_installed())
    for word in {"", *_words(statement)}:
        yield from known.get(word, ())


def _installed() -> tuple[type[Model], ...]:
    return tuple(apps.get_models(include_auto_created=True))


@lru_cache(maxsize=1)
def _tables(models: Sequence[type[Model]]) -> Mapping[str, str]:
    """The models' tables, by label."""
    return {model._meta.label: model._meta.db_table for model in models if not model._meta.proxy}


@lru_cache(maxsize=1)
def _by_word(models: Sequence[type[Model]]) -> Mapping[str, list[type[Model]]]:
    """Models by the longest word of their table's name, by "" if it has none."""
    found: dict[str, list[type[Model]]] = {}
    for model in models:
        if not model._meta.proxy:
            word = max(_words(model._meta.db_table), key=len, default="")
            found.setdefault(word, []).append(model)
    return found


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _same_keys(model: type[Model]) -> Iterator[type[Model]]:
    """The model, and those it inherits its key from by way of a link to their rows."""
    yield model
    for parent, link in model._meta.parents.items():
        if link is not None and link is model._meta.pk:
            yield from _same_keys(parent)


def _statement(queryset: QuerySet[Any], fields: Iterable[str] | None = None) -> str | None:
    """The SQL that loads; None if making it needs a database that is away, or if there can be no rows now."""
    if fields is not None and not issubclass(queryset._iterable_class, ValuesIterable):
        queryset = queryset.values(*fields)
    try:
        statement: str = queryset.query.chain().get_compiler(queryset.db).as_sql()[0]
    except (EmptyResultSet, DatabaseError):
        return None
    return statement


# A table's name, unless a column's follows, or it is a column's itself. What stands between FROM or JOIN and
# a dot is no table but a schema; and so it may be after a comma, where no names are quoted as Django does.
_TABLE = r"""
(?: (?<![\w.]) (?<! \.["`]) | \b (?:FROM|JOIN) \s+ (?:ONLY\s+)? (?:["`][^"`]+["`]\.|[\w$]+\.)+ | ,\s*\w+\. )
["`]? (?<!\w) {name} (?!\w) (?! ["`]?\s*\. )
"""


def _mentions(statement: str, model: type[Model]) -> int:
    """How often a table is read from, perhaps."""
    return len(_pattern(model._meta.db_table.strip('"')).findall(statement))


@cache  # the one of re keeps 512
def _pattern(table: str) -> re.Pattern[str]:
    return re.compile(_TABLE.format(name=re.escape(table)), re.VERBOSE | re.IGNORECASE)


def _is_row_by_row(queryset: QuerySet[Any], statement: str) -> bool:
    """Whether each row of the result has a key, and depends on the row of the model's table with that key."""
    query = queryset.query
    if query.is_sliced or query.combinator or query.distinct or " OVER " in statement:
        return False
    if issubclass(queryset._iterable_class, ValuesIterable):
        keyed = {queryset.model._meta.pk.attname, "pk"} & {*query.values_select, *query.annotation_select}
        return bool(keyed) and not isinstance(query.group_by, tuple)
    return True


def _to_key(model: type[Model]) -> Callable[[Any], Any]:
    fields = model._meta.pk_fields
    if len(fields) == 1:
        return lambda key: fields[0].to_python(_single(key))

    def to_key(parts: Any) -> Any:
        return tuple(field.to_python(part) for field, part in zip(fields, parts, strict=True))

    return to_key


def _single(key: Any) -> Any:
    if isinstance(key, tuple):  # of which a text field would make a text
        raise TypeError
    return key
