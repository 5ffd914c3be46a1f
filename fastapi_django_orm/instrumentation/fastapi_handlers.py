"""FastAPI: what it does around a handler, made fit for the ORM.

A handler may return a repository, of which rows are sent. An ``async def`` handler may return a model
instance or a query: FastAPI would validate it on the event loop, where Django refuses to query. And
``ATOMIC_REQUESTS`` means for a handler what it means for a view. FastAPI has no hook for any of this. It
looks the two functions up in ``fastapi.routing`` for each request, and the table of encoders in
``fastapi.encoders`` for each value that it does not know.
"""

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from contextvars import Context, copy_context
from types import BuiltinMethodType, CoroutineType, MethodType
from typing import Any

import fastapi.encoders
import fastapi.routing
from django.db.models import Model, QuerySet
from django.db.models.manager import BaseManager
from django.db.models.query import RawQuerySet
from fastapi.encoders import jsonable_encoder
from starlette.responses import Response

from ..cached import CachedRepository
from ..database.atomic import atomic, atomic_aliases, end_left_open
from ..database.calls import give_over, left_open, take_over
from ..database.scopes import current_scope, enter_scope, entered_scope
from ..errors import LazyAnswer, UnknownFastAPI
from ..memory.snapshot import Snapshot
from ..reading.encoding import in_forms_of_rows
from ..reading.following import joined, load_relations, schema_for
from ..reading.row import SCALARS, Row
from ..repository import Repository
from .replacing import Replacement

# Looked for in everything that is returned, so that there should be few.
_KINDS = (Repository, Snapshot, MethodType, BuiltinMethodType, CoroutineType, type, Response)
_OURS = (Repository, Snapshot, Row, Response)
_ROWS = "`return topics` or `return topics.all()` for rows, `return topics.response()` for their bytes"

_LAZY = (Model, QuerySet, RawQuerySet, BaseManager)
_LOOKED_AT = (*_LAZY, *_KINDS)


def _serialize_response(serialize: Callable[..., Any]) -> Callable[..., Any]:
    async def serialize_response(*, response_content: Any, **options: Any) -> Any:
        where = options.get("endpoint_ctx") or {}
        field = options.get("field")
        special = _has(_LOOKED_AT, response_content)
        if special:
            response_content = _rows_in(response_content, _handler(where))
        if field is None:
            response_content = in_forms_of_rows(response_content)
        if not special or not _has(_LAZY, response_content):
            return await serialize(response_content=response_content, **options)
        if field is None or field.field_info.annotation is Any:  # what `-> Any` makes
            raise _lazy_answer(response_content, where)
        # As if a `def` handler had returned it: FastAPI validates it on a thread, in one call.
        reading = _ReadingField(field)
        options |= {"field": reading, "is_coroutine": False}
        try:
            answer = await serialize(response_content=response_content, **options)
        except Exception:
            reading.bring_back()
            raise
        reading.bring_back()  # not in `finally`: what is collected ends in the context of other code
        return answer

    return serialize_response


def _run_endpoint_function(run: Callable[..., Any]) -> Callable[..., Any]:
    async def run_endpoint_function(*, dependant: Any, **options: Any) -> Any:
        if aliases := atomic_aliases(dependant.call):
            async with AsyncExitStack() as stack:
                for alias in aliases:
                    await stack.enter_async_context(atomic(using=alias))
                return await run(dependant=dependant, **options)
        before = current_scope()
        try:
            answer = await run(dependant=dependant, **options)
        except BaseException:
            await end_left_open(before)  # the error that is on its way says more
            raise
        if aliases := await end_left_open(before):
            raise left_open(aliases)
        return answer

    return run_endpoint_function


class _ReadingField:
    """FastAPI's field of a response model, which reads a query before it validates it."""

    def __init__(self, field: Any) -> None:
        self._field = field
        self._context: Context | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._field, name)

    def validate(self, value: Any, *args: Any, **options: Any) -> Any:
        """Read and validate, on a thread, where properties of models see the handler's language."""
        take_over()
        try:
            rows = _read(value, self._field.field_info.annotation)
            return self._field.validate(rows, *args, **options)
        finally:
            self._context = copy_context()

    def bring_back(self) -> None:
        """Give the handler's task what validation has changed in the context, as FastAPI's own would."""
        if self._context is not None:
            before = entered_scope()
            give_over(self._context)
            enter_scope(before)


