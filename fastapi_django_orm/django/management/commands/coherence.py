"""``manage.py coherence``: the triggers that announce every write to a database to FastAPI's workers."""

from argparse import SUPPRESS, ArgumentParser
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any, TypeAlias

from django.core.management.base import BaseCommand, CommandError
from django.db import DEFAULT_DB_ALIAS, InterfaceError, OperationalError, connections

from ....coherence import choice
from ....coherence.origins import origin_of
from ....database.engines import kind_of
from ....database.startup_checks import check_reachable
from ....errors import DatabaseUnreachable, DjangoORMError, TableMissing
from ....reading.resolve import model_named
from ....settings import read_settings
from ... import notify_lock, selection, triggers
from ...tables import AnnouncedTable
from ...trigger_sql import DROP_UNUSED

# How SQL for a client begins, how a statement ends, and how all ends, if not as a transaction. Clients of
# MariaDB and MySQL end a statement at each semicolon, those within a trigger included.
_BATCH = {"mysql": ("DELIMITER //", " //", "DELIMITER ;")}

Tables: TypeAlias = list[tuple[str, AnnouncedTable]]  # each with its database

_INSTALLED = {
    triggers.State.MISSING: "installed",
    triggers.State.OUTDATED: "brought up to date",
    triggers.State.INSTALLED: "up to date already",
}


