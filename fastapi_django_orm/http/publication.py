"""What is published: where, how much of it, and what the rows look like in the OpenAPI document."""

import inspect
import re
from collections.abc import Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pydantic
from django.core.exceptions import FieldError
from django.db.models import Model, QuerySet
from django.db.models.query import ValuesIterable
from pydantic import BaseModel, ConfigDict, create_model

from ..cached import CachedRepository
from ..errors import InvalidRepository, NotLoaded
from ..queries.filter import Filter
from ..reading.readers import depends_on_others, is_final
from ..repository import Repository, naming_errors
from .sources import Source, source_for

_TYPES: dict[str, type[Any]] = {
    **dict.fromkeys(["AutoField", "BigAutoField", "SmallAutoField"], int),
    **dict.fromkeys(["IntegerField", "BigIntegerField", "SmallIntegerField"], int),
    **dict.fromkeys(["PositiveIntegerField", "PositiveBigIntegerField", "PositiveSmallIntegerField"], int),
    **dict.fromkeys(["CharField", "TextField", "SlugField", "FileField", "FilePathField"], str),
    **dict.fromkeys(["IPAddressField", "GenericIPAddressField"], str),
    "BooleanField": bool,
    "FloatField": float,
    "DecimalField": Decimal,
    "DateField": date,
    "DateTimeField": datetime,
    "TimeField": time,
    "DurationField": timedelta,
    "UUIDField": UUID,
    "BinaryField": bytes,
}


class Publication:
    """A published repository.

    Attributes:
        path: the list's.
        base: the same without a slash at the end.
        row_path: the rows', with ``{pk}`` for the key.
        filter: the query parameters of the list; None for an offset and a limit.
        row_model, list_model: for the OpenAPI document.
        key_type: of the rows' keys; None if they have none that can stand in a path.
    """

    def __init__(self, repository: Repository[Any]) -> None:
        """Look at the models. On a database thread: an overridden ``queryset()`` may query."""
        _check(repository)
        self.name, self.label = repository.name, repository.label
        self.description = inspect.cleandoc(vars(type(repository)).get("__doc__") or "")
        self.path = str(repository.publish)
        self.base = self.path.rstrip("/")
        self.row_path = f"{self.base}/{{pk}}"
        self.row_model = row_model(repository)
        self.filter: type[Filter] | None = getattr(repository, "filter", None)
        self.list_model = list_model(
            f"{self.label}List", self.name, self.row_model, pages=self.filter is not None
        )
        self.key_type = key_type(repository)
        self.max_limit, self.max_offset = repository.max_limit, repository.max_offset
        self._source: Source | None = source_for(repository)

    @property
    def source(self) -> Source:
        """What answers for it."""
        if self._source is None:  # the application is ending
            raise NotLoaded.of(self.name)
        return self._source

    def end(self) -> None:
        """Forget the rows: FastAPI remembers handlers for longer than their routes."""
        self._source = None


def publications(repositories: Iterable[Repository[Any]]) -> list[Publication]:
    """What these repositories publish. On a database thread.

    Raises:
        InvalidRepository: ``publish`` is not a path, or is another repository's too.
    """
    found: dict[str, Publication] = {}
    for repository in repositories:
        if repository.publish is None:
            continue
        with naming_errors(repository):
            publication = Publication(repository)
        other = found.setdefault(publication.base, publication)
        if other is not publication:
            raise InvalidRepository(
                f"{repository.label}.publish: {other.label} is published at {other.path!r} already. "
                "Give one of them a path of its own."
            )
    return list(found.values())


