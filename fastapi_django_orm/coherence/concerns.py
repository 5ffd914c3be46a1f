"""Which hints concern a repository, found from what it declares and from the SQL that loads it.

A table that is missed leaves stale rows behind, and one too many costs an unnecessary load. So every doubt is
decided for the table: its name anywhere in the SQL counts.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
        alias: the database.
        own: labels of models whose keys are those of its rows, so that a hint's keys name the rows.
        related: labels of the other models; None: unknown, and any may be one.
        tables: the known tables of all these models, with the models' labels.
        to_key: makes a row's key of what a hint has.
        filtered: further tables that only filters join, with their models' labels: hints of them change
            which rows a filter selects, and no row.
        explained: labels of those that may be views, since what is behind them is among the tables.
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
    asked: bool
    observed: Observed
    unannounced: tuple[str, ...] = ()
    polled: frozenset[str] = frozenset()
    filtered: Mapping[str, str] = field(default_factory=dict)

    def is_hit(self, hint: Hint) -> bool:
        """Whether rows may have changed."""
        if not hint.label or self.related is None or hint.label in self.own | self.related:
            return True
        return hint.label in self._beside()

    def why_unannounced(self, listening: bool, by_django: bool) -> str | None:
        """Why rows may change without an announcement, and what to do; None: they do not.

        Args:
            listening: whether workers listen to PostgreSQL itself.
            by_django: whether Django's processes announce what they write, of any model.
        """
        if self.unannounced:
            return self.unannounced[0]
        if self.polled and not listening:
            return _POLLED.format(labels=", ".join(sorted(self.polled)))
        if listening and not by_django and (beside := sorted(self._beside())):
            return _BESIDE.format(labels=", ".join(beside), names=", ".join(map(repr, beside)))
        return None

    def keys(self, hint: Hint) -> frozenset[Any] | None:
        """The keys of the rows that may have changed; None: any may."""
        if hint.keys is None or hint.label not in self.own:
            return None
        try:
            return frozenset(self.to_key(key) for key in hint.keys)
        except Exception:  # whatever a field raises for a value that is not a key of it
            return None

    def all_tables(self) -> Iterator[tuple[str, str]]:
        """Names of the known tables, and of those that loading has read beside them, with models' labels."""
        known = _tables(_installed())
        yield from self.tables.items()
        yield from self.filtered.items()
        yield from ((known[label], label) for label in self._beside() if label in known)

    def _beside(self) -> frozenset[str]:
        """Labels of models that loading has read although nothing names them."""
        return self.observed.found(models_in) - _NEVER_CHANGES - frozenset(self.tables.values())


def concern_of(repository: DeclaredCached) -> Concern:
    """What a repository reads. On a database thread.

    Raises:
        UnknownModel: ``depends_on`` names a model that is not installed.
        InvalidRepository: it is not a tuple of labels.
    """
    queryset, children, linked = _read(repository)
    model: Any = queryset.model._meta.concrete_model  # which need not be the one that the repository names
    named = set(_named(repository))
    statements = _statements(repository, queryset, linked)
    followed = {each._meta.label for each in linked if each is not None}
    found = {label for each in statements if each is not None for label in models_in(each[0])}
    same_keys = {*_same_keys(model), *(child for child in children if model in _same_keys(child))}
    every = found | followed | named | {each._meta.label for each in (*same_keys, *children)}
    # A view changes without a hint of its own.
    filtered = {each._meta.label for each in repository.filtered_models if each._meta.managed} - every
    known = _tables(_installed())
    own, related = frozenset[str](), None
    if None not in statements and None not in linked:  # else there is more than could be found
        (sql, _) = statements[0] or ("", ())
        own = frozenset(
            each._meta.label
            for each in same_keys
            if _is_row_by_row(queryset, sql)
            and each._meta.label not in named | followed
            and _mentions(sql, each) <= 1
        )
        related = frozenset(every - own)
    return Concern(
        queryset.db,
        own,
        related,
        {known[label]: label for label in sorted(every) if label in known},
        _to_key(queryset.model),
        explained=frozenset(every if repository.depends_on else ()),
        asked=connections[queryset.db].vendor != "postgresql",
        observed=repository.observed,
        filtered={known[label]: label for label in sorted(filtered) if label in known},
    )


def statements_of(repository: DeclaredCached) -> list[Statement | None]:
    """The SQL of all queries that loading is known to make, the main one first; None for an unknown one."""
    queryset, _, linked = _read(repository)
    return _statements(repository, queryset, linked)


def _read(
    repository: DeclaredCached,
) -> tuple[QuerySet[Any], list[type[Model]], set[type[Model] | None]]:
    """The query, children of its model that it may return, and the models that are read beside it."""
    queryset = ordered(repository.queryset(), repository.ordering)
    children = children_of(repository, queryset)
    return queryset, children, set(related_models(repository, queryset, children))


def _statements(
    repository: DeclaredCached, queryset: QuerySet[Any], linked: Iterable[type[Model] | None]
) -> list[Statement | None]:
    main = queryset
    if repository.fields is not None and not issubclass(queryset._iterable_class, ValuesIterable):
        main = queryset.values(*repository.fields)
    # A manager by which a relation is read may have a query that names more.
    managers = (each._default_manager.using(queryset.db) for each in linked if each is not None)
    return [_statement(each) for each in (main, *prefetched(queryset), *managers)]


def _statement(queryset: QuerySet[Any]) -> Statement | None:
    """The SQL that loads; None if making it needs a database that is away, or if there can be no rows now."""
    try:
        sql, params = queryset.query.chain().get_compiler(queryset.db).as_sql()
    except (EmptyResultSet, DatabaseError):
        return None
    return sql, tuple(params)


def _named(repository: DeclaredCached) -> Iterator[str]:
    depends_on = repository.depends_on
    where = f"{repository.label}.depends_on"
    if isinstance(depends_on, str):
        raise InvalidRepository(f"{where}: write ({depends_on!r},), a tuple of models' labels.")
    for model in depends_on:
        yield resolve_model(where, model)._meta.concrete_model._meta.label  # type: ignore[union-attr]


def _same_keys(model: type[Model]) -> Iterator[type[Model]]:
    """The model, and those it inherits its key from by way of a link to their rows."""
    yield model
    for parent, link in model._meta.parents.items():
        if link is not None and link is model._meta.pk:
            yield from _same_keys(parent)


def models_in(statement: str) -> frozenset[str]:
    """Labels of the models whose tables a statement may name.

    Looking for each table in each statement would cost models times repositories. So only those are looked
    for, the longest word of whose name is a word of the statement.
    """
    known = _by_word(_installed())
    perhaps = (model for word in {"", *_words(statement)} for model in known.get(word, ()))
    return frozenset(model._meta.label for model in perhaps if _mentions(statement, model))


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


# A table's name, unless a column's follows, or it is a column's itself. What stands between FROM or JOIN and
# a dot is a schema, not a table; and so it may be after a comma, where names are not quoted as Django does.
_TABLE = r"""
(?: (?<![\w.]) (?<! \.["`]) | \b (?:FROM|JOIN) \s+ (?:ONLY\s+)? (?:["`][^"`]+["`]\.|[\w$]+\.)+ | ,\s*\w+\. )
["`]? (?<!\w) {name} (?!\w) (?! ["`]?\s*\. )
"""


def _mentions(statement: str, model: type[Model]) -> int:
    """How often a table may be read from."""
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