class Command(BaseCommand):
    """Installs, shows and removes the triggers."""

    help = "Manages the triggers that announce every write to a database to FastAPI's workers."
    requires_system_checks: list[str] = []  # noqa: RUF012 - one of them asks for this very command

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add a command for each action."""
        actions = parser.add_subparsers(dest="action", required=True)
        read = "all that are read"
        for name, text, models in (
            ("install", "Install the triggers, or bring them up to date.", read),
            ("status", "Show which tables have them; the exit code is 1 unless all have.", read),
            ("uninstall", "Remove the triggers.", "whatever has triggers, in every database"),
        ):
            action = actions.add_parser(name, help=text, description=text)
            action.add_argument("models", nargs="*", metavar="bbs.Topic", help=f"By default {models}.")
            if name != "uninstall":
                action.add_argument(
                    "--app", metavar="main:app", help="The FastAPI application that reads them."
                )
            action.add_argument(
                "--table",
                action="store_true",
                help="Triggers that write hints into a table and send no NOTIFY: for PostgreSQL with many "
                "writers, and for MariaDB, MySQL and SQLite. `uninstall` removes them in any case.",
            )
            for option in ("--settings", "--pythonpath"):  # Django's own, which people write at the end
                action.add_argument(option, default=SUPPRESS, help=SUPPRESS)
            action.add_argument(
                "--database", metavar="ALIAS", help="By default where the models are written."
            )
            if name != "status":
                action.add_argument("--sql", action="store_true", help="Print the statements; execute none.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run the action, and print what was done."""
        try:
            self._run(**options)
        except DjangoORMError as error:
            raise CommandError(str(error)) from error
        except (OperationalError, InterfaceError) as error:  # the database has gone meanwhile
            raise CommandError(str(error).strip()) from error

    def _run(self, action: str, database: str | None, models: list[str], **options: Any) -> None:
        if database and database not in connections:
            raise CommandError(f"DATABASES has no {database!r}, only {', '.join(sorted(connections))}.")
        sql = options.get("sql", False)
        self._action, self._by_table = action, bool(options.get("table"))
        if action == "uninstall" and not models:
            self._uninstall_all(database, sql)
            return
        try:
            if models:
                wanted = selection.Selection(list(map(model_named, models)))
            else:
                wanted = selection.read_by_repositories(options.get("app"))
        except selection.NoRepository:
            if action != "status" or not self._show_leftovers(database, []):
                raise
            return
        tables = list(self._tables(wanted, database, sql))
        if sql:
            self._print(action, tables)
        elif action == "uninstall":
            for alias, table in tables:
                self._tell(alias, table, "removed" if triggers.uninstall(alias, table) else "not there")
        elif action == "install":
            self._install(tables, wanted)
        else:
            self._status(tables, wanted, database, everything=not models)

    def _into_table(self, alias: str) -> bool:
        """Whether triggers write into a table: if that is asked for, or else as workers listen."""
        if self._by_table or self._action == "install":
            return self._by_table
        return kind_of(alias) != "postgresql" or choice.transport_of(read_settings(), alias) == "table"

    def _tables(
        self, wanted: selection.Selection, database: str | None, sql: bool
    ) -> Iterator[tuple[str, AnnouncedTable]]:
        for alias, tables in selection.by_database(wanted.models, database).items():
            triggers.check_database(alias, self._into_table(alias))
            if not sql or kind_of(alias) != "postgresql":  # whose SQL may be for a database elsewhere
                check_reachable(alias, starting=False)
            yield from ((alias, table) for table in tables)

    def _print(self, action: str, tables: Tables) -> None:
        """Print a transaction for each database, to be run there."""
        for alias, group in groupby(tables, key=lambda each: each[0]):
            begin, end, commit = _BATCH.get(kind_of(alias) or "", ("BEGIN;", ";", "COMMIT;"))
            self.stdout.write(f"-- Database {alias}\n{begin}")
            into_table, answers = self._into_table(alias), _why_unreachable(alias) is None
            for _, table in group:
                self.stdout.write(f"-- {table.label}")
                if answers and (error := _why_no_table(alias, table, into_table)):
                    self.stdout.write(f"-- Left out. {error}")
                    continue
                if action == "install":
                    statements = triggers.install_sql(alias, table, into_table, answers)
                else:
                    statements = triggers.uninstall_sql(alias, table)
                for statement in statements:
                    self.stdout.write(f"{statement}{end}")
            if kind_of(alias) == "postgresql":
                self.stdout.write(f"-- Functions that no trigger calls any more\n{DROP_UNUSED};")
            self.stdout.write(commit)

    def _install(self, tables: Tables, wanted: selection.Selection) -> None:
        stale = self._for_each(
            tables,
            wanted,
            lambda alias, table: _INSTALLED[triggers.install(alias, table, self._into_table(alias))],
        )
        for sentence in wanted.unannounced:
            self.stdout.write(sentence)
        if stale:
            raise CommandError("All others have their triggers.\n" + "\n".join(stale))

    def _status(
        self, tables: Tables, wanted: selection.Selection, database: str | None, everything: bool
    ) -> None:
        states: dict[str, str] = {}

        def act(alias: str, table: AnnouncedTable) -> str:
            return states.setdefault(table.label, triggers.state(alias, table, self._into_table(alias)))

        stale = [*self._for_each(tables, wanted, act), *wanted.unannounced]
        if everything:
            self._show_leftovers(database, tables)
        for alias in dict.fromkeys(alias for alias, _ in tables):
            if advice := notify_lock.advice(alias):
                self.stdout.write(f"Database {alias}: {advice}")
        into_table = any(self._into_table(alias) for alias, table in tables if table.label in states)
        option = " --table" if into_table else ""
        if lacking := sorted(label for label, state in states.items() if state != triggers.State.INSTALLED):
            stale.append(
                f"Writes to {', '.join(lacking)} are not announced. "
                f"Run `manage.py coherence install{option}`."
            )
        if stale:
            raise CommandError("\n".join(stale))

    def _for_each(
        self, tables: Tables, wanted: selection.Selection, act: Callable[[str, AnnouncedTable], str]
    ) -> list[str]:
        """Do something with each table, and go on after one that cannot have triggers.

        Returns:
            For each that was left out, and whose rows nothing keeps current, what to do.
        """
        left: list[str] = []
        stale: list[str] = []
        for alias, table in tables:
            try:
                self._tell(alias, table, act(alias, table))
            except (TableMissing, triggers.TriggersRefused) as error:
                self._tell(alias, table, "left out")
                covered = _what_covers(table, error, wanted)
                (stale if covered is None else left).append(f"{table.label}: {covered or error}")
        for sentence in left:
            self.stdout.write(sentence)
        return stale

    def _uninstall_all(self, database: str | None, sql: bool) -> None:
        """Remove whatever has this package's name: what it was installed for may be gone."""
        for alias in _databases(database):
            if not sql or kind_of(alias) != "postgresql":
                check_reachable(alias, starting=False)
            if sql:
                statements = "".join(f"{each};\n" for each in triggers.uninstall_all_sql(alias))
                self.stdout.write(f"-- Database {alias}\nBEGIN;\n{statements}COMMIT;")
                continue
            if _server(alias) is None:
                self.stdout.write(f"Database {alias}: a standby, and like its primary")
                continue
            tables, functions = triggers.tables_with_triggers(alias), triggers.unused_functions(alias)
            if not tables and not functions and not triggers.has_hints(alias):
                self.stdout.write(f"Database {alias}: nothing is there")
                continue
            triggers.uninstall_all(alias)
            for table, labels in tables.items():
                self._show(alias, table, labels, "removed")
            for function in functions:
                self.stdout.write(f"{function} (database {alias}): removed")

    def _show_leftovers(self, database: str | None, tables: Tables) -> bool:
        """Print what is there for none of these tables, and return whether anything is."""
        # Two aliases may lead to one database.
        wanted: dict[Any, set[str]] = {}
        for alias, group in groupby(tables, key=lambda each: each[0]):
            wanted.setdefault(_server(alias), set()).update(table.label for _, table in group)
        seen, found = set[Any](), False
        for alias in _databases(database):
            if error := _why_unreachable(alias):  # no repository needs it, or it would have failed before
                self.stdout.write(f"Database {alias}: not looked at. {error}")
                continue
            server = _server(alias)
            if server is None or server in seen:
                continue
            seen.add(server)
            for table, labels in triggers.tables_with_triggers(alias).items():
                if wanted.get(server, set()).isdisjoint(labels):
                    self._show(alias, table, labels, "installed, and no repository needs it")
                    found = True
            for function in triggers.unused_functions(alias):
                self.stdout.write(f"{function} (database {alias}): no trigger calls it")
                found = True
        return found

    def _show(self, alias: str, table: str, labels: list[str], what: str) -> None:
        self.stdout.write(f"{next(iter(labels), 'no model')} ({table}, database {alias}): {what}")

    def _tell(self, alias: str, table: AnnouncedTable, what: str) -> None:
        self.stdout.write(f"{table.label} ({table.model._meta.db_table}, database {alias}): {what}")


