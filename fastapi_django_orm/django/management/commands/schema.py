"""``manage.py schema bbs.Topic``: print a schema of a model with every annotation, to be copied."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ....errors import DjangoORMError
from ....schemas.printing import source_of_schema


class Command(BaseCommand):
    """Prints the class: people see what a schema has, and type checkers know its attributes."""

    help = "Prints a ModelSchema of a model with every annotation."
    requires_system_checks: list[str] = []  # noqa: RUF012 - it shall work while something is wrong

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take the model, and which of its fields."""
        parser.add_argument("model", metavar="bbs.Topic", help="A model's label.")
        parser.add_argument("fields", nargs="*", help="Names of fields; by default all that are not secret.")
        parser.add_argument("--name", help="What to call the class; by default TopicOut.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Print it."""
        try:
            source = source_of_schema(options["model"], options["fields"], options["name"])
        except DjangoORMError as error:
            raise CommandError(str(error)) from error
        self.stdout.write(source)
