"""What a handler returns of this package: a repository gives rows, the rest an error that says what to write.

FastAPI sends of an object that it does not know what ``dict()`` or ``vars()`` makes of it, such as
``{"id": "comment"}`` for a repository of two columns, and ``{}`` for a method.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import BuiltinMethodType, CoroutineType, MethodType
from typing import Any

import fastapi.encoders
from fastapi.encoders import jsonable_encoder
from starlette.responses import Response

from .cached import CachedRepository
from .errors import LazyAnswer
from .memory.snapshot import Snapshot
from .reading.row import Row
from .repository import Repository

# Looked for in everything that is returned, so that there should be few.
KINDS = (Repository, Snapshot, MethodType, BuiltinMethodType, CoroutineType, type, Response)

_OURS = (Repository, Snapshot, Row, Response)
_ROWS = "`return topics` or `return topics.all()` for rows, `return topics.response()` for their bytes"


def rows_in(content: Any, handler: str = "A handler") -> Any:
    """What a handler has returned, with rows in the place of repositories.

    Args:
        content: a value of a kind that is in ``KINDS``; or a dict, list or tuple with one inside.
        handler: which handler, for the message.

    Raises:
        LazyAnswer: it is no answer, such as a method that was not called.
    """
    if isinstance(content, dict):
        return {key: rows_in(value, handler) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [rows_in(item, handler) for item in content]
    if isinstance(content, CachedRepository):
        return list(content.all())
    if mistake := _mistake(content):
        raise LazyAnswer(f"{handler} returns {mistake}.")
    return content


def _mistake(content: Any) -> str | None:
    """What was returned that is no answer, and what to write."""
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


@contextmanager
def encoder_instrumented() -> Iterator[None]:
    """Have ``jsonable_encoder`` treat what is of this package likewise, for the length of the block."""
    before = getattr(fastapi.encoders, "encoders_by_class_tuples", {})
    module: Any = fastapi.encoders
    # A dict of its own, since other threads may be going through the one that is there.
    module.encoders_by_class_tuples = {**before, _encoded: (Repository, Snapshot, MethodType, Response)}
    try:
        yield
    finally:
        module.encoders_by_class_tuples = before


def _encoded(content: Any) -> Any:
    rows = rows_in(content)
    return jsonable_encoder(vars(content) if rows is content else rows)  # vars: what FastAPI would do
