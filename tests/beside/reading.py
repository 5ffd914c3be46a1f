"""Serve the shop's models on a database, and print what differs from Django: ``python -m … DATABASE``."""

import asyncio
import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Annotated, Any

import dj_database_url
from django.conf import settings

PACKAGES = [
    "modeltranslation",
    "polymorphic",
    "safedelete",
    "djmoney",
    "phonenumber_field",
    "parler",
    "mptt",
    "treebeard",
    "taggit",
]

settings.configure(
    SECRET_KEY="for tests only",
    USE_TZ=True,
    USE_I18N=True,
    MEDIA_URL="/media/",
    LANGUAGE_CODE="en",
    LANGUAGES=[("en", "English"), ("de", "German")],
    MODELTRANSLATION_DEFAULT_LANGUAGE="en",
    PHONENUMBER_DEFAULT_REGION="DE",
    INSTALLED_APPS=[
        *(name for name in PACKAGES if find_spec(name) is not None),
        "django.contrib.contenttypes",
        "tests.beside.shop",
    ],
    DATABASES={"default": dj_database_url.parse(sys.argv[1], conn_max_age=None)},
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    MIGRATION_MODULES=dict.fromkeys(("contenttypes", "taggit")),  # all tables are made at once
)

import django

django.setup()

from django.core.management import call_command
from django.utils import translation
from fastapi import FastAPI
from pydantic import BaseModel, BeforeValidator, TypeAdapter

from fastapi_django_orm import CachedRepository, DjangoORM, ORMSettings, Repository, run
from fastapi_django_orm.errors import NotFound
from tests.beside.shop import models as shop
from tests.support.comparing import typed, values

differing: dict[str, list[str]] = {}


def expect(package: str, what: str, found: Any, expected: Any) -> None:
    if found != expected:
        differing[package].append(f"{what}: {found!r} instead of {expected!r}")


def rows(kept: Any) -> list[Any]:
    return typed(values(kept.ordered_queryset(), *kept._reader.names))


def fill(package: str, model: Any) -> None:
    for number in range(4):
        match package:
            case "modeltranslation":
                model.objects.create(title_en=f"en {number}", title_de=f"de {number}")
            case "polymorphic":
                (shop.Movie if number % 2 else model).objects.create(title=f"t{number}")
            case "mptt":
                model.objects.create(title=f"t{number}", parent=model.objects.first())
            case "parler":
                model.objects.language("en").create(title=f"t{number}", body=f"body {number}")
            case "treebeard":
                model.add_root(title=f"t{number}")
            case "taggit":
                model.objects.create(title=f"t{number}").tags.add("a", "b")
            case _:
                model.objects.create(title=f"t{number}")
    if package == "safedelete":
        model.objects.last().delete()


def change(model: Any, key: int) -> None:
    row = model._base_manager.get(pk=key)
    row.title = "changed"
    row.save()


async def check(package: str, live: Any, kept: Any, model: Any) -> None:
    async def fetched(key: int) -> Any:
        try:
            return typed([await live.fetch(key)])
        except NotFound:
            return None

    def one(key: int) -> Any:
        found = values(live.queryset().filter(pk=key), *live._reader.names)
        return typed(found[:1]) or None

    keys = range(1, 6)
    expect(package, "list", typed(kept.all()), await run(rows, kept))
    expected = await run(lambda: [one(key) for key in keys])
    expect(package, "alone", [await fetched(key) for key in keys], expected)
    expect(package, "together", await asyncio.gather(*map(fetched, keys)), expected)
    shown = json.loads(await live.live.window(0, 10))[live.name]
    expect(package, "part", len(shown), len(await run(rows, live)))
    if package == "modeltranslation":
        with translation.override("de"):
            expect(package, "German", (await live.fetch(1))["title"], "de 0")
    await run(change, model, 2)
    await kept.refresh(2)
    expect(package, "after a write", typed(kept.all()), await run(rows, kept))
    expect(
        package,
        "kept",
        json.loads(kept.snapshot.json)[kept.name],
        json.loads(await live.live.window(0, None))[live.name],
    )


def address(file: Any) -> Any:
    return file.url if file else None


def schemas() -> list[tuple[str, Any, Any]]:
    """For each package schemas as people write them, and the model."""
    found: list[tuple[str, Any, Any]] = []
    if "djmoney" in shop.MADE:
        contact = shop.MADE["djmoney"]

        class Written(BaseModel):
            id: int
            title: str
            phone: Annotated[str, BeforeValidator(str)]
            cost: Annotated[str, BeforeValidator(str)]
            photo: Annotated[str | None, BeforeValidator(address)]

        found.append(("djmoney", Written, contact))
        if find_spec("ninja") is not None:
            from ninja import ModelSchema

            class Resolved(ModelSchema):
                cost: str

                class Meta:
                    model = contact
                    fields = ("id", "title", "photo")

                @staticmethod
                def resolve_cost(contact: Any) -> str:
                    return f"{contact.title} {contact.cost}"

            found.append(("djmoney", Resolved, contact))
    if "modeltranslation" in shop.MADE:

        class Title(BaseModel):
            id: int
            title: str

        found.append(("modeltranslation", Title, shop.MADE["modeltranslation"]))
    if "polymorphic" in shop.MADE:

        class Out(BaseModel):
            id: int
            title: str
            length: int | None = None

        found.append(("polymorphic", Out, shop.MADE["polymorphic"]))
    if "parler" in shop.MADE:

        class Translated(BaseModel):
            title: str
            body: str

        found.append(("parler", Translated, shop.MADE["parler"]))
    return found


async def check_schema(package: str, schema: Any, kept: Any) -> None:
    """The response model of FastAPI is the measure."""

    def response() -> Any:
        adapter = TypeAdapter(list[schema])  # type: ignore[valid-type]
        instances = adapter.validate_python(list(kept.ordered_queryset()), from_attributes=True)
        return json.loads(adapter.dump_json(instances, by_alias=True))

    expect(package, schema.__name__, json.loads(kept.snapshot.json)[kept.name], await run(response))


def repository(base: Any, model: Any, **attributes: Any) -> Any:
    name = attributes.get("name", model.__name__ + base.__name__)
    return type(name, (base,), {"model": model, "ordering": ("pk",), **attributes})


async def main() -> None:
    # A PhoneNumber has no JSON form of its own, so it is for schemas.
    fields = {"djmoney": {"fields": ("id", "title", "cost", "cost_currency", "photo")}}
    pairs = {
        package: tuple(
            repository(base, model, **fields.get(package, {})) for base in (Repository, CachedRepository)
        )
        for package, model in shop.MADE.items()
    }
    kept = [
        (package, schema, repository(CachedRepository, model, schema=schema, name=schema.__name__))
        for package, schema, model in schemas()
    ]
    every = [each for pair in pairs.values() for each in pair] + [each for _, _, each in kept]
    async with DjangoORM(ORMSettings(coherence="off"), repositories=every).lifespan(FastAPI()):
        for package, schema, each in kept:
            await check_schema(package, schema, await each.current())
        for package, (live, cached) in pairs.items():
            await check(package, await live.current(), await cached.current(), shop.MADE[package])


def alone(function: Callable[[], Any]) -> None:
    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    function()


if __name__ == "__main__":
    call_command("migrate", run_syncdb=True, verbosity=0)
    for package, model in shop.MADE.items():
        differing[package] = []
        fill(package, model)
    alone(lambda: asyncio.run(main()))
    print(json.dumps(differing))
