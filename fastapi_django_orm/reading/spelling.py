"""Attributes of a repository that would be ignored without a word: other libraries' words, slips of the pen.

An ignored ``exclude`` or ``feilds`` would serve every column, and an ignored ``get_queryset()`` every row.
What a project calls otherwise is its own.
"""

from collections.abc import Container
from difflib import get_close_matches
from types import FunctionType
from typing import Any

from ..errors import InvalidRepository

_CACHED_ALONE = ("max_age", "indexes", "max_decoded_rows", "depends_on")
_DATA = ("model", "fields", "ordering", "schema", "publish", "cache_control", *_CACHED_ALONE)
_METHODS = ("queryset", "ordered_queryset")

_QUERYSET = "write `def queryset(self): return super().queryset().filter(…)`"

# Words that people write by habit from Django, Django REST framework, django-ninja and FastAPI, after what to
# write instead.
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
    """The error of a repository that names no model, perhaps since the attribute is misspelled."""
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
            if (what := _ignored(name, known)) or (
                # A mixin may be for other classes, too, and what only resembles a word may be theirs.
                issubclass(each, known) and (what := _mistaken(name, value, known, written))
            ):
                return InvalidRepository(f"{each.__qualname__}.{name}: {what}")
    return None


def _ignored(name: str, known: type[Any]) -> str | None:
    """What to write instead of a word that is another library's, or another class's."""
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


def _mistaken(name: str, value: Any, known: type[Any], written: Container[str]) -> str | None:
    """What is wrong with an attribute that is a method's name, or looks like a known name misspelled."""
    is_function = isinstance(value, FunctionType | classmethod | staticmethod)
    if hasattr(known, name):
        is_method = isinstance(getattr(known, name), FunctionType)
        if not is_method or is_function or (callable(value) and not isinstance(value, type)):
            return None
        write = _QUERYSET if name == "queryset" else "Call your attribute otherwise"
        return f"{name}() is a method of every repository. {write[0].upper()}{write[1:]}."
    if name.startswith("_") or isinstance(value, bool):  # which no attribute is
        return None
    names = _METHODS if is_function else [each for each in _DATA if each == "model" or hasattr(known, each)]
    for meant in get_close_matches(name, names, n=1, cutoff=0.8):
        # What is there under its right name as well was not misspelled. `orderings` and `publisher` are other
        # words, and `max_agee` is a slip.
        is_longer = name.startswith(meant) and name != meant + meant[-1] and not is_function
        if meant not in written and not is_longer:
            return (
                f"a repository has no such attribute. Did you mean {meant!r}? If it is one of your own, "
                f"call it _{name}."
            )
    return None
