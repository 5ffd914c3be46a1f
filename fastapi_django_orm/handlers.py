"""What FastAPI does around a handler, made fit for the ORM while a lifespan is open.

A handler may return a repository, of which rows are sent. An ``async def`` handler may return a model
instance or a query: FastAPI would validate it on the event loop, where Django refuses to query. And
``ATOMIC_REQUESTS`` means for a handler what it means for a view. FastAPI offers no place to say either, so
two functions of ``fastapi.routing`` that it looks up for each request are instrumented, as tracers do.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from contextvars import Context, copy_context
from typing import Any

import fastapi.routing
from django.db.models import Model, QuerySet
from django.db.models.manager import BaseManager
from django.db.models.query import RawQuerySet

from .database.atomic import atomic, atomic_aliases, nothing_left_open
from .database.carrying import give_over, take_over
from .database.misuse import atomic_explained
from .database.scopes import Scope, current_scope, enter_scope, entered_scope
from .errors import LazyAnswer, UnknownFastAPI
from .reading.encoding import in_forms_of_rows
from .reading.row import SCALARS
from .returned import KINDS, encoder_instrumented, rows_in

_LAZY = (Model, QuerySet, RawQuerySet, BaseManager)
_LOOKED_AT = (*_LAZY, *KINDS)


@contextmanager
def handlers_instrumented() -> Iterator[None]:
    """Run and answer handlers as the ORM needs it, for the length of the block."""
    serialize, run = _of_fastapi("serialize_response"), _of_fastapi("run_endpoint_function")

    async def serialize_response(*, response_content: Any, **options: Any) -> Any:
        where = options.get("endpoint_ctx") or {}
        if _has(_LOOKED_AT, response_content):
            response_content = rows_in(response_content, _handler(where))
        if options.get("field") is None:
            response_content = in_forms_of_rows(response_content)
        if not _has(_LAZY, response_content):
            return await serialize(response_content=response_content, **options)
        field = options.get("field")
        if field is None or field.field_info.annotation is Any:  # what `-> Any` makes
            raise _lazy_answer(response_content, where)
        # As if a `def` handler had returned it: FastAPI validates it on a thread, in one call.
        reading = _ReadingField(field)
        options |= {"field": reading, "is_coroutine": False}
        try:
            return await serialize(response_content=response_content, **options)
        finally:
            reading.bring_back()

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
        with encoder_instrumented(), atomic_explained():
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
        self._context: Context | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._field, name)

    def validate(self, value: Any, *args: Any, **options: Any) -> Any:
        """Read and validate, on a thread, where properties of models see the handler's language."""
        take_over()
        try:
            return self._field.validate(_read(value), *args, **options)
        finally:
            self._context = copy_context()

    def bring_back(self) -> None:
        """Give the handler's task what validation has changed in the context, as FastAPI's own would."""
        if self._context is not None:
            before = entered_scope()
            give_over(self._context)
            enter_scope(before)


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