def _databases(database: str | None) -> list[str]:
    """The database that is named, or every one that may have triggers."""
    found = [database] if database else [alias for alias in connections if _may_have_triggers(alias)]
    for alias in found or [DEFAULT_DB_ALIAS]:
        triggers.check_database(alias, into_table=bool(found))
    return found


def _may_have_triggers(alias: str) -> bool:
    kind = kind_of(alias)
    if kind in ("mysql", "sqlite"):
        return _why_unreachable(alias) is None and triggers.has_hints(alias)
    return kind == "postgresql"


def _server(alias: str) -> Any:
    """What identifies a database, as several aliases may lead to one; None for a replica."""
    if kind_of(alias) == "sqlite":
        return alias
    origin = origin_of(alias)
    return None if origin.is_replica else origin.server or alias


def _why_unreachable(alias: str) -> DatabaseUnreachable | None:
    try:
        check_reachable(alias, starting=False)
    except DatabaseUnreachable as error:
        return error
    return None


def _why_no_table(alias: str, table: AnnouncedTable, into_table: bool) -> str | None:
    """Why a table can have no triggers; one that is missing here may be there where SQL is run."""
    try:
        triggers.state(alias, table, into_table)
    except triggers.NoTable as error:
        return str(error)
    except TableMissing:
        pass
    return None


def _what_covers(table: AnnouncedTable, error: DjangoORMError, wanted: selection.Selection) -> str | None:
    """What keeps the rows of a table current that cannot have triggers; None if nothing does."""
    kind = getattr(error, "kind", None)
    if kind == "materialized view":
        return str(error)
    if kind == "view" and table.label in wanted.explained:
        return "no ordinary table but a view, followed through the tables that it reads"
    if table.label in wanted.aged:
        return f"its repositories' max_age refreshes its rows. {error}"
    return None
