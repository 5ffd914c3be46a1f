"""``manage.py refresh``: have FastAPI's workers load again, after a write that nothing has announced."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import connections

from ....coherence import choice
from ....coherence.hints import EVERYTHING, Hint
from ....coherence.publishers import TableOfHintsMissing
from ....coherence.transport import Publisher, TransportUnavailable
from ....errors import DjangoORMError
from ....reading.resolve import model_named
from ....settings import read_settings
from ... import selection

NO_TRANSPORT = (
    "There is no transport to FastAPI's workers: DJANGO_ORM_COHERENCE={coherence} finds none "
    "for these databases. Let it name a Redis or Valkey, redis://host, or the workers' refresh routes, "
    "http://host:8000/refresh/."
)


class Command(BaseCommand):
    """Sends hints through every transport."""

    help = "Has FastAPI's workers load again, all that they hold or some of it."
    requires_system_checks: list[str] = []  # noqa: RUF012 - it shall work while something is wrong

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take what is to be loaded again."""
        parser.add_argument(
            "names", nargs="*", metavar="topics", help="Repositories, or models (bbs.Topic). By default all."
        )
        parser.add_argument("--app", metavar="main:app", help="The FastAPI application that has them.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Send the hints, and print through which transports."""
        try:
            hints = [_hint(name, options["app"]) for name in options["names"]] or [EVERYTHING]
            settings = read_settings()
            publishers = choice.publishers(settings) + choice.database_publishers(settings, connections)
        except DjangoORMError as error:
            raise CommandError(str(error)) from error
        if not publishers:
            raise CommandError(NO_TRANSPORT.format(coherence=",".join(settings.coherence)))
        failures = [failure for publisher in publishers if (failure := self._send(publisher, hints))]
        missing = [failure for failure in failures if isinstance(failure, TableOfHintsMissing)]
        if missing and len(missing) == len(failures) < len(publishers):
            # No worker listens to a database without the table, which may be meant.
            self.stderr.write("\n".join(map(str, missing)))
        elif failures:
            raise CommandError("\n".join(map(str, failures)))

    def _send(self, publisher: Publisher, hints: list[Hint]) -> TransportUnavailable | None:
        """Publish the hints, and return what went wrong, if anything did."""
        try:
            for hint in hints:
                publisher.publish(hint)
        except TransportUnavailable as error:
            return error
        finally:
            publisher.close()
        what = ", ".join(hint.label for hint in hints) if hints != [EVERYTHING] else "everything"
        self.stdout.write(f"{publisher.name}: workers that listen load {what} again")
        return None


def _hint(name: str, application: str | None) -> Hint:
    model = model_named(name) if "." in name else selection.model_of(name, application)
    return Hint(model._meta.label)
