"""What PostgreSQL itself says that a repository's queries read.

Names in SQL do not show what is behind a view, inside a function or under a table without a model. PostgreSQL
locks every relation that it plans a query with, those behind views as well, and shows the locks. So each
query is explained once, without being executed, and the locks are released at once.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from django.apps import apps
from django.db import DatabaseError, InterfaceError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from ..reading.validation import DeclaredCached
from .concerns import Concern, Statement, concern_of, statements_of

NameT = TypeVar("NameT")

LOCK_TIMEOUT = "1s"  # for a table that a migration has locked

# A child's lock comes with its parent's, and the parent's triggers announce for it.
_READ = r"""
WITH locked AS (
    SELECT l.relation FROM pg_catalog.pg_locks l
    WHERE l.pid = pg_catalog.pg_backend_pid() AND l.locktype = 'relation'
        AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
)
SELECT c.oid::bigint, c.oid::regclass::text, c.relkind::text
FROM pg_catalog.pg_class c JOIN locked ON locked.relation = c.oid
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
    AND c.relnamespace::regnamespace::text NOT IN ('pg_catalog', 'information_schema')
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_inherits i JOIN locked parent ON parent.relation = i.inhparent
        WHERE i.inhrelid = c.oid
    )
UNION ALL
SELECT NULL, p.proname::text, 'function'
FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid = p.prolang
WHERE p.proname = ANY (%s) AND l.lanname NOT IN ('internal', 'c') AND p.provolatile <> 'i'
    AND p.pronamespace::regnamespace::text NOT IN ('pg_catalog', 'information_schema')
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend d
        WHERE d.classid = 'pg_catalog.pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
    )"""

_INSTALLED = """
SELECT to_regclass(wanted.name)::oid::bigint, wanted.label
FROM unnest(%s::text[], %s::text[]) AS wanted (name, label) WHERE to_regclass(wanted.name) IS NOT NULL"""

_FUNCTION = re.compile(r'(\w+)"?\(')  # in a plan; every name counts that could be one

# By kind, for what no installed model has; and of a foreign table, model or not.
_UNANNOUNCED = {
    "r": "It reads {name}, the table of no installed model, whose changes nothing announces. Give that table "
    "a model (`managed = False`) and run manage.py coherence install, or give the repository a max_age.",
    "m": "It reads the materialized view {name}, of no installed model, and nothing announces its REFRESH. "
    "Give it a model (`managed = False`), or the repository a max_age.",
    "f": "It reads the foreign table {name}, whose rows change in another database, which announces nothing "
    "here. Give the repository a max_age.",
    "function": "Its query calls the function {name}(), which may read tables. Name their models in "
    "depends_on, declare the function IMMUTABLE if it reads none, or give the repository a max_age.",
}
_UNANNOUNCED["p"] = _UNANNOUNCED["r"]


class _Read(NamedTuple):
    """A relation that a query reads, or a function that it calls."""

    number: int | None  # of a relation
    name: str
    kind: str


def concerns_of(repositories: Mapping[NameT, DeclaredCached]) -> dict[NameT, Concern]:
    """What repositories read, by name, and what PostgreSQL says of it. On a database thread.

    Where it does not answer, only what the declarations and the SQL show is known, and ``asked`` is false.
    Raises the errors of ``concern_of()``.
    """
    concerns = {name: concern_of(repository) for name, repository in repositories.items()}
    for alias in {concern.alias for concern in concerns.values()}:
        if connections[alias].vendor == "sqlite":
            for name in [name for name, concern in concerns.items() if concern.alias == alias]:
                concerns[name] = _with_sqlite(concerns[name], statements_of(repositories[name]))
        if connections[alias].vendor != "postgresql":
            continue
        with suppress(DatabaseError, InterfaceError), transaction.atomic(using=alias):  # it may be away
            labels = labels_of(connections[alias])
            for name, concern in concerns.items():
                if concern.alias == alias:
                    reads = _reads(connections[alias], statements_of(repositories[name]))
                    if reads is not None:
                        concerns[name] = _with(concern, repositories[name], reads, labels)
    return concerns


def _with_sqlite(concern: Concern, statements: Iterable[Statement | None]) -> Concern:
    """A concern that any commit hits if SQLite reads tables for it that no known model has."""
    known = {table.casefold() for table in concern.tables}
    with suppress(DatabaseError), connections[concern.alias].cursor() as cursor:
        # Of each step of a program: the operation, and the page where a table or an index begins.
        steps = set[tuple[str, int]]()
        for statement in statements:
            if statement is not None:
                cursor.execute(f"EXPLAIN {statement[0]}", statement[1])
                steps.update((operation, page) for _, operation, _, page, *_ in cursor.fetchall())
        cursor.execute("SELECT rootpage, lower(tbl_name) FROM sqlite_master")
        read = {table for page, table in cursor.fetchall() if ("OpenRead", page) in steps}
        if read <= known and "VOpen" not in {operation for operation, _ in steps}:  # or a virtual table
            return concern
    return replace(concern, related=None)


def labels_of(connection: BaseDatabaseWrapper) -> dict[int, list[str]]:
    """The labels of the models of each relation, by its number in the database."""
    models = [model for model in apps.get_models(include_auto_created=True) if not model._meta.proxy]
    names = [connection.ops.quote_name(model._meta.db_table) for model in models]
    found: dict[int, list[str]] = {}
    with connection.cursor() as cursor:
        cursor.execute(_INSTALLED, [names, [model._meta.label for model in models]])
        for number, label in cursor.fetchall():
            found.setdefault(number, []).append(label)
    return found


def _reads(connection: BaseDatabaseWrapper, statements: Iterable[Statement | None]) -> set[_Read] | None:
    """What statements read; None if that cannot be found out now: a table is missing, or locked."""
    found: set[_Read] = set()
    try:
        for statement in statements:
            # Rolled back to the savepoint, so that the locks go and the setting as well.
            with transaction.atomic(using=connection.alias):
                found.update(_planned(connection, *statement) if statement is not None else ())
                transaction.set_rollback(True, using=connection.alias)
    except DatabaseError:  # which the loads have to explain
        return None
    return found


def _planned(connection: BaseDatabaseWrapper, sql: str, params: Sequence[Any]) -> Iterator[_Read]:
    with connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
        cursor.execute(f"EXPLAIN (VERBOSE) {sql}", params)
        names = {name for (line,) in cursor.fetchall() for name in _FUNCTION.findall(line)}
        cursor.execute(_READ, [list(names)])
        yield from (_Read(*row) for row in cursor.fetchall())


def _with(
    concern: Concern, repository: DeclaredCached, reads: Iterable[_Read], labels: Mapping[int, list[str]]
) -> Concern:
    """A concern, with what was found."""
    models: set[str] = set()
    of_kind: dict[str, set[str]] = {}
    sentences: list[str] = []
    for read in sorted(reads, key=lambda each: each.name):
        known = labels.get(read.number or 0, [])
        models.update(known)
        of_kind.setdefault(read.kind, set()).update(known)
        is_explained = bool(repository.depends_on) if read.kind == "function" else bool(known)
        if read.kind in _UNANNOUNCED and (read.kind == "f" or not is_explained):
            sentences.append(_UNANNOUNCED[read.kind].format(name=read.name))
    tables = {apps.get_model(label)._meta.db_table: label for label in sorted(models)}
    return replace(
        concern,
        related=None if concern.related is None else concern.related | (models - concern.own),
        tables={**concern.tables, **tables},
        explained=frozenset(of_kind.get("v", ())),
        polled=frozenset(of_kind.get("m", ())),
        unannounced=tuple(sentences),
        asked=True,
    )
