"""Whether what decides a query's answer is Django's own: the one question that every fast path asks.

A fast path (several keys in one query, JSON that the database makes, rows that Python puts in their places)
gives what Django would give by itself. A project, or a package that it uses, may have put something in
Django's place: a queryset class that makes something else of ``.values()``, a query with a compiler of its
own, an engine that chooses a tenant's schema before each statement. The query's SQL does not show that. So
each read asks about the objects that it uses. If the answer is a reason and not None, rows are read in
Django's way: ``queryset.values(…)``, one row by ``queryset.filter(pk=key)``, all rows instead of some.

Classes are checked once; what may differ between queries or connections is checked each time.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from django.core.exceptions import FieldError
from django.db import connections
from django.db.models import QuerySet
from django.db.models.query import ModelIterable, ValuesIterable, ValuesListIterable
from django.db.models.sql import Query

from .keys import AnyQuerySet


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Methods that only write, which models with a history or a soft delete override, and those that give no rows.
_WITHOUT_ROWS = _words(
    "_batched_insert _check_bulk_create_options _extract_model_params "
    "_handle_order_with_respect_to _insert _prepare_for_bulk_create _raw_delete _update "
    "aaggregate abulk_create abulk_update acontains acount acreate adelete aexists aexplain "
    "aget_or_create aggregate as_manager aupdate aupdate_or_create bulk_create bulk_update "
    "contains count create delete exists explain get_or_create update update_or_create "
)
# What has to do with opening a connection, writing, and making tables: an engine may do these in its own way.
# (What it makes of values is in its operations, and what reads them is checked elsewhere.)
_OF_OPENING = _words(
    "Database SchemaEditorClass _close _commit _connection_pools _rollback _savepoint "
    "_set_autocommit check_settings client_class close close_if_health_check_failed "
    "close_if_unusable_or_obsolete close_pool commit connect creation_class "
    "data_type_check_constraints data_types data_types_suffix display_name ensure_role "
    "ensure_timezone features_class get_connection_params get_database_version get_new_connection "
    "init_connection_state introspection_class is_usable operators ops_class pattern_esc "
    "pattern_ops pool rollback savepoint savepoint_commit savepoint_rollback schema_editor "
    "set_autocommit tzname validation_class vendor "
)
_OF_CLASSES = _words(
    "__annotate__ __annotate_func__ __annotations__ __annotations_cache__ __class_getitem__ "
    "__dict__ __doc__ __firstlineno__ __init_subclass__ __module__ __orig_bases__ __parameters__ "
    "__qualname__ __repr__ __slots__ __static_attributes__ __str__ __weakref__ "
)
_STATEMENTS = ("cursor", "_cursor", "create_cursor", "ensure_connection", "execute_wrapper")
_ITERABLES = (ModelIterable, ValuesIterable, ValuesListIterable)


# Ways of reading, as health reports call them.
IN_SQL = "json_by_database"
ON_LOOP = "event_loop"
TOGETHER = "several_keys"
PLACING = "refresh_by_keys"
COLUMNS = "columns_for_schema"


def note(reasons: dict[str, str], way: str, reason: str | None) -> None:
    """Remember why a way was not taken, or that it was."""
    if reason is None:
        reasons.pop(way, None)
    else:
        reasons[way] = reason


def _methods(kind: type[Any]) -> frozenset[str]:
    return frozenset(
        name for name, value in vars(kind).items() if callable(value) or isinstance(value, property)
    )


_OF_QUERYSETS, _OF_QUERIES = _methods(QuerySet), _methods(Query)


def not_djangos(queryset: AnyQuerySet, connection: Any = None) -> str | None:
    """Return what is not Django's own in the way a query is read, as the part of a sentence; None if all is.

    A connection is given if it is not Django's cursors that read from it.
    """
    if connection is None:
        return _not_djangos_query(queryset, connections[queryset.db])
    return _not_djangos_query(queryset, connection) or _not_djangos_engine(connection)


def _not_djangos_query(queryset: AnyQuerySet, connection: Any) -> str | None:
    kind, query = type(queryset), queryset.query
    if found := _replaced(kind, QuerySet, _WITHOUT_ROWS) or _patched():
        return f"the queryset class {found}"
    if not _OF_QUERYSETS.isdisjoint(vars(queryset)):
        return f"a queryset has its own {min(_OF_QUERYSETS.intersection(vars(queryset)))}"
    if queryset._iterable_class not in _ITERABLES:
        return f"rows are made by {queryset._iterable_class.__qualname__}"
    if type(query) is not Query:
        return f"the query is a {type(query).__qualname__}"
    if not _OF_QUERIES.isdisjoint(vars(query)):
        return f"a query has its own {min(_OF_QUERIES.intersection(vars(query)))}"
    module = connection.ops.compiler_module
    return None if _is_djangos(module) else f"SQL is made by {module}"


def not_djangos_lookups(field: Any) -> str | None:
    """Return which lookup of a field is not Django's own: one key may be found otherwise than several."""
    for name in ("exact", "in"):
        lookup = field.get_lookup(name)
        if lookup is not None and not _is_djangos(lookup.__module__):
            return f"{field.name} has its own lookup {name}"
    return None


