"""What the names in a filter mean: Django's lookups, followed through relations before any request comes.

A query parameter that Django does not know, or whose type the field does not take, would fail in the first
request that sends it. So names and types are checked when a filter is declared.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import FieldError
from django.db.models import Model
from django.db.models.constants import LOOKUP_SEP
from django.db.models.lookups import (
    Contains,
    EndsWith,
    IContains,
    IEndsWith,
    IExact,
    In,
    IRegex,
    IsNull,
    IStartsWith,
    Range,
    Regex,
    StartsWith,
)
from django.db.models.sql import Query

from ..errors import InvalidFilter, UnknownField, UnknownLookup, nearest

_PATTERNS = (Contains, EndsWith, IContains, IEndsWith, IExact, IRegex, IStartsWith, Regex, StartsWith)

# What the OpenAPI document calls the values that a field takes: the format, or the type without one. Fields
# that are not here (JSON, arrays, a project's own) take anything.
_INTEGERS, _TEXTS = frozenset({"integer"}), frozenset({"string", "uuid"})
_NUMBERS = frozenset({"integer", "number"})
_TAKES: dict[str, frozenset[str]] = {
    **dict.fromkeys(["AutoField", "BigAutoField", "SmallAutoField"], _INTEGERS),
    **dict.fromkeys(["IntegerField", "BigIntegerField", "SmallIntegerField"], _INTEGERS),
    **dict.fromkeys(
        ["PositiveIntegerField", "PositiveBigIntegerField", "PositiveSmallIntegerField"], _INTEGERS
    ),
    **dict.fromkeys(["CharField", "TextField", "SlugField", "FileField", "FilePathField"], _TEXTS),
    **dict.fromkeys(["IPAddressField", "GenericIPAddressField"], _TEXTS),
    **dict.fromkeys(["FloatField", "DecimalField"], _NUMBERS),
    "BooleanField": frozenset({"boolean"}),
    "DateField": frozenset({"date"}),
    "DateTimeField": frozenset({"date-time"}),
    "TimeField": frozenset({"time"}),
    "DurationField": frozenset({"duration"}),
    "UUIDField": frozenset({"uuid"}),
}
_FORMATS = frozenset().union(*_TAKES.values())

# Fields whose values a cursor can carry, and every database can compare.
SORTABLE = frozenset(_TAKES)


@dataclass(frozen=True, slots=True)
class ResolvedLookup:
    """What a name such as ``author__name__in`` means for a model.

    Attributes:
        final: the field that the path of relations ends at.
        field: whose values are compared: the field that a relation points to; what a transform makes.
        lookup: Django's class of the comparison.
        joined: the models that are joined to the query.
        is_many: whether a row may be joined to several.
        is_nullable: whether a column without a value may be met.
        has_transform: whether the value is made of a column's.
        own_code: what in it is not Django's, as a part of a sentence.
    """

    final: Any
    field: Any
    lookup: type[Any]
    joined: frozenset[type[Model]]
    is_many: bool
    is_nullable: bool
    has_transform: bool
    own_code: str | None


def resolve_lookup(owner: str, model: type[Model], name: str) -> ResolvedLookup:
    """Follow a name as Django's ``filter()`` does.

    Args:
        owner: what declares it, for messages.
        model: where the name begins.
        name: parts with ``__`` between: fields, transforms, a lookup.

    Raises:
        UnknownField: the model, or one that a relation leads to, has no such field.
        UnknownLookup: the field has no such lookup or transform.
    """
    query: Any = Query(model)
    parts = name.split(LOOKUP_SEP)
    try:
        path, final, _, rest = query.names_to_path(parts, model._meta)
    except FieldError:
        known = [field.name for field in model._meta.get_fields()]
        raise UnknownField(
            f"{owner}: {model._meta.label} has no field {parts[0]!r}. {nearest(parts[0], known)}"
        ) from None
    column = query.resolve_ref(LOOKUP_SEP.join(parts[: len(parts) - len(rest)]))
    compared, lookup = _compared(owner, column, final, rest)
    field = compared.output_field
    codes = [lookup, field, final, *_transforms(compared, column)]
    return ResolvedLookup(
        final=final,
        field=_target(field),
        lookup=lookup,
        joined=frozenset(_concrete(info.to_opts.model) for info in path),
        is_many=any(info.m2m for info in path),
        is_nullable=compared is not column or not _is_never_null(path, final),
        has_transform=compared is not column,
        own_code=next((f"{name} uses {_named(each)}" for each in codes if not _is_djangos(each)), None),
    )


def _compared(owner: str, column: Any, final: Any, rest: list[str]) -> tuple[Any, type[Any]]:
    """The expression that a lookup compares, and the lookup."""
    if final.is_relation and rest:  # which has few lookups, while its column has all
        if (lookup := final.get_lookup(rest[0])) is None or len(rest) > 1:
            raise _unknown_lookup(owner, rest[0] if lookup is None else rest[1], column, final)
        return column, lookup
    expression = column
    for number, part in enumerate(rest, 1):
        if number == len(rest) and (lookup := expression.get_lookup(part)) is not None:
            return expression, lookup
        transform = expression.get_transform(part)
        if transform is None:
            raise _unknown_lookup(owner, part, expression, final)
        expression = transform(expression)
    return expression, expression.get_lookup("exact")


def _unknown_lookup(owner: str, part: str, expression: Any, final: Any) -> UnknownLookup:
    field = getattr(final, "field", final) if final.is_relation else expression.output_field
    known = list(field.get_lookups())
    related = getattr(final, "related_model", None)
    if related is not None:
        known += [each.name for each in related._meta.get_fields()]
    return UnknownLookup(f"{owner}: {final.name!r} has no lookup {part!r}. {nearest(part, known)}")


def check_fits(
    owner: str, resolved: ResolvedLookup, schema: Mapping[str, Any], defs: Mapping[str, Any]
) -> None:
    """Refuse an annotation whose values the lookup does not take.

    Args:
        owner: what declares it, for messages.
        resolved: the lookup.
        schema: the JSON schema of the annotated field.
        defs: the definitions that it refers to.

    Raises:
        InvalidFilter: it does not fit.
    """
    found = set(_kinds(schema, defs))
    if not found:  # Any, and types that say nothing
        return
    if issubclass(resolved.lookup, Range) and not all(map(_has_two, _arrays(schema, defs))):
        raise InvalidFilter(f"{owner}: this lookup takes two values. Annotate it tuple[…, …].")
    takes = _TAKES.get(resolved.field.get_internal_type())
    wants_list = issubclass(resolved.lookup, In | Range)
    if issubclass(resolved.lookup, IsNull):
        takes = frozenset({"boolean"})
    elif issubclass(resolved.lookup, _PATTERNS) and takes is not None:
        takes = frozenset({"string"})
    if takes is None:
        return
    if any(is_list != wants_list for _, is_list in found):
        what = "a list" if wants_list else "one value, and not a list"
        raise InvalidFilter(f"{owner}: this lookup takes {what}. Annotate it so.")
    kinds = {kind for kind, _ in found}
    if kinds == {"number", "string"}:  # a Decimal, which may be sent as a text
        kinds = {"number"}
    if not kinds <= takes:
        raise InvalidFilter(
            f"{owner}: {_named(resolved.field)} takes {' or '.join(sorted(takes))}, and the annotation gives "
            f"{' or '.join(sorted(kinds - takes))}."
        )


def _kinds(
    schema: Mapping[str, Any], defs: Mapping[str, Any], *, is_list: bool = False
) -> Iterator[tuple[str, bool]]:
    """The kinds of values that a JSON schema allows besides null, and whether they stand in a list."""
    if "$ref" in schema:
        schema = defs[schema["$ref"].rpartition("/")[2]]
    for each in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())):
        yield from _kinds(each, defs, is_list=is_list)
    kind = schema.get("type")
    if kind == "array":
        inner: Iterable[Any] = (schema.get("items", {}), *schema.get("prefixItems", ()))
        for each in inner:
            if isinstance(each, Mapping):
                yield from _kinds(each, defs, is_list=True)
    elif kind is not None and kind != "null":
        form = schema.get("format")
        yield (form if form in _FORMATS else kind), is_list


def _arrays(schema: Mapping[str, Any], defs: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if "$ref" in schema:
        schema = defs[schema["$ref"].rpartition("/")[2]]
    for each in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())):
        yield from _arrays(each, defs)
    if schema.get("type") == "array":
        yield schema


def _has_two(array: Mapping[str, Any]) -> bool:
    return array.get("minItems") == array.get("maxItems") == 2


def _transforms(expression: Any, column: Any) -> Iterator[Any]:
    while expression is not column:
        yield expression
        expression = expression.get_source_expressions()[0]


def _is_never_null(path: Iterable[Any], final: Any) -> bool:
    """Whether each row has a value at the end of a path."""
    always = all(info.direct and not info.filtered_relation and not info.join_field.null for info in path)
    return always and not getattr(final, "null", True) and not getattr(final, "generated", False)


def _target(field: Any) -> Any:
    while field.is_relation and getattr(field, "target_field", None) is not None:
        field = field.target_field
    return field


def _concrete(model: type[Model]) -> type[Model]:
    return model._meta.concrete_model or model


def _named(what: Any) -> str:
    return str((what if isinstance(what, type) else type(what)).__qualname__)


def _is_djangos(what: Any) -> bool:
    kind = what if isinstance(what, type) else type(what)
    return bool(kind.__module__.startswith("django."))
