"""``manage.py coherence``: the triggers that tell FastAPI's workers of every write to PostgreSQL."""

from argparse import ArgumentParser
from collections.abc import Collection, Iterator
from itertools import groupby
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError, connections

from ....errors import DjangoORMError
from ... import selection, triggers
from ...tables import AnnouncedTable
from ...trigger_sql import DROP_UNUSED, TriggerSQL


class Command(BaseCommand):
    """Installs, shows and removes the triggers."""

    help = "Manages the triggers that tell FastAPI's workers of every write to a PostgreSQL database."
    requires_system_checks: list[str] = []  # noqa: RUF012 - one of them asks for this very command

    def add_arguments(self, parser: ArgumentParser) -> None:
        """One command for each thing to do, all with the same arguments."""
        actions = parser.add_subparsers(dest="action", required=True)
        for name, text in (
            ("install", "Install the triggers, or bring them up to date."),
            ("status", "Tell which tables have them; the exit code is 1 unless all have."),
            ("uninstall", "Remove the triggers."),
        ):
            action = actions.add_parser(name, help=text, description=text)
            action.add_argument(
                "models", nargs="*", metavar="bbs.Topic", help="By default all that are read."
            )
            action.add_argument("--app", metavar="main:app", help="The FastAPI application that reads them.")
            action.add_argument(
                "--database", metavar="ALIAS", help="By default where the models are written."
            )
            if name != "status":
                action.add_argument("--sql", action="store_true", help="Print the statements; execute none.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run the action, and say what was done."""
        try:
            tables = list(self._tables(options))
            if options.get("sql"):
                self._print(options["action"], tables)
            else:
                getattr(self, f"_{options['action']}")(tables)
        except DjangoORMError as error:
            raise CommandError(str(error)) from error

    def _tables(self, options: dict[str, Any]) -> Iterator[tuple[str, AnnouncedTable]]:
        if (database := options["database"]) and database not in connections:
            raise CommandError(f"DATABASES has no {database!r}, only {', '.join(sorted(connections))}.")
        explained: Collection[str] = ()
        if labels := options["models"]:
            models = selection.named(labels)
        else:
            models, explained = selection.read_by_repositories(options["app"])
        for alias, tables in selection.by_database(models, database).items():
            triggers.check_postgresql(alias)
            for table in tables:
                if table.label in explained and _is_view(alias, table):
                    told = "no ordinary table, and heard of by the repository's depends_on"
                    self._tell(alias, table, told, before="-- " if options.get("sql") else "")
                else:
                    yield alias, table

    def _print(self, action: str, tables: list[tuple[str, AnnouncedTable]]) -> None:
        """A transaction for each database, to be run there."""
        for alias, group in groupby(tables, key=lambda each: each[0]):
            self.stdout.write(f"-- Database {alias}\nBEGIN;")
            for _, table in group:
                self.stdout.write(f"-- {table.label}")
                for statement in getattr(TriggerSQL(table, connections[alias]), action)():
                    self.stdout.write(f"{statement};")
            self.stdout.write(f"-- Functions that no trigger calls any more\n{DROP_UNUSED};\nCOMMIT;")

    def _install(self, tables: list[tuple[str, AnnouncedTable]]) -> None:
        words = {
            triggers.State.MISSING: "installed",
            triggers.State.OUTDATED: "brought up to date",
            triggers.State.INSTALLED: "up to date already",
        }
        for alias, table in tables:
            self._tell(alias, table, words[triggers.install(alias, table)])

    def _uninstall(self, tables: list[tuple[str, AnnouncedTable]]) -> None:
        for alias, table in tables:
            missing = triggers.uninstall(alias, table) is triggers.State.MISSING
            self._tell(alias, table, "not there" if missing else "removed")

    def _status(self, tables: list[tuple[str, AnnouncedTable]]) -> None:
        states = {table.label: (alias, table, triggers.state(alias, table)) for alias, table in tables}
        for alias, table, state in states.values():
            self._tell(alias, table, state)
        if lacking := sorted(label for label, found in states.items() if found[2] != "installed"):
            raise CommandError(
                f"Writes to {', '.join(lacking)} are not announced. Run `manage.py coherence install`."
            )

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
