"""Give every model of a project a schema, and let a row of each survive the round trip.

Run with ``DJANGO_SETTINGS_MODULE`` and ``REAL_DATABASE``; writes one line of JSON with what does not.
"""

import json
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import django

django.setup()

from django.apps import apps
from django.core import validators
from django.db import connection, models
from fastapi import FastAPI
from jsonschema import Draft202012Validator
from pydantic import create_model

from fastapi_django_orm import ModelSchema
from fastapi_django_orm.schemas import register_field
from fastapi_django_orm.schemas.secrets import is_secret
from tests.beside.real.every_model import value_of

# Candidates for a field whose validators refuse the first value.
TEXTS = (
    "a",
    "text",
    "en",
    "a@b.org",
    "https://a.org/",
    "A1",
    "1",
    "#ffffff",
    "10.0.0.1",
    "EUR",
    "DE",
    "a.b",
    "/a/",
    "+12125552368",
)


def register_kinds() -> None:
    """Say what this project's own fields are, as an application that uses them would."""
    from typing import Annotated

    from pydantic import BeforeValidator

    if apps.is_installed("oscar"):
        from phonenumber_field.modelfields import PhoneNumberField

        register_field(PhoneNumberField, Annotated[str, BeforeValidator(str)])
    if apps.is_installed("wagtail"):
        from wagtail.blocks import StreamValue
        from wagtail.fields import StreamField

        def raw(value: Any) -> Any:
            return list(value.raw_data) if isinstance(value, StreamValue) else value

        register_field(StreamField, Annotated[list[dict[str, Any]], BeforeValidator(raw)])


def accepted(field: Any, number: int) -> Any:
    """A value that the field's own validators accept."""
    if field.choices:
        return next(value for value, _ in field.flatchoices if value not in (None, ""))
    if not field.is_relation and field.get_internal_type() in (
        "CharField",
        "TextField",
        "SlugField",
        "FileField",
    ):
        for text in TEXTS:
            try:
                field.run_validators(text)
            except (validators.ValidationError, AttributeError):
                continue
            return text
    value = value_of(field, number)
    return field.to_python(json.loads(value) if field.get_internal_type() == "JSONField" else value)


def row_of(model: type[models.Model]) -> models.Model:
    """An instance with a value in every column."""
    columns = [field for field in model._meta.concrete_fields if not field.generated]
    return model(**{field.attname: accepted(field, 1) for field in columns})


def schema_of(model: type[models.Model]) -> type[ModelSchema]:
    """A schema of every column, secrets included."""
    names = [field.name for field in model._meta.concrete_fields if not field.name.startswith("_")]
    return create_model(
        model.__name__, __base__=ModelSchema, __cls_kwargs__={"model": model, "fields": names}
    )


def differences(model: type[models.Model], schema: type[ModelSchema], row: models.Model) -> Iterator[str]:
    """What a row loses on its way through the schema, JSON and the database."""
    made = schema.model_validate(row)
    sent = made.model_dump_json()
    if schema.model_validate_json(sent) != made:
        yield f"from JSON: {sent}"
    answer = schema.model_json_schema(mode="serialization")
    Draft202012Validator.check_schema(answer)
    yield from (
        f"JSON schema: {error.message}"
        for error in Draft202012Validator(answer).iter_errors(json.loads(sent))
    )
    stored = model._base_manager.get(pk=row.pk)
    if (read := schema.model_validate(stored)) != made:
        yield f"from the database: {read!r}, not {made!r}"


def main() -> None:
    warnings.filterwarnings("ignore", "Field name")  # some have the names of pydantic's methods
    register_kinds()
    tables = [model for model in apps.get_models() if model._meta.managed and not model._meta.proxy]
    with connection.schema_editor() as editor:
        for model in tables:
            editor.create_model(model)
    rows, differing, schemas = {}, [], {}
    with connection.constraint_checks_disabled():
        for model in tables:
            rows[model] = row_of(model)
            rows[model].save_base(raw=True, force_insert=True)
        for model in tables:
            try:
                schemas[model] = schema_of(model)
                found = list(differences(model, schemas[model], rows[model]))
            except Exception as error:
                found = [f"{type(error).__name__}: {error}"]
            differing += [f"{model._meta.label}: {each}" for each in found]
    app = FastAPI()
    for schema in schemas.values():
        app.post(f"/{schema.__django_model__._meta.label}/", response_model=schema)(_handler(schema))
    for schema in app.openapi()["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    secret = sorted(
        {field.name for model in tables for field in model._meta.concrete_fields if is_secret(field)}
    )
    json.dump({"models": len(tables), "differing": differing, "secret": secret}, sys.stdout)


def _handler(schema: Any) -> Any:
    async def post(body: Any) -> Any:
        return body

    post.__annotations__["body"] = schema
    return post


if __name__ == "__main__":
    main()
