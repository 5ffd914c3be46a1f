"""Django's ``transaction.atomic()`` where it cannot work, in code that runs on the event loop.

Django refuses to open a transaction there, and Python refuses ``async with``; neither can say what to write
instead. It is said while a lifespan is open.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from django.core.exceptions import SynchronousOnlyOperation
from django.db.transaction import Atomic

HOW_TO_BEGIN = (
    "In an `async def` function write `async with atomic():`, with atomic from fastapi_django_orm; or put "
    "`with transaction.atomic():` into a function that runs on a thread: a `def` handler, or one for run()."
)


@contextmanager
def atomic_explained() -> Iterator[None]:
    """Have ``transaction.atomic()`` in asynchronous code say what to write, for the length of the block."""
    kind: Any = Atomic
    original = kind.__enter__

    def enter(self: Atomic) -> Any:
        try:
            return original(self)
        except SynchronousOnlyOperation as error:
            error.add_note(HOW_TO_BEGIN)
            raise

    async def aenter(self: Atomic) -> NoReturn:
        raise TypeError(f"Django's transaction.atomic() is not asynchronous. {HOW_TO_BEGIN}")

    async def aexit(self: Atomic, *how: object) -> None: ...

    kind.__enter__ = enter
    added = {} if hasattr(kind, "__aenter__") else {"__aenter__": aenter, "__aexit__": aexit}
    for name, method in added.items():
        setattr(kind, name, method)
    try:
        yield
    finally:
        if kind.__enter__ is enter:  # or something else has been put around it meanwhile
            kind.__enter__ = original
        for name, method in added.items():
            if vars(kind).get(name) is method:
                delattr(kind, name)