def _read(value: Any, annotation: Any) -> Any:
    """Read queries, with the relations that a ``ModelSchema`` in the annotation nests."""
    if isinstance(value, BaseManager):
        value = value.all()
    if isinstance(value, QuerySet):
        schema = schema_for(value.model, annotation)
        value = list(value if schema is None else joined(value, schema))
    elif isinstance(value, RawQuerySet):
        value = list(value)
    if isinstance(value, dict):
        return {key: _read(item, annotation) for key, item in value.items()}
    if isinstance(value, list | tuple):
        if not (value and isinstance(value[0], Model) and len(set(map(type, value))) == 1):
            return [_read(item, annotation) for item in value]
        if schema := schema_for(type(value[0]), annotation):
            load_relations(value, schema)
    elif isinstance(value, Model) and (schema := schema_for(type(value), annotation)):
        load_relations([value], schema)
    return value


def _has(kinds: tuple[type[Any], ...], content: Any) -> bool:
    """Whether a value is of one of these kinds, or has one inside."""
    if type(content) in SCALARS:  # as most of what is inside of an answer is
        return False
    if isinstance(content, dict):
        return any(_has(kinds, value) for value in content.values())
    if isinstance(content, list | tuple):
        return any(_has(kinds, item) for item in content)
    return isinstance(content, kinds)


def _handler(where: Mapping[str, Any]) -> str:
    place = f"{where.get('file')}:{where.get('line')}" if where.get("file") else "an unknown place"
    return f"The handler {where.get('function')}() of {where.get('path')} ({place})"


def _lazy_answer(content: Any, where: Mapping[str, Any]) -> LazyAnswer:
    return LazyAnswer(
        f"{_handler(where)} returns a {type(content).__name__} and has no response model, so there is no "
        "telling which fields to send. Annotate what it returns (`-> TopicOut`, `-> list[TopicOut]`), give "
        "`response_model=`, or return plain values: `.values()` in a list, a dict."
    )


# What a handler returns of this package. FastAPI sends of an object that it does not know what dict() or
# vars() makes of it, such as {"id": "comment"} for a repository of two columns, and {} for a method.


def _rows_in(content: Any, handler: str = "A handler") -> Any:
    """What a handler has returned, with rows in the place of repositories.

    Raises:
        LazyAnswer: it cannot be sent, such as a method that was not called.
    """
    if isinstance(content, dict):
        return {key: _rows_in(value, handler) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_rows_in(item, handler) for item in content]
    if isinstance(content, CachedRepository):
        return list(content.all())
    if mistake := _mistake(content):
        raise LazyAnswer(f"{handler} returns {mistake}.")
    return content


def _mistake(content: Any) -> str | None:
    """What was returned that cannot be sent, and what to write instead."""
    match content:
        case Repository():
            return f"{content!r}, which has no rows in memory. Write `await topics.fetch(pk)` for one of them"
        case Snapshot():
            return f"{content!r}. Write `topics.response()`, or `list(topics.snapshot.rows)`"
        case MethodType() | BuiltinMethodType() if isinstance(content.__self__, _OURS):
            name, owner = content.__name__, content.__self__
            # A row is not shown: the message is logged.
            whose = repr(owner) if isinstance(owner, Repository | Snapshot) else f"a {type(owner).__name__}"
            return f"the method {name} of {whose} without calling it. Write `{name}(…)`"
        case CoroutineType():
            content.close()  # or Python warns of it where it is collected
            return f"{content.__qualname__}(…) without having awaited it. Write `return await …`"
        case type() if issubclass(content, _OURS):
            return f"the class {content.__qualname__}. Write {_ROWS}"
        case Response():
            return f"a {type(content).__name__} inside of something else. Return it alone, or write {_ROWS}"
    return None


def _with_ours(encoders: dict[Any, Any] | None) -> dict[Any, Any]:
    # A dict of its own, since other threads may be going through the one that is there.
    return {**(encoders or {}), _encoded: (Repository, Snapshot, MethodType, Response)}


def _encoded(content: Any) -> Any:
    rows = _rows_in(content)
    return jsonable_encoder(vars(content) if rows is content else rows)  # vars: what FastAPI would do


REPLACED = (
    Replacement(fastapi.routing, "serialize_response", _serialize_response),
    Replacement(fastapi.routing, "run_endpoint_function", _run_endpoint_function),
    Replacement(fastapi.encoders, "encoders_by_class_tuples", _with_ours),
)


def check_fastapi() -> None:
    """Refuse a FastAPI that runs handlers in another way.

    Raises:
        UnknownFastAPI: it does.
    """
    for each in REPLACED:
        if each.owner is fastapi.routing and not hasattr(each.owner, each.name):
            raise UnknownFastAPI(
                f"FastAPI {fastapi.__version__} has no {each}, which handlers are run through for the ORM's "
                "sake. Upgrade fastapi-django-orm, or install the FastAPI that worked before."
            )
