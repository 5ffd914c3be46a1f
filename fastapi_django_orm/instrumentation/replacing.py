"""How an attribute of another package is replaced and put back."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Replacement:
    """An attribute of another package that is something else while a lifespan is open.

    Attributes:
        owner: the module or class; a text such as ``"a2wsgi.wsgi:WSGIResponder"`` if the package may not be
            installed. What is not imported when the lifespan begins is left alone.
        name: the attribute.
        make: makes ours, given what was there.
        is_function: whether ours is a function, which can pass through.
    """

    owner: Any
    name: str
    make: Callable[[Any], Any]
    is_function: bool = True

    def __str__(self) -> str:
        if isinstance(self.owner, str):
            return f"{self.owner.replace(':', '.')}.{self.name}"
        module = getattr(self.owner, "__module__", None)
        name = getattr(self.owner, "__qualname__", None) or self.owner.__name__
        return ".".join(filter(None, (module, name, self.name)))

    @property
    def found(self) -> Any:
        """The owner, or None if it is not imported."""
        if not isinstance(self.owner, str):
            return self.owner
        module, _, name = self.owner.partition(":")
        return getattr(sys.modules.get(module), name, None)

    @contextmanager
    def replaced(self) -> Iterator[None]:
        """Replace it for the length of the block."""
        owner = self.found
        if owner is None:
            yield
        elif self.is_function:
            with function_replaced(owner, self.name, self.make):
                yield
        else:
            with replaced(owner, self.name, self.make(getattr(owner, self.name, None))):
                yield


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replace an attribute for the length of the block. What has replaced ours meanwhile stays."""
    # Not getattr(): it would bind a class method, and find what a class inherits.
    before = type(owner) if name == "__class__" else vars(owner).get(name, _ABSENT)
    setattr(owner, name, value)
    try:
        yield
    finally:
        now = type(owner) if name == "__class__" else vars(owner).get(name, _ABSENT)
        if now is value:
            if before is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, before)


@contextmanager
def function_replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """Replace a function for the length of the block, by what ``make()`` makes of it.

    A tracer that comes meanwhile puts its own function around ours, and keeps ours when the block has ended.
    From then on ours only calls the original.
    """
    original = getattr(owner, name)
    target = make(original)

    @wraps(original)
    def function(*args: Any, **options: Any) -> Any:
        return target(*args, **options)

    is_bound = isinstance(vars(owner).get(name), staticmethod | classmethod)
    with replaced(owner, name, staticmethod(function) if is_bound else function):
        try:
            yield
        finally:
            target = original
