"""``manage.py coherence``: the triggers that tell FastAPI's workers of every write to PostgreSQL."""

from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any, TypeAlias

from django.core.management.base import BaseCommand, CommandError
from django.db import DEFAULT_DB_ALIAS, InterfaceError, OperationalError, connections

from ....database.engines import kind_of
from ....database.startup_checks import check_reachable
from ....errors import DatabaseUnreachable, DjangoORMError, TableMissing
from ... import leftovers, selection, triggers
from ...tables import AnnouncedTable
from ...trigger_sql import DROP_ALL, DROP_UNUSED, TriggerSQL

Tables: TypeAlias = list[tuple[str, AnnouncedTable]]  # each with its database


class Command(BaseCommand):
    """Installs, shows and removes the triggers."""

    help = "Manages the triggers that tell FastAPI's workers of every write to a PostgreSQL database."
    requires_system_checks: list[str] = []  # noqa: RUF012 - one of them asks for this very command

    def add_arguments(self, parser: ArgumentParser) -> None:
        """One command for each thing to do."""
        actions = parser.add_subparsers(dest="action", required=True)
        for name, text, models in (
            ("install", "Install the triggers, or bring them up to date.", "all that are read"),
            (
                "status",
                "Tell which tables have them; the exit code is 1 unless all have.",
                "all that are read",
            ),
            ("uninstall", "Remove the triggers.", "whatever has triggers, in every database"),
        ):
            action = actions.add_parser(name, help=text, description=text)
            action.add_argument("models", nargs="*", metavar="bbs.Topic", help=f"By default {models}.")
            if name != "uninstall":
                action.add_argument(
                    "--app", metavar="main:app", help="The FastAPI application that reads them."
                )
            action.add_argument(
                "--database", metavar="ALIAS", help="By default where the models are written."
            )
            if name != "status":
                action.add_argument("--sql", action="store_true", help="Print the statements; execute none.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run the action, and say what was done."""
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
        if action == "uninstall" and not models:
            self._uninstall_all(database, sql)
            return
        try:
            wanted = _selected(models, options.get("app"))
        except selection.NoRepository:
            if action != "status" or not self._tell_of_leftovers(database, []):
                raise
            return
        tables = list(_tables(wanted, database, sql))
        if sql:
            self._print(action, tables)
        elif action == "uninstall":
            self._uninstall(tables)
        elif action == "install":
            self._install(tables, wanted)
        else:
            self._status(tables, wanted, database, everything=not models)

    def _print(self, action: str, tables: Tables) -> None:
        """A transaction for each database, to be run there."""
        for alias, group in groupby(tables, key=lambda each: each[0]):
            self.stdout.write(f"-- Database {alias}\nBEGIN;")
            known = _answers(alias)
            for _, table in group:
                self.stdout.write(f"-- {table.label}")
                if known and (error := _why_no_table(alias, table)):
                    self.stdout.write(f"-- Left out. {error}")
                    continue
                for statement in getattr(TriggerSQL(table, connections[alias]), action)():
                    self.stdout.write(f"{statement};")
            self.stdout.write(f"-- Functions that no trigger calls any more\n{DROP_UNUSED};\nCOMMIT;")

    def _install(self, tables: Tables, wanted: selection.Selection) -> None:
        words = {
            triggers.State.MISSING: "installed",
            triggers.State.OUTDATED: "brought up to date",
            triggers.State.INSTALLED: "up to date already",
        }
        stale = self._for_each(tables, wanted, lambda alias, table: words[triggers.install(alias, table)])
        for sentence in wanted.unannounced:
            self.stdout.write(sentence)
        if stale:
            raise CommandError("All others have their triggers.\n" + "\n".join(stale))

    def _for_each(
        self, tables: Tables, wanted: selection.Selection, act: Callable[[str, AnnouncedTable], str]
    ) -> list[str]:
        """Do something with each table, and tell what; one that cannot have triggers keeps no other waiting.

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

    def _uninstall(self, tables: Tables) -> None:
        for alias, table in tables:
            self._tell(alias, table, "removed" if triggers.uninstall(alias, table) else "not there")

    def _uninstall_all(self, database: str | None, sql: bool) -> None:
        """Remove whatever bears this package's name: what it was installed for may be gone."""
        for alias in self._databases(database):
            if sql:
                self.stdout.write(f"-- Database {alias}\nBEGIN;\n{DROP_ALL};\n{DROP_UNUSED};\nCOMMIT;")
                continue
            check_reachable(alias, starting=False)
            if leftovers.place_of(alias) is None:
                self.stdout.write(f"Database {alias}: a standby, and like its primary")
                continue
            found = leftovers.tables_with_triggers(alias)
            for leftover in found:
                leftovers.remove(alias, leftover)
                self._tell_of(alias, leftover, "removed")
            functions = leftovers.remove_unused_functions(alias)
            for function in functions:
                self.stdout.write(f"{function} (database {alias}): removed")
            if not functions and not found:
                self.stdout.write(f"Database {alias}: nothing is there")

    def _databases(self, database: str | None) -> list[str]:
        """The database that is named, or every one that may have triggers."""
        found = [database] if database else [alias for alias in connections if kind_of(alias) == "postgresql"]
        for alias in found or [DEFAULT_DB_ALIAS]:
            triggers.check_postgresql(alias)
        return found

    def _status(
        self, tables: Tables, wanted: selection.Selection, database: str | None, everything: bool
    ) -> None:
        states: dict[str, str] = {}

        def act(alias: str, table: AnnouncedTable) -> str:
            return states.setdefault(table.label, triggers.state(alias, table))

        stale = [*self._for_each(tables, wanted, act), *wanted.unannounced]
        if everything:
            self._tell_of_leftovers(database, tables)
        if lacking := sorted(label for label, state in states.items() if state != triggers.State.INSTALLED):
            stale.append(
                f"Writes to {', '.join(lacking)} are not announced. Run `manage.py coherence install`."
            )
        if stale:
            raise CommandError("\n".join(stale))

    def _tell_of_leftovers(self, database: str | None, tables: Tables) -> bool:
        """Tell what is there for none of these tables; returns whether anything is."""
        wanted: dict[Any, set[str | None]] = {}
        for alias, group in groupby(tables, key=lambda each: each[0]):
            quote = connections[alias].ops.quote_name
            names = leftovers.names_of(alias, [quote(table.model._meta.db_table) for _, table in group])
            wanted.setdefault(leftovers.place_of(alias), set()).update(names)
        places: set[Any] = {None}
        found = False
        for alias in self._databases(database):
            try:
                check_reachable(alias, starting=False)
            except DatabaseUnreachable as error:  # no repository needs it, or it would have been told before
                self.stdout.write(f"Database {alias}: not looked at. {error}")
                continue
            if (place := leftovers.place_of(alias)) in places:
                continue
            places.add(place)
            for leftover in leftovers.tables_with_triggers(alias):
                if leftover.table not in wanted.get(place, ()):
                    self._tell_of(alias, leftover, "installed, and no repository needs it")
                    found = True
            for function in leftovers.unused_functions(alias):
                self.stdout.write(f"{function} (database {alias}): no trigger calls it")
                found = True
        return found

    def _tell_of(self, alias: str, leftover: leftovers.Leftover, what: str) -> None:
        table = f"{leftover.table}, database {alias}"
        self.stdout.write(f"{leftover.label or 'no model'} ({table}): {what}")

    def _tell(self, alias: str, table: AnnouncedTable, what: str) -> None:
        self.stdout.write(f"{table.label} ({table.model._meta.db_table}, database {alias}): {what}")


def _selected(labels: list[str], application: str | None) -> selection.Selection:
    if labels:
        return selection.Selection(selection.named(labels))
    return selection.read_by_repositories(application)


def _tables(
    wanted: selection.Selection, database: str | None, sql: bool
) -> Iterator[tuple[str, AnnouncedTable]]:
    for alias, tables in selection.by_database(wanted.models, database).items():
        triggers.check_postgresql(alias)
        if not sql:  # which executes nothing, and may be for a database elsewhere
            check_reachable(alias, starting=False)
        yield from ((alias, table) for table in tables)


def _answers(alias: str) -> bool:
    try:
        check_reachable(alias, starting=False)
    except DatabaseUnreachable:
        return False
    return True


def _why_no_table(alias: str, table: AnnouncedTable) -> str | None:
    """Why a table can have no triggers; one that is missing here may be there where SQL is run."""
    try:
        triggers.state(alias, table)
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
