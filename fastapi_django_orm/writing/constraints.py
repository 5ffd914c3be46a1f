"""Which fields a constraint is about that a database has refused a row for, without a word of the database.

Only the kind and the names of the model's fields leave this module: drivers' texts quote values of rows.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from django.apps import apps
from django.core.exceptions import NON_FIELD_ERRORS, ValidationError
from django.db.models import CheckConstraint, F, Model, ProtectedError, Q, RestrictedError, UniqueConstraint

_SQLSTATES = {
    "23502": "null",
    "23503": "foreign_key",
    "23505": "unique",
    "23514": "check",
    "23P01": "exclusion",
}
# Of SQLite, MariaDB and MySQL. What stands before a name may quote a value with anything in it.
_TEXTS = (
    ("unique", re.compile(r"^UNIQUE constraint failed: index '(?P<name>.*)'$")),
    ("unique", re.compile(r"^UNIQUE constraint failed: (?P<columns>.*)$")),
    ("null", re.compile(r"^NOT NULL constraint failed: (?P<columns>.*)$")),
    ("check", re.compile(r"^CHECK constraint failed: (?P<name>.*)$")),
    ("foreign_key", re.compile(r"^FOREIGN KEY constraint failed$")),
    ("unique", re.compile(r"^Duplicate entry .* for key '(?P<name>[^']*)'$", re.DOTALL)),
    ("null", re.compile(r"^Column '(?P<columns>[^']*)' cannot be null$")),
    ("foreign_key", re.compile(r"`(?P<table>[^`]*)`, CONSTRAINT `[^`]*` FOREIGN KEY \((?P<columns>[^)]*)\)")),
    ("check", re.compile(r"^CONSTRAINT `(?P<name>[^`]*)` failed for `[^`]*`\.`(?P<table>[^`]*)`$")),
    ("check", re.compile(r"^Check constraint '(?P<name>[^']*)' is violated\.$")),
)


class Violation(NamedTuple):
    """A constraint that was violated.

    Attributes:
        kind: ``unique``, ``foreign_key``, ``null``, ``check``, ``exclusion``, ``protected``, ``restricted``;
            ``constraint`` for any other.
        fields: names of the model's fields; empty if they are not known.
    """

    kind: str
    fields: tuple[str, ...] = ()


def violation_of(error: Exception) -> Violation:
    """Return what an ``IntegrityError`` of Django's is about."""
    if isinstance(error, ProtectedError | RestrictedError):
        return Violation("protected" if isinstance(error, ProtectedError) else "restricted")
    cause = error.__cause__ or error
    diag = getattr(cause, "diag", None)
    if diag is not None:  # psycopg
        columns = [diag.column_name] if diag.column_name else []
        kind = _SQLSTATES.get(diag.sqlstate, "constraint")
        return Violation(kind, _fields(kind, diag.table_name, diag.constraint_name, columns))
    text = str(cause.args[-1]) if cause.args else ""
    for kind, pattern in _TEXTS:
        if found := pattern.search(text):
            named = found.groupdict()
            columns = [each.strip(' `"') for each in (named.get("columns") or "").split(",") if each]
            table = named.get("table") or (columns[0].rpartition(".")[0] if columns else None)
            columns = [each.rpartition(".")[2] for each in columns]
            return Violation(kind, _fields(kind, table, named.get("name"), columns))
    return Violation("constraint")


def mark_conflicts(error: ValidationError, instance: Model) -> None:
    """Put the constraint as ``violation`` on each error that says that another row conflicts.

    ``full_clean()`` gives errors of constraints with conditions or expressions no code of their own.
    """
    conflicts = {
        str(constraint.get_violation_error_message()): _conflict(constraint, model)
        for model, constraints in instance.get_constraints()
        for constraint in constraints
        if not isinstance(constraint, CheckConstraint)
    }
    unnamed: list[Any] = error.update_error_dict({}).get(NON_FIELD_ERRORS, [])
    for each in unnamed:
        each.violation = conflicts.get(str(each.message))


def _conflict(constraint: Any, model: type[Model]) -> Violation:
    kind = "unique" if isinstance(constraint, UniqueConstraint) else "exclusion"
    return Violation(kind, tuple(dict.fromkeys(_named(constraint, model))))


def _fields(kind: str, table: str | None, name: str | None, columns: list[str]) -> tuple[str, ...]:
    for model in apps.get_models(include_auto_created=True):
        if table and model._meta.db_table.strip('"').rpartition('"')[2] != table:
            continue
        if columns:
            by_column = {each.column: each.name for each in model._meta.local_concrete_fields}
            if found := tuple(by_column[each] for each in columns if each in by_column):
                return found
        elif name and (found := _fields_of(model, kind, name)):
            return found
    return ()


def _fields_of(model: type[Model], kind: str, name: str) -> tuple[str, ...]:
    """The fields of a model's constraint of this name: one that it declares, or one that Django has named."""
    for constraint in model._meta.constraints:
        if constraint.name == name.rpartition(".")[2]:  # MySQL puts the table before it
            return tuple(dict.fromkeys(_named(constraint, model)))
    table, short = model._meta.db_table.strip('"'), name.rpartition(".")[2]
    if short == f"{table}_pkey":
        return tuple(each.name for each in model._meta.pk_fields)
    # Django's names, and those that a database gives by itself, begin with the table and the columns; MariaDB
    # calls the key of one column like the column.
    fields = model._meta.local_concrete_fields
    sets: list[list[Any]] = [[each] for each in fields if each.unique or kind != "unique"]
    sets += [[model._meta.get_field(each) for each in names] for names in model._meta.unique_together]
    for each in sorted(sets, key=lambda columns: -sum(len(field.column) for field in columns)):
        joined = "_".join(field.column for field in each)
        if short == joined or short.startswith(f"{table}_{joined}_"):
            return tuple(field.name for field in each)
    return ()


def _named(constraint: Any, model: type[Model]) -> Iterator[str]:
    yield from getattr(constraint, "fields", ())
    expressions: Iterable[Any] = getattr(constraint, "expressions", ())
    condition = getattr(constraint, "condition", None)
    for each in (*expressions, condition):
        yield from _in_expression(each[0] if isinstance(each, tuple) else each, model)


def _in_expression(expression: Any, model: type[Model]) -> Iterator[str]:
    if isinstance(expression, Q):
        known = {each.name for each in model._meta.concrete_fields}
        yield from sorted(known & expression.referenced_base_fields)
    elif isinstance(expression, str):
        yield expression
    elif expression is not None:
        parts = expression.flatten() if hasattr(expression, "flatten") else [expression]
        named: list[Any] = [each for each in parts if isinstance(each, F)]
        yield from (each.name for each in named)