def _check(repository: Repository[Any]) -> None:
    label, path = repository.label, repository.publish
    if not isinstance(path, str) or not re.fullmatch(r"/(?:[^/{}?#\s]+/)*[^/{}?#\s]*", path):
        raise InvalidRepository(
            f"{label}.publish: {path!r} is not a path to publish at. Write one that begins with a "
            f'slash and has no braces, no query and no empty part: publish = "/{repository.name}/".'
        )
    for name, least in (("max_limit", 1), ("max_offset", 0)):
        value = getattr(repository, name)
        if value is not None and (type(value) is not int or value < least):
            raise InvalidRepository(
                f"{label}.{name}: {value!r} is not a number of rows. Write a whole number from {least}, "
                "or None for no limit."
            )


# What the rows look like


def row_model(repository: Repository[Any]) -> type[BaseModel]:
    """The repository's own schema, or a model made of the fields that it reads."""
    schema, queryset = repository.schema, repository.queryset()
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        return schema
    # Aliases, since pydantic does not take every name for a field.
    fields: dict[str, Any] = {
        f"field_{number}": (_type_of(name, queryset) if schema is None else Any, pydantic.Field(alias=name))
        for number, name in enumerate(repository._reader.names)
    }
    title = f"{repository.label}Row"
    return create_model(title, __config__=ConfigDict(title=title, arbitrary_types_allowed=True), **fields)


def list_model(title: str, name: str, row: type[BaseModel], *, pages: bool) -> type[BaseModel]:
    """The model of ``{name: rows}``, or of a page of them with their number and the next page's cursor."""
    rows: Any = list[row]  # type: ignore[valid-type]  # known when it runs
    fields: dict[str, Any] = {"rows": (rows, pydantic.Field(alias=name))}
    if pages:
        fields |= {
            "total": (int, pydantic.Field(description="How many rows there are on all pages.")),
            "next": (str | None, pydantic.Field(description="The next page's `after`, if there is one.")),
        }
    return create_model(title, **fields)


def key_type(repository: Repository[Any]) -> Any:
    """The type of the rows' keys; None if they have none that can stand in a path."""
    model, queryset = repository.model_class, repository.queryset()
    key = model._meta.pk
    if not key.concrete or getattr(key, "columns", None):
        return None  # several columns
    is_live = not isinstance(repository, CachedRepository)
    if is_live and (is_final(queryset) or depends_on_others(queryset)):
        return None  # fetch() refuses to look for one
    if repository.schema is None and not {key.attname, key.name, "pk"}.intersection(repository._reader.names):
        # Rows of .values() without their key; those of `fields` have it nevertheless.
        return None if issubclass(queryset._iterable_class, ValuesIterable) else _type(key)
    return _type(key)


def _type_of(name: str, queryset: "QuerySet[Any, Any]") -> Any:
    annotation = queryset.query.annotations.get(name)
    if annotation is None:
        return _column_type(name, queryset.model)
    try:
        return _type(annotation.output_field) | None
    except FieldError:  # of several types, so Django does not know it either
        return Any


def _column_type(name: str, model: type[Model]) -> Any:
    """The type of a column, or of a relation's (``author__name``)."""
    columns = {field.attname: field for field in model._meta.concrete_fields}
    if name == "pk":
        return _type(model._meta.pk)
    if name in columns:
        return _nullable(columns[name])
    head, _, rest = name.partition("__")
    field = next((field for field in model._meta.get_fields() if field.name == head), None)
    if field is None or not (rest or field.concrete):
        return Any
    if not rest:
        return _nullable(field)
    related = field.related_model
    if not (isinstance(related, type) and issubclass(related, Model)):
        return Any  # a key of JSON, a transform
    return _column_type(rest, related) | None


def _nullable(field: Any) -> Any:
    # What the database generates may be null, whatever the field says.
    nullable = field.null or getattr(field, "generated", False)
    return _type(field) | None if nullable else _type(field)


def _type(field: Any) -> Any:
    while field.is_relation:
        field = field.target_field
    kind = field.get_internal_type()
    if kind == "ArrayField":
        return list[_nullable(field.base_field)]  # type: ignore[misc]  # known when it runs
    # A field of the project's own may read as anything.
    return Any if hasattr(field, "from_db_value") else _TYPES.get(kind, Any)
