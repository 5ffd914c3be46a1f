"""``manage.py coherence``: the triggers that tell FastAPI's workers of every write to PostgreSQL."""

from argparse import ArgumentParser
from collections.abc import Collection, Iterator
from itertools import groupby
from typing import Any, TypeAlias

from django.core.management.base import BaseCommand, CommandError
from django.db import DEFAULT_DB_ALIAS, DatabaseError, InterfaceError, OperationalError, connections

from ....database.engines import kind_of
from ....database.reachable import check_reachable
from ....errors import DatabaseUnreachable, DjangoORMError
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
            tables = list(self._tables(database, models, options.get("app"), sql))
        except selection.NoRepository:
            if action != "status" or not self._tell_of_leftovers(database, []):
                raise
            return
        if sql:
            self._print(action, tables)
        elif action == "status":
            self._status(tables, database, everything=not models)
        else:
            getattr(self, f"_{action}")(tables)

    def _tables(
        self, database: str | None, labels: list[str], application: str | None, sql: bool
    ) -> Iterator[tuple[str, AnnouncedTable]]:
        explained: Collection[str] = ()
        if labels:
            models = selection.named(labels)
        else:
            models, explained = selection.read_by_repositories(application)
        for alias, tables in selection.by_database(models, database).items():
            triggers.check_postgresql(alias)
            if not sql:  # which executes nothing, and may be for a database elsewhere
                check_reachable(alias, starting=False)
            for table in tables:
                if table.label in explained and _is_view(alias, table):
                    told = "no ordinary table, and heard of by the repository's depends_on"
                    self._tell(alias, table, told, before="-- " if sql else "")
                else:
                    yield alias, table

    def _print(self, action: str, tables: Tables) -> None:
        """A transaction for each database, to be run there."""
        for alias, group in groupby(tables, key=lambda each: each[0]):
            self.stdout.write(f"-- Database {alias}\nBEGIN;")
            for _, table in group:
                self.stdout.write(f"-- {table.label}")
                for statement in getattr(TriggerSQL(table, connections[alias]), action)():
                    self.stdout.write(f"{statement};")
            self.stdout.write(f"-- Functions that no trigger calls any more\n{DROP_UNUSED};\nCOMMIT;")

    def _install(self, tables: Tables) -> None:
        words = {
            triggers.State.MISSING: "installed",
            triggers.State.OUTDATED: "brought up to date",
            triggers.State.INSTALLED: "up to date already",
        }
        for alias, table in tables:
            self._tell(alias, table, words[triggers.install(alias, table)])

    def _uninstall(self, tables: Tables) -> None:
        for alias, table in tables:
            missing = triggers.uninstall(alias, table) is triggers.State.MISSING
            self._tell(alias, table, "not there" if missing else "removed")

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

    def _status(self, tables: Tables, database: str | None, everything: bool) -> None:
        states = {table.label: (alias, table, triggers.state(alias, table)) for alias, table in tables}
        for alias, table, state in states.values():
            self._tell(alias, table, state)
        if everything:
            self._tell_of_leftovers(database, tables)
        if lacking := sorted(label for label, found in states.items() if found[2] != "installed"):
            raise CommandError(
                f"Writes to {', '.join(lacking)} are not announced. Run `manage.py coherence install`."
            )

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

    def _tell(self, alias: str, table: AnnouncedTable, what: str, before: str = "") -> None:
        self.stdout.write(f"{before}{table.label} ({table.model._meta.db_table}, database {alias}): {what}")


def _is_view(alias: str, table: AnnouncedTable) -> bool:
    try:
        triggers.state(alias, table)
    except triggers.NoTable:
        return True
    except (DjangoORMError, DatabaseError):
        pass  # whoever needs the table complains
    return False