def code_of_values(queryset: AnyQuerySet, names: Sequence[str]) -> str | None:
    """Return the project's own code that makes the values of these columns, as the part of a sentence."""
    for name in names:
        try:
            expression: Any = queryset.query.chain().resolve_ref(name)
            field = expression.output_field
        except FieldError:  # of extra(); of several types
            continue
        for what in (expression, field, getattr(expression, "target", field)):
            for method in ("from_db_value", "get_db_converters", "convert_value"):
                function = getattr(what, method, None)
                if function is not None and not _is_djangos(getattr(function, "__module__", "django.")):
                    return f"{name} is made by {type(what).__qualname__}"
        if getattr(field, "decoder", None) is not None:
            return f"{name} is decoded by {field.decoder}"
    return None


def pinned(queryset: AnyQuerySet) -> AnyQuerySet:
    """Return the query at one database: a router may choose another one whenever it is asked.

    A query that is not Django's own is left as it is, for what was put on it need not be on its copies.
    """
    alias = queryset.db  # asked once
    return queryset if _not_djangos_query(queryset, connections[alias]) else queryset.using(alias)


def _not_djangos_engine(connection: Any) -> str | None:
    kind: Any = type(connection)
    operations: Any = type(connection.ops)
    if found := _engine_replaced(kind, operations):
        return found
    own = vars(connection)
    for name in _STATEMENTS:
        if name in own:
            return f"a connection has its own {name}"
    ours = getattr(connection, "own_wrappers", [])  # which note the time
    if any(each not in ours and not hasattr(each, "changes_nothing") for each in connection.execute_wrappers):
        return "an execute_wrapper is around the statements"
    return None


@lru_cache(maxsize=100)
def _engine_replaced(kind: Any, operations: Any) -> str | None:
    """What an engine overrides of the engine of Django's on which it is built."""
    from django.db.backends.base.operations import BaseDatabaseOperations

    base = next((each for each in kind.__mro__ if _is_djangos(each.__module__)), object)
    if found := _replaced(kind, base, _OF_OPENING):
        return f"the database engine {found}"
    base = next((each for each in operations.__mro__ if _is_djangos(each.__module__)), BaseDatabaseOperations)
    found = _replaced(operations, base, frozenset({"compiler_module", "_cache"}))
    return found and f"the database engine's {found}"


@lru_cache(maxsize=500)  # some packages make a class for each queryset
def _replaced(kind: Any, base: Any, allowed: frozenset[str]) -> str | None:
    """What a class overrides of its base, except for what is allowed. New names do no harm."""
    if base not in kind.__mro__:
        return f"{kind.__qualname__} is not a {base.__qualname__}"
    for cls in kind.__mro__[: kind.__mro__.index(base)]:
        for name in vars(cls):
            if name not in allowed and name not in _OF_CLASSES and hasattr(base, name):
                return f"{cls.__qualname__} overrides {name}"
    return None


@lru_cache(maxsize=1)
def _patched() -> str | None:
    """What was put into Django's own class of querysets, as packages for caching do."""
    for name in sorted(_OF_QUERYSETS - _WITHOUT_ROWS - _OF_CLASSES):
        value = vars(QuerySet).get(name)
        function = getattr(value, "fget", None) or getattr(value, "__func__", value)
        # By its globals: functools.wraps() has given it the name and the module of what it replaces.
        where = getattr(function, "__globals__", {}).get("__name__", "django.")
        if not _is_djangos(where):
            return f"QuerySet has {name} from {where}"
    return None


def _is_djangos(module: str) -> bool:
    return module.startswith("django.")
