"""Serve every model of a project, and compare each list with what Django gives, before and after a write.

Run with ``DJANGO_SETTINGS_MODULE`` and ``REAL_DATABASE``; writes one line of JSON for each difference.
"""

import asyncio
import datetime as dt
import json
import sys
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import django

django.setup()

from django.apps import apps
from django.core.management import call_command
from django.db import connection, models
from django.db.models import QuerySet
from fastapi import FastAPI
from pydantic_core import to_json

from fastapi_django_orm import CachedRepository, DjangoORM, ORMSettings, run

ROWS = 3
# Rows may refer to rows that are not there, and any row may be deleted.
WITHOUT_FOREIGN_KEYS = """
    DO $$ DECLARE found record; BEGIN
        FOR found IN SELECT conname, conrelid::regclass AS of FROM pg_constraint WHERE contype = 'f' LOOP
            EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', found.of, found.conname);
        END LOOP;
    END $$
"""
NOON = dt.datetime(2026, 1, 1, 12, 30, 15, 123456, dt.UTC)


def value_of(field: Any, number: int) -> Any:
    """A value that a column of this field can have, as raw SQL takes it."""
    while field.is_relation:
        field = field.target_field
    kind = field.get_internal_type()
    match kind:
        case "BooleanField":
            return number % 2 == 0
        case "DateField":
            return NOON.date() + dt.timedelta(number)
        case "DateTimeField":
            return NOON + dt.timedelta(hours=number)
        case "TimeField":
            return dt.time(number, 30)
        case "DurationField":
            return dt.timedelta(seconds=90 * number)
        case "DecimalField":
            return Decimal(number) + Decimal("0.50")
        case "FloatField":
            return number + 0.25
        case "UUIDField":
            return uuid.UUID(int=number)
        case "JSONField":
            return json.dumps({"number": number})
        case "BinaryField":
            return bytes([number])
        case "GenericIPAddressField":
            return f"10.0.0.{number}"
    if "Integer" in kind or "Auto" in kind:
        return number
    text = f"{number} text \u00e9"
    return text[: field.max_length] if field.max_length else text


def fill(model: type[models.Model]) -> None:
    """Insert a few rows, whatever they refer to."""
    columns = [field for field in model._meta.local_concrete_fields if field.generated is False]
    names = ", ".join(connection.ops.quote_name(field.column) for field in columns)
    places = ", ".join(["%s"] * len(columns))
    table = connection.ops.quote_name(model._meta.db_table)
    with connection.cursor() as cursor:
        for number in range(1, ROWS + 1):
            values = [value_of(field, number) for field in columns]
            cursor.execute(f"INSERT INTO {table} ({names}) OVERRIDING SYSTEM VALUE VALUES ({places})", values)


def write_to(model: type[models.Model]) -> None:
    """Change one row by SQL, which only a trigger announces."""
    changed = next(
        (
            field
            for field in model._meta.local_concrete_fields
            if type(field) in (models.CharField, models.TextField, models.IntegerField, models.BooleanField)
            and not (field.unique or field.primary_key or field.choices)
        ),
        None,
    )
    quote = connection.ops.quote_name
    table, key = quote(model._meta.db_table), f"{quote(model._meta.pk.column)}::text"
    last = f"WHERE {key} = (SELECT max({key}) FROM {table})"
    with connection.cursor() as cursor:
        if changed is None:
            cursor.execute(f"DELETE FROM {table} {last}")
        else:
            value = {"IntegerField": 7, "BooleanField": True}.get(changed.get_internal_type(), "x")
            cursor.execute(f"UPDATE {table} SET {quote(changed.column)} = %s {last}", [value])


def expected(repository: Any) -> list[dict[str, Any]]:
    """What Django gives for the same columns, in the repository's order."""
    return list(repository.ordered_queryset().values(*repository.fields))


def differences(repositories: list[Any], wanted: list[list[dict[str, Any]]], when: str) -> Iterator[str]:
    for repository, rows in zip(repositories, wanted, strict=True):
        served = json.loads(repository.response().body)[repository.name]
        encoded = json.loads(to_json(rows))  # as FastAPI does under a response model
        if list(map(dict, repository.all())) != rows:
            yield f"{when}: {repository.label}: rows {repository.all()[:1]!r}, Django {rows[:1]!r}"
        if served != encoded:
            yield f"{when}: {repository.label}: sent {served[:1]!r}, FastAPI {encoded[:1]!r}"


def has_json(field: Any) -> bool:
    """Whether the field's values are of Python's or Django's own classes; JSON has no form for others."""
    return getattr(field, "from_db_value", None) is None or type(field).__module__.startswith("django.")


def declared() -> list[type[CachedRepository[Any]]]:
    """A repository for each model that has a table."""
    return [
        type(
            model.__name__,
            (CachedRepository,),
            {
                "__module__": model.__module__,
                "model": model,
                "name": model._meta.label_lower,
                # Not the default manager's, which in pretix wants a tenant to be active.
                "queryset": lambda self: QuerySet(self.model),
                "fields": tuple(field.attname for field in model._meta.concrete_fields if has_json(field)),
            },
        )
        for model in apps.get_models(include_auto_created=True)
        if model._meta.managed and not model._meta.proxy
    ]


async def compare(classes: list[type[CachedRepository[Any]]]) -> list[str]:
    found: list[str] = []
    plugin = DjangoORM(ORMSettings(refresh_path="off", health_path="off"), repositories=classes)
    async with plugin.lifespan(FastAPI()):
        repositories = [await cls.current() for cls in classes]

        async def look(when: str) -> None:
            for repository in repositories:
                await repository.wait_until_current()
            wanted = await run(lambda: list(map(expected, repositories)))
            found.extend(differences(repositories, wanted, when))

        await look("loaded")
        await run(lambda: [write_to(repository.model_class) for repository in repositories])
        await look("followed")
        for repository in repositories:
            for row in repository.all()[:1]:
                fetched = dict(await repository.fetch(row[repository.model_class._meta.pk.attname]))
                if fetched != dict(row):
                    found.append(f"fetched: {repository.label}: {fetched!r}, listed {row!r}")
    return found


def main() -> None:
    with connection.schema_editor() as editor:  # a real project's migrations take minutes
        for model in apps.get_models():
            if model._meta.can_migrate(connection):
                editor.create_model(model)
    classes = declared()
    with connection.cursor() as cursor:
        cursor.execute(WITHOUT_FOREIGN_KEYS)
    for cls in classes:
        fill(cls.model)
    call_command("coherence", "install", *[cls.model._meta.label for cls in classes], verbosity=0)
    connection.close()
    differing = asyncio.run(compare(classes))
    json.dump({"models": len(classes), "differing": differing}, sys.stdout)


if __name__ == "__main__":
    main()
