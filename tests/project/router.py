"""Sends every query to the database that the running test has chosen."""

from typing import Any

chosen = "default"


def choose(alias: str) -> None:
    global chosen
    chosen = alias


class ChosenDatabase:
    def db_for_read(self, model: type[Any], **hints: Any) -> str:
        return chosen

    def db_for_write(self, model: type[Any], **hints: Any) -> str:
        return chosen

    def allow_relation(self, one: Any, other: Any, **hints: Any) -> bool:
        return True
