"""What a repository class declares, checked against the models that it names.

Runs once, at startup, when Django is set up: a wrong label or field ends startup with what to write instead,
before a request meets it. So does an attribute that would be ignored: an ignored ``exclude`` or ``feilds``
would serve every column, and an ignored ``get_queryset()`` every row.
"""

from collections.abc import Iterable, Sequence
from datetime import timedelta
from difflib import get_close_matches
from types import FunctionType
from typing import Any, Protocol

from django.core.exceptions import FieldError
from django.db.models import Model, QuerySet
from django.db.models.query import ModelIterable, ValuesIterable

from ..errors import InvalidRepository, UnknownField, nearest
from .keys import AnyQuerySet
from .readers import Reader
from .resolve import unknown_field


class Declared(Protocol):
    """What is needed here of a repository; its own documentation says what each attribute means."""

    @property
    def label(self) -> str: ...  # noqa: D102
    @property
    def fields(self) -> Sequence[str] | None: ...  # noqa: D102
    @property
    def ordering(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def name(self) -> Any: ...  # noqa: D102
    @property
    def schema(self) -> Any: ...  # noqa: D102
    @property
    def publish(self) -> str | None: ...  # noqa: D102
    @property
    def model_class(self) -> type[Model]: ...  # noqa: D102

    def queryset(self) -> AnyQuerySet: ...  # noqa: D102
    def ordered_queryset(self) -> AnyQuerySet: ...  # noqa: D102


class DeclaredCached(Declared, Protocol):
    """What is needed here of one that keeps its rows."""

    @property
    def max_age(self) -> Any: ...  # noqa: D102
    @property
    def indexes(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def max_decoded_rows(self) -> Any: ...  # noqa: D102
    @property
    def depends_on(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def observed(self) -> Any: ...  # noqa: D102
    @property
    def filtered_models(self) -> Iterable[type[Model]]: ...  # noqa: D102


def ordered(queryset: AnyQuerySet, ordering: Sequence[str]) -> AnyQuerySet:
    """Return the query in an order that is the same in every worker: the key decides in the end."""
    query = queryset.query
    if query.is_sliced:
        return queryset  # Django would refuse to order it again
    # These can be ordered only by what they select.
    if query.combinator or query.distinct_fields or issubclass(queryset._iterable_class, ValuesIterable):
        return queryset.order_by(*ordering) if ordering else queryset
    wanted = ordering or query.order_by or queryset.model._meta.ordering
    names, pk = {str(item).lstrip("-") for item in wanted}, queryset.model._meta.pk
    # A key that is a relation sorts, by its name, as the other model does.
    if names & {"pk", pk.attname, "?", *(() if pk.is_relation else (pk.name,))}:
        return queryset.order_by(*wanted)
    return queryset.order_by(*wanted, "pk")


def check_shape(repository: Declared) -> None:
    """Refuse attributes of a wrong type, and a ``queryset()`` that returns something else than rows.

    Raises:
        InvalidRepository: there is one.
    """
    label, name = repository.label, repository.name
    if not isinstance(name, str) or not name:
        raise InvalidRepository(f"{label}.name: write the key that the JSON has for the rows, not {name!r}.")
    for attribute in ("fields", "ordering"):
        _check_names(f"{label}.{attribute}", getattr(repository, attribute))
    if repository.fields is not None and not repository.fields:
        raise InvalidRepository(f"{label}.fields: name at least one field, or leave it out for all.")
    queryset: Any = repository.queryset()
    iterable = getattr(queryset, "_iterable_class", None)
    if iterable is None or not issubclass(iterable, ModelIterable | ValuesIterable):
        is_list = isinstance(queryset, QuerySet)
        what = "one that ends in .values_list()" if is_list else f"a {type(queryset).__name__}"
        raise InvalidRepository(
            f"{label}.queryset(): give a query of model instances, or one that ends in .values(); "
            f"this is {what}."
        )


def check_cached(repository: DeclaredCached, reader: Reader) -> None:
    """Refuse attributes that only a cached repository has, if they do not fit.

    Raises:
        InvalidRepository: a number where a time is wanted, and the like.
        UnknownField: ``indexes`` name what its rows do not have.
    """
    label, max_age, kept = repository.label, repository.max_age, repository.max_decoded_rows
    _check_names(f"{label}.indexes", repository.indexes)
    if max_age is not None and (not isinstance(max_age, timedelta) or max_age <= timedelta(0)):
        seconds = max_age if type(max_age) in (int, float) and max_age > 0 else 60
        raise InvalidRepository(f"{label}.max_age: write timedelta(seconds={seconds}), not {max_age!r}.")
    if type(kept) is not int or kept < 0:
        raise InvalidRepository(f"{label}.max_decoded_rows: write a number of rows, not {kept!r}.")
    unknown = [name for name in repository.indexes if name not in reader.names]
    if unknown:
        raise UnknownField(
            f"{label}.indexes: its rows have no field {unknown[0]!r}. {nearest(unknown[0], reader.names)}"
        )


def _check_names(where: str, names: Any) -> None:
    if names == "__all__":
        raise InvalidRepository(f"{where}: name the fields, or leave it out for all of them.")
    if isinstance(names, str):
        raise InvalidRepository(f"{where}: write ({names!r},), a tuple of names.")
    if not isinstance(names, Sequence) and not (names is None and where.endswith(".fields")):
        raise InvalidRepository(f"{where}: write a tuple of names, not {names!r}.")


def check_ordering(repository: Declared) -> None:
    """Refuse an ``ordering`` by what is not there.

    Raises:
        UnknownField: a name in it is neither a column, a relation's column nor an annotation.
    """
    queryset = repository.queryset()
    if repository.ordering and queryset.query.is_sliced:
        raise InvalidRepository(
            f"{repository.label}: queryset() is sliced, and only what is not can be ordered. Leave out "
            "`ordering`, and order before the slice."
        )
    for item in repository.ordering:
        try:
            _resolve_ordering(item, queryset.order_by(item))
        except FieldError as error:
            where = f"{repository.label}.ordering"
            if not isinstance(item, str):
                raise UnknownField(f"{where}: {error}") from None
            raise unknown_field(where, item.lstrip("-"), queryset) from None


def _resolve_ordering(item: Any, queryset: AnyQuerySet) -> None:
    # order_by() looks at a name's first part alone; the rest would fail in the first load.
    query = queryset.query.chain()
    if not isinstance(item, str):
        item.resolve_expression(query)
    elif item != "?" and item.lstrip("-") not in query.extra:
        query.resolve_ref(item.lstrip("-"))


# Attributes that would be ignored: other libraries' words, and slips of the pen

_CACHED_ALONE = ("max_age", "indexes", "max_decoded_rows", "depends_on")
_DATA = ("model", "fields", "ordering", "schema", "publish", "cache_control", *_CACHED_ALONE)
_METHODS = ("queryset", "ordered_queryset")
_QUERYSET = "write `def queryset(self): return super().queryset().filter(…)`"

# Words of Django, Django REST framework, django-ninja and FastAPI, after what to write instead.
_HABITS = {
    'name what the rows have: fields = ("id", …)': """
        Config Meta columns defer deferred exclude exclude_fields excluded fields_optional hidden_fields
        include include_fields list_display model_exclude model_fields only read_only_fields readonly_fields
        response_model_exclude response_model_include values values_list write_only_fields""",
    _QUERYSET: """
        aggregate annotate annotations distinct filter filter_by filter_queryset filters get_query
        get_query_set get_queryset list_select_related manager objects prefetch_related select_related
        where""",
    'write ordering = ("-pk",)': """
        default_ordering get_ordering order order_by orderby sort sort_by""",
    "write schema = TopicOut, a pydantic model or a serializer class": """
        extra_kwargs form_class get_serializer get_serializer_class output_schema response_model
        response_schema schema_class schema_out serializer serializer_class serializers""",
    "leave `publish` out, since nothing guards that, and return `topics.response()` from a handler with the "
    "dependencies that say who may see it": """
        auth authenticate authentication authentication_classes dependencies get_permissions guards
        has_object_permission has_permission login_required login_url permission permission_classes
        permission_required permissions raise_exception security test_func throttle_classes throttle_scope""",
    "write a FastAPI handler that takes Depends(Topics.current)": """
        allowed_methods as_view basename context_object_name dispatch get_context_data get_object
        http_method_names parser_classes perform_create perform_destroy perform_update renderer_classes
        template_name viewset""",
    "name fields in `indexes` and call find() in a handler, or filter in queryset()": """
        filter_backends filter_class filter_fields filterset filterset_class filterset_fields list_filter
        ordering_fields search_fields""",
    "find rows by their primary key, or by another field with find() or fetch(field=…)": """
        lookup_field lookup_url_kwarg pk_field pk_url_kwarg primary_key slug_field slug_url_kwarg""",
    "let clients ask for a part with ?offset= and ?limit=, or write response(offset=…, limit=…)": """
        limit offset paginate paginate_by pagination pagination_class paginator_class""",
    "write .using() in queryset(), or a router for DATABASE_ROUTERS": """
        database databases db db_alias using""",
    "write max_age = timedelta(seconds=…)": """
        cache_timeout cache_ttl expire expires refresh_interval ttl""",
}
_INSTEAD = {word: instead for instead, words in _HABITS.items() for word in words.split()}


def check_spelling(cls: type[Any]) -> None:
    """Refuse a repository class with an attribute that would have no effect.

    Raises:
        InvalidRepository: there is one; the message has what to write.
    """
    if error := _spelling_error(cls):
        raise error


def no_model(cls: type[Any]) -> InvalidRepository:
    """Return the error of a repository that names no model, perhaps since the attribute is misspelled."""
    return _spelling_error(cls) or InvalidRepository(
        f'{cls.__qualname__} has no `model`. Write the label of one, app and class: model = "app.Model".'
    )


def _spelling_error(cls: type[Any]) -> InvalidRepository | None:
    package = __package__.partition(".")[0]
    known = next(each for each in cls.__mro__ if each.__module__.partition(".")[0] == package)
    own = cls.__mro__[: cls.__mro__.index(known)]
    written = {name for each in own for name in vars(each)}
    for each in own:
        for name, value in vars(each).items():
            if name == "filter" and isinstance(value, type):  # for the published list
                continue
            what = _habit(name, known)
            if what is None and issubclass(each, known):  # a mixin may be for other classes, too
                what = _misplaced(name, value, known) or _misspelled(name, value, known, written)
            if what is not None:
                return InvalidRepository(f"{each.__qualname__}.{name}: {what}")
    return None


def _habit(name: str, known: type[Any]) -> str | None:
    if hasattr(known, name):
        return None
    if name in _CACHED_ALONE:
        return "only a CachedRepository, which keeps rows, has this. Extend that, or leave it out."
    if (instead := _INSTEAD.get(name)) is None:
        return None
    return (
        f"a repository has no such attribute, and would ignore it. Instead, {instead}. If it is one of your "
        f"own, call it _{name}."
    )


def _misplaced(name: str, value: Any, known: type[Any]) -> str | None:
    if not isinstance(getattr(known, name, None), FunctionType):
        return None
    if isinstance(value, classmethod | staticmethod) or (callable(value) and not isinstance(value, type)):
        return None
    write = _QUERYSET if name == "queryset" else "Call your attribute otherwise"
    return f"{name}() is a method of every repository. {write[0].upper()}{write[1:]}."


def _misspelled(name: str, value: Any, known: type[Any], written: set[str]) -> str | None:
    if name.startswith("_") or hasattr(known, name) or isinstance(value, bool):  # which no attribute is
        return None
    is_function = isinstance(value, FunctionType | classmethod | staticmethod)
    names = _METHODS if is_function else [each for each in _DATA if each == "model" or hasattr(known, each)]
    for meant in get_close_matches(name, names, n=1, cutoff=0.8):
        # What is there under its right name as well was not misspelled. `orderings` is another word, and
        # `max_agee` is a slip.
        is_longer = not is_function and name.startswith(meant) and name != meant + meant[-1]
        if meant not in written and not is_longer:
            return (
                f"a repository has no such attribute. Did you mean {meant!r}? If it is one of your own, "
                f"call it _{name}."
            )
    return None
