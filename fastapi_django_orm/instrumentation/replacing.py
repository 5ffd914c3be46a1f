"""How an attribute of another package is replaced and put back."""

import inspect
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
        owner: a module or a class; or where something is, such as ``"a2wsgi.wsgi:WSGIResponder"``, which is
            left alone unless that module has been imported.
        name: the attribute.
        make: makes ours, given what was there, or None.
    """

    owner: Any
    name: str
    make: Callable[[Any], Any]

    def __str__(self) -> str:
        owner = self.owner
        if isinstance(owner, str):
            return f"{owner.replace(':', '.')}.{self.name}"
        if inspect.ismodule(owner):
            return f"{owner.__name__}.{self.name}"
        return f"{owner.__module__}.{owner.__qualname__}.{self.name}"

    @contextmanager
    def open(self) -> Iterator[None]:
        """Replace it for the length of the block.

        Only what is still ours is put back. A tracer that comes meanwhile puts its function around ours, and
        stays when the block ends, with ours inside: from then on ours does nothing but call the original.
        """
        owner = self.owner
        if isinstance(owner, str):
            module, _, name = owner.partition(":")
            if (owner := getattr(sys.modules.get(module), name, None)) is None:
                yield
                return
        original, before = getattr(owner, self.name, None), self._there(owner)
        target = self.make(original)

        def function(*args: Any, **options: Any) -> Any:
            return target(*args, **options)

        placed = wraps(original)(function) if inspect.isroutine(original) else target
        if isinstance(before, classmethod | staticmethod):
            placed = staticmethod(placed)
        setattr(owner, self.name, placed)
        try:
            yield
        finally:
            target = original
            if self._there(owner) is placed:
                if before is _ABSENT:
                    delattr(owner, self.name)
                else:
                    setattr(owner, self.name, before)

    def _there(self, owner: Any) -> Any:
        """What stands there itself: not what is inherited, and not what ``getattr()`` binds."""
        return type(owner) if self.name == "__class__" else vars(owner).get(self.name, _ABSENT)
