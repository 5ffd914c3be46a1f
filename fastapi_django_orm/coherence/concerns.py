"""Which hints concern a repository, found from what it declares and from the SQL that loads it.

A table that is missed leaves stale rows behind, and one too many costs a load that was not needed. So every
doubt is decided for the table: its name anywhere in the SQL counts.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, TypeAlias

from django.apps import apps
from django.core.exceptions import EmptyResultSet
from django.db import DatabaseError, connections
from django.db.models import Model, QuerySet
from django.db.models.query import ValuesIterable

from ..errors import InvalidRepository
from ..memory.loading import Observed
from ..reading.resolve import resolve_model
from ..reading.validation import DeclaredCached, ordered
from .hints import Hint
from .relations import children_of, prefetched, related_models

Statement: TypeAlias = tuple[str, tuple[Any, ...]]  # SQL and its parameters

# Django caches these rows for the life of the process, and projects do not change them.
_NEVER_CHANGES = frozenset({"contenttypes.ContentType"})

_BESIDE = (
    "Loading its rows also reads {labels}, by Python code that the query does not show. Write depends_on = "
    "({names},) and run manage.py coherence install; or give the repository a max_age."
)

_POLLED = (
    "It reads a materialized view ({labels}), and only workers that listen to PostgreSQL see when it is "
    "refreshed. Let DJANGO_ORM_COHERENCE contain auto, or give the repository a max_age."
)


@dataclass(frozen=True, slots=True)
class Concern:
    """What a repository reads.

    Attributes:
        alias: the database that it reads.
        own: labels of models whose keys are those of its rows, so that a hint's keys name the rows.
        related: labels of the other models; None: they are not known, and any may be one.
        tables: those of all these models that are known, with the models' labels.
        to_key: makes a row's key of what a hint has.
        explained: labels of those that may be views, since what is behind them is among the tables.
        embedded: whether that database is a file, and no server.
        depends: whether `depends_on` says what cannot be found.
        unannounced: a sentence for each thing that changes without being announced, and what to do.
        polled: labels of materialized views, which workers that listen to PostgreSQL look at.
        asked: whether PostgreSQL itself has been asked what the queries read; true for other databases.
        observed: the SQL that loading executes; Python code may read what no query shows.
    """

    alias: str
    own: frozenset[str]
    related: frozenset[str] | None
    tables: Mapping[str, str]
    to_key: Callable[[Any], Any]
    explained: frozenset[str]
    embedded: bool
    depends: bool
    unannounced: tuple[str, ...]
    polled: frozenset[str]
    asked: bool
    observed: Observed

    def is_hit(self, hint: Hint) -> bool:
        """Whether rows may have changed."""
        if not hint.label or self.related is None or hint.label in self.own | self.related:
            return True
        return hint.label in self.beside()

    def beside(self) -> frozenset[str]:
        """Labels of models that loading has read and that nothing names."""
        read = self.observed.found(_models_in)
        return read - _NEVER_CHANGES - frozenset(self.tables.values())

    def why_unannounced(self, listening: bool, told: bool) -> str | None:
        """Why rows may change without an announcement, and what to do; None: they do not.

        Args:
            listening: whether somebody listens to PostgreSQL itself.
            told: whether Django's processes announce what they write, of any model.
        """
        if self.unannounced:
            return self.unannounced[0]
        if self.polled and not listening:
            return _POLLED.format(labels=", ".join(sorted(self.polled)))
        if listening and not told and (beside := sorted(self.beside())):
            return _BESIDE.format(labels=", ".join(beside), names=", ".join(map(repr, beside)))
        return None

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
    children = children_of(repository, queryset)
    linked = set(related_models(repository, queryset, children))
    statement = _statement(queryset, repository.fields)
    statements = [statement, *map(_statement, _beside(queryset, linked))]
    followed = {model._meta.label for model in linked if model is not None}
    found = {label for each in statements if each is not None for label in _models_in(each[0])}
    same_keys = {same._meta.label for same in _same_keys(model)}
    below = {child._meta.label for child in children}
    every = found | followed | named | same_keys | below
    if statement is None or None in statements or None in linked:  # there is more than could be found
        return _concern(repository, queryset, every, frozenset(), None)
    exact = _is_row_by_row(queryset, statement[0])
    own = {
        same._meta.label
        for same in (*_same_keys(model), *(child for child in children if model in _same_keys(child)))
        if exact and same._meta.label not in named | followed and _mentions(statement[0], same) <= 1
    }
    return _concern(repository, queryset, every, frozenset(own), frozenset(every - own))


def statements_of(repository: DeclaredCached) -> list[Statement | None]:
    """The SQL of all queries that loading a repository is known to make; None for one that is not known."""
    queryset = ordered(repository.queryset(), repository.ordering)
    linked = set(related_models(repository, queryset, children_of(repository, queryset)))
    return [_statement(queryset, repository.fields), *map(_statement, _beside(queryset, linked))]


def _beside(queryset: QuerySet[Any], linked: Collection[type[Model] | None]) -> Iterator[QuerySet[Any]]:
    """The queries by which relations are read: a manager may have one of its own."""
    yield from prefetched(queryset)
    for model in linked:
        if model is not None:
            yield model._default_manager.using(queryset.db)


def _concern(
    repository: DeclaredCached,
    queryset: QuerySet[Any],
    labels: Collection[str],
    own: frozenset[str],
    related: frozenset[str] | None,
) -> Concern:
    known = _tables(_installed())
    tables = {known[label]: label for label in sorted(labels) if label in known}
    depends = bool(repository.depends_on)
    return Concern(
        queryset.db,
        own,
        related,
        tables,
        _to_key(queryset.model),
        explained=frozenset(labels if depends else ()),
        embedded=connections[queryset.db].vendor == "sqlite",
        depends=depends,
        unannounced=(),
        polled=frozenset(),
        asked=connections[queryset.db].vendor != "postgresql",
        observed=repository.observed,
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


def _statement(queryset: QuerySet[Any], fields: Iterable[str] | None = None) -> Statement | None:
    """The SQL that loads; None if making it needs a database that is away, or if there can be no rows now."""
    if fields is not None and not issubclass(queryset._iterable_class, ValuesIterable):
        queryset = queryset.values(*fields)
    try:
        sql, params = queryset.query.chain().get_compiler(queryset.db).as_sql()
    except (EmptyResultSet, DatabaseError):
        return None
    return sql, tuple(params)


def _models_in(statement: str) -> frozenset[str]:
    """Labels of the models whose tables a statement names, perhaps."""
    return frozenset(model._meta.label for model in _perhaps_in(statement) if _mentions(statement, model))


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
