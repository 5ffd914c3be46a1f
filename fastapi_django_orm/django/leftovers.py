"""What bears this package's name in a PostgreSQL database, whatever it was installed for.

Triggers outlive what they were installed for: a repository that is gone, a ``depends_on``, a model, the
application. So they are found by their names, and not by what the repositories read now.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from django.apps import apps
from django.db import connections

from ..coherence.hints import CHANNEL
from .trigger_sql import DROP_UNUSED, FOR_RELATIVE, OURS
from .triggers import TriggersRefused, execute

# A standby shows what its primary has, and lets nothing be changed. Two aliases may lead to one database.
_PLACE = "SELECT pg_is_in_recovery(), pg_postmaster_start_time()::text, current_database()::text"

_TRIGGERS = f"""
SELECT t.tgrelid::regclass::text, array_agg(t.tgname::text ORDER BY t.tgname)
FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
WHERE {OURS} AND NOT {FOR_RELATIVE} GROUP BY t.tgrelid ORDER BY 1"""

# Those that only parents and children of a table call have lost the table.
_UNUSED = f"""
SELECT p.oid::regprocedure::text FROM pg_proc p
WHERE starts_with(p.proname::text, '{CHANNEL}_') AND p.prorettype = 'trigger'::regtype
    AND NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgfoid = p.oid AND NOT {FOR_RELATIVE})
ORDER BY 1"""


@dataclass(frozen=True)
class Leftover:
    """A table with triggers.

    Attributes:
        table: its name, as SQL has it.
        label: the model's; None: no installed model has this table.
        triggers: their names.
    """

    table: str
    label: str | None
    triggers: tuple[str, ...]

    def __str__(self) -> str:
        return self.table if self.label is None else f"{self.label} ({self.table})"


def place_of(alias: str) -> Sequence[str] | None:
    """What tells a database from others, whichever alias leads there; None if it is a standby."""
    with connections[alias].cursor() as cursor:
        cursor.execute(_PLACE)
        is_standby, *place = cursor.fetchone()
    return None if is_standby else tuple(place)


def tables_with_triggers(alias: str) -> list[Leftover]:
    """Every table with triggers of this package, of whatever version."""
    quote = connections[alias].ops.quote_name
    models = [model for model in apps.get_models(include_auto_created=True) if not model._meta.proxy]
    found = names_of(alias, [quote(model._meta.db_table) for model in models])
    labels = {name: model._meta.label for name, model in zip(found, models, strict=True)}
    with connections[alias].cursor() as cursor:
        cursor.execute(_TRIGGERS)
        return [Leftover(table, labels.get(table), tuple(names)) for table, names in cursor.fetchall()]


def names_of(alias: str, tables: Iterable[str]) -> list[str | None]:
    """The names of tables as they are found here; None for one that is not there.

    Args:
        alias: the database's key in ``DATABASES``.
        tables: their names, quoted.
    """
    with connections[alias].cursor() as cursor:
        cursor.execute(
            "SELECT to_regclass(name)::text FROM unnest(%s::text[]) WITH ORDINALITY AS wanted (name, number)"
            " ORDER BY number",
            [list(tables)],
        )
        return [name for (name,) in cursor.fetchall()]


def unused_functions(alias: str) -> list[str]:
    """The functions of this package that no trigger calls, as those of a table that was dropped."""
    with connections[alias].cursor() as cursor:
        cursor.execute(_UNUSED)
        return [name for (name,) in cursor.fetchall()]


def remove(alias: str, leftover: Leftover) -> None:
    """Remove a table's triggers, and their functions.

    Raises:
        TriggersRefused: this user may not, or the table stays locked.
    """
    quote = connections[alias].ops.quote_name
    dropped = [f"DROP TRIGGER IF EXISTS {quote(name)} ON {leftover.table}" for name in leftover.triggers]
    execute(alias, str(leftover), [*dropped, DROP_UNUSED])


def remove_unused_functions(alias: str) -> list[str]:
    """Remove the functions that no trigger calls, and return which there were.

    Raises:
        TriggersRefused: some are another user's.
    """
    before = unused_functions(alias)
    if before:
        execute(alias, alias, [DROP_UNUSED])
    if kept := unused_functions(alias):
        raise TriggersRefused(
            f"{', '.join(kept)}: this user may not remove them, only their owner may. Run the command as the "
            "owner, or add --sql and give what it prints to whoever may."
        )
    return before
