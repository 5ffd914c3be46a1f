"""Fill an empty board, so that there is something to see."""

from itertools import cycle
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand
from django.db import transaction

from bbs.models import Author, Topic

USERNAME = PASSWORD = "demo"

AUTHORS = ("Ann", "花子")

COMMENTS = (
    "Hello, board! Django wrote this line and FastAPI serves it.",
    "こんにちは。DjangoのORMをFastAPIから使っています。",
    "Add a topic on /board/, and / has it too.",
    "掲示板に書き込むと、トップページのJSONにも表示されます。",
    "絵文字も大丈夫です 🍣🗻 and so are accents: café, naïve.",
    "<b>Markup</b> is shown as it was typed & never run.",
)


class Command(BaseCommand):
    help = "Adds topics to an empty board and a demo admin, unless they exist."

    @transaction.atomic
    def handle(self, *args: Any, **options: Any) -> None:
        self.add_topics()
        self.add_admin()

    def add_topics(self) -> None:
        if count := Topic.objects.count():
            self.stdout.write(f"Topics: kept the {count} on the board.")
            return
        authors = [Author.objects.get_or_create(name=name)[0] for name in AUTHORS]
        Topic.objects.bulk_create(
            Topic(comment=comment, author=author)
            for comment, author in zip(COMMENTS, cycle([*authors, None]), strict=False)
        )
        self.stdout.write(f"Topics: added {len(COMMENTS)}.")

    def add_admin(self) -> None:
        users = get_user_model().objects
        if users.filter(username=USERNAME).exists():
            self.stdout.write(f"Admin: kept the user {USERNAME}.")
        elif not settings.DEBUG:
            # Everybody knows this password.
            self.stdout.write("Admin: none added, because DEBUG is off; use createsuperuser.")
        else:
            users.create_superuser(USERNAME, password=PASSWORD)
            self.stdout.write(f"Admin: added the user {USERNAME}, password {PASSWORD}.")
