"""What FastAPI does around a handler, made fit for the ORM while a lifespan is open.

An ``async def`` handler may return a model instance or a query: FastAPI would validate it on the event loop,
where Django refuses to query. And ``ATOMIC_REQUESTS`` means for a handler what it means for a view. FastAPI
offers no place to say either, so two functions of ``fastapi.routing`` that it looks up for each request are
instrumented, as tracers do.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import fastapi.routing
from django.db.models import Model, QuerySet
from django.db.models.manager import BaseManager
from django.db.models.query import RawQuerySet

from .database.atomic import atomic, atomic_aliases, nothing_left_open
from .database.scopes import Scope, current_scope, enter_scope
from .errors import LazyAnswer, UnknownFastAPI

_LAZY = (Model, QuerySet, RawQuerySet, BaseManager)


@contextmanager
def handlers_instrumented() -> Iterator[None]:
    """Run and answer handlers as the ORM needs it, for the length of the block."""
    serialize, run = _of_fastapi("serialize_response"), _of_fastapi("run_endpoint_function")

    async def serialize_response(*, response_content: Any, **options: Any) -> Any:
        if not _may_query(response_content):
            return await serialize(response_content=response_content, **options)
        field = options.get("field")
        if field is None or field.field_info.annotation is Any:  # what `-> Any` makes
            raise _lazy_answer(response_content, options.get("endpoint_ctx") or {})
        # As if a `def` handler had returned it: FastAPI validates it on a thread, in one call.
        options |= {"field": _ReadingField(field), "is_coroutine": False}
        return await serialize(response_content=response_content, **options)

    async def run_endpoint_function(*, dependant: Any, **options: Any) -> Any:
        aliases = atomic_aliases(dependant.call)
        if not aliases:
            before = current_scope()
            try:
                answer = await run(dependant=dependant, **options)
            except BaseException as error:
                await _end_left_open(before, error)
                raise
            if current_scope() is not before:
                await _end_left_open(before)
            return answer
        async with AsyncExitStack() as stack:
            for alias in aliases:
                await stack.enter_async_context(atomic(using=alias))
            return await run(dependant=dependant, **options)

    fastapi.routing.serialize_response = serialize_response
    fastapi.routing.run_endpoint_function = run_endpoint_function
    try:
        yield
    finally:
        fastapi.routing.serialize_response = serialize
        fastapi.routing.run_endpoint_function = run


def _of_fastapi(name: str) -> Callable[..., Any]:
    function: Callable[..., Any] | None = getattr(fastapi.routing, name, None)
    if function is None:
        raise UnknownFastAPI(
            f"FastAPI {fastapi.__version__} has no fastapi.routing.{name}(), which handlers are run through "
            "for the ORM's sake. Upgrade fastapi-django-orm, or install the FastAPI that worked before."
        )
    return function


async def _end_left_open(before: Scope | None, error: BaseException | None = None) -> None:
    """Do what ``nothing_left_open()`` around the handler would, at its end alone: few handlers need it."""
    after = current_scope()
    if after is before:
        return
    enter_scope(before)
    async with nothing_left_open():
        enter_scope(after)
        if error is not None:
            raise error


class _ReadingField:
    """FastAPI's field of a response model, which reads a query before it validates it."""

    def __init__(self, field: Any) -> None:
        self._field = field

    def __getattr__(self, name: str) -> Any:
        return getattr(self._field, name)

    def validate(self, value: Any, *args: Any, **options: Any) -> Any:
        return self._field.validate(_read(value), *args, **options)


def _read(value: Any) -> Any:
    if isinstance(value, RawQuerySet):
        return list(value)
    if isinstance(value, QuerySet | BaseManager):
        return list(value if isinstance(value, QuerySet) else value.all())
    if isinstance(value, dict):
        return {key: _read(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_read(item) for item in value]
    return value


def _may_query(content: Any) -> bool:
    if isinstance(content, dict):
        return any(map(_may_query, content.values()))
    if isinstance(content, list | tuple):
        return any(map(_may_query, content))
    return isinstance(content, _LAZY)


def _lazy_answer(content: Any, where: Mapping[str, Any]) -> LazyAnswer:
    place = f"{where.get('file')}:{where.get('line')}" if where.get("file") else "an unknown place"
    return LazyAnswer(
        f"The handler {where.get('function')}() of {where.get('path')} ({place}) returns a "
        f"{type(content).__name__} and has no response model, so there is no telling which fields to send. "
        "Annotate what it returns (`-> TopicOut`, `-> list[TopicOut]`), give `response_model=`, or return "
        "plain values: `.values()` in a list, a dict."
    )
