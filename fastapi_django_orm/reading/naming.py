"""Nothing secret is served that nobody has named, and nothing at all is published so.

By default rows have every column of the model. That is right for a list behind a handler and wrong for a
password; and what is published would one day have a column that a migration adds. Naming is ``fields``, a
``schema`` that lists its fields, or ``.values("id", …)``. A bare ``.values()``, ``fields = "__all__"`` and
``exclude`` in a serializer's ``Meta`` name nothing.
"""

from collections.abc import Iterator
from typing import Any

from django.conf import settings
from django.db.models import Exists, Subquery
from django.db.models.expressions import Col, RawSQL
from django.db.models.query import ValuesIterable
from django.db.models.sql import Query
from pydantic import BaseModel

from ..errors import FieldsNotNamed
from ..events import logger
from ..schemas.annotations import models_in
from ..schemas.secrets import SECRET, is_secret
from .keys import AnyQuerySet
from .validation import Declared


def check_named(repository: Declared, queryset: AnyQuerySet) -> None:
    """Refuse to serve what has to be named and is not.

    Raises:
        FieldsNotNamed: a secret is among what would be served by default; or the repository is published, and
            neither ``fields`` nor a ``schema`` says what everybody may see (under ``DEBUG``: a warning).
    """
    schema: Any = repository.schema
    if repository.fields is not None:
        return
    if schema is not None:
        if unnamed := [*_unnamed_in_schema(schema)]:
            cure = f"list the fields in {schema.__name__}.Meta"
            if repository.publish is not None:
                raise _published(repository, cure, unnamed[0])
            _refuse_secrets(repository, list(filter(SECRET.search, unnamed)), cure)
        return
    is_values = issubclass(queryset._iterable_class, ValuesIterable)
    if is_values and getattr(queryset, "_fields", None):
        return  # Django keeps the names as they were written
    columns = [field.attname for field in queryset.model._meta.concrete_fields]
    secret = list(dict.fromkeys(_secret_columns(queryset)))
    some = ", ".join(repr(name) for name in [name for name in columns if name not in secret][:3])
    cure = f"end queryset() in .values({some}, …)" if is_values else f"fields = ({some}, …)"
    if repository.publish is not None:
        refusal = _published(repository, cure, [*secret, columns[-1]][0])
        if secret or not settings.DEBUG:
            raise refusal
        # While it is being developed nothing is public yet, and its columns change all the time.
        logger.warning("published_without_fields", repository=repository.name, hint=str(refusal))
    _refuse_secrets(repository, secret, cure)


def _refuse_secrets(repository: Declared, secret: list[str], cure: str) -> None:
    if secret:
        raise FieldsNotNamed(
            f"{repository.label}: {repository.model_class._meta.label} has the field {secret[0]!r}. Say "
            f"which fields to serve: {cure}."
        )


def _published(repository: Declared, cure: str, example: str) -> FieldsNotNamed:
    return FieldsNotNamed(
        f"{repository.label}.publish: what is published is public, and by default that is every column "
        f"({example!r} for one), and every one that a migration adds. Name what everybody may see: {cure}."
    )


# What a query selects by itself


def _secret_columns(queryset: AnyQuerySet) -> Iterator[str]:
    query = queryset.query
    yield from (field.attname for field in queryset.model._meta.concrete_fields if is_secret(field))
    for name, annotation in query.annotation_select.items():
        if SECRET.search(name) or _shows_secret(annotation):
            yield name
    if issubclass(queryset._iterable_class, ValuesIterable):
        yield from (name for name, (sql, _) in query.extra_select.items() if SECRET.search(f"{name} {sql}"))


def _shows_secret(expression: Any) -> bool:
    """Whether a secret column is a part of what an annotation shows."""
    if isinstance(expression, Exists):  # shows whether there is a row, and nothing of it
        return False
    if isinstance(expression, Col) and is_secret(expression.target):
        return True
    if isinstance(expression, RawSQL) and SECRET.search(expression.sql):
        return True
    # From Django 6.1 on a Subquery has become its query by now.
    inner = expression.query if isinstance(expression, Subquery) else expression
    if isinstance(inner, Query):
        return any(map(_shows_secret, (*inner.select, *inner.annotation_select.values())))
    return any(_shows_secret(part) for part in expression.get_source_expressions() if part is not None)


# What a schema takes without a name


def _unnamed_in_schema(schema: Any) -> Iterator[str]:
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        yield from _unnamed_in_model(schema, set())
    elif isinstance(schema, type) and hasattr(schema, "_declared_fields"):
        yield from _unnamed_in_serializer(schema())


def _unnamed_in_model(model: type[BaseModel], seen: set[type[BaseModel]]) -> Iterator[str]:
    seen.add(model)
    takes_all = _takes_all(model)  # a ModelSchema of django-ninja
    for name, field in model.model_fields.items():
        if takes_all:
            yield name
        for nested in models_in(field.annotation):
            if nested not in seen:
                yield from _unnamed_in_model(nested, seen)


def _unnamed_in_serializer(serializer: Any) -> Iterator[str]:
    takes_all = _takes_all(type(serializer))
    for name, field in serializer.fields.items():
        if field.write_only:
            continue
        if takes_all and name not in serializer._declared_fields:
            yield name
        nested = getattr(field, "child", field)  # many=True; and `depth` makes some with all fields
        if hasattr(nested, "_declared_fields"):
            yield from _unnamed_in_serializer(nested)


def _takes_all(schema: type[Any]) -> bool:
    if getattr(schema, "__takes_all__", False):  # a ModelSchema
        return True
    meta = getattr(schema, "Meta", None)
    return getattr(meta, "fields", None) == "__all__" or bool(getattr(meta, "exclude", None))
