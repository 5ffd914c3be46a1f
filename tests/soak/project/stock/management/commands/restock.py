"""``manage.py restock``: a command that writes, as a cron job does."""

import random
from argparse import ArgumentParser
from contextlib import suppress
from typing import Any

from django.core.management.base import BaseCommand
from django.db import OperationalError

from tests.soak.writing.bulk import renumber
from tests.soak.writing.hand import Hand, NothingToDo


class Command(BaseCommand):
    """Numbers some items anew."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        """What is left to chance."""
        parser.add_argument("seed")
        parser.add_argument("rows", type=int)

    def handle(self, *args: Any, seed: str, rows: int, **options: Any) -> None:
        """Write; a deadlock, or that there is nothing to write, is no failure."""
        with suppress(OperationalError, NothingToDo):
            renumber(Hand(random.Random(seed), rows))
