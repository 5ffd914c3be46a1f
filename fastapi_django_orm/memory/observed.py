"""The SQL that loading a repository really executes.

Where rows are made of model instances, Python code may query as it likes: a property, a serializer's method,
a generic foreign key, an iterable of another package. No analysis of the repository finds that, so the loads
are watched.
"""

from collections.abc import Callable, Collection
from typing import Any

MOST_STATEMENTS = 10_000  # different ones; what an N+1 of literal values may make of them


class Observed:
    """The statements that were executed, and what was found in them.

    Threads add statements, and the event loop looks at them.
    """

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._new: list[str] = []
        self._found: frozenset[str] = frozenset()

    def __call__(self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any) -> Any:
        """Note a statement, and execute it: Django's protocol of ``execute_wrapper()``.

        It is noted first. A change that commits after the statement has read is announced after that, and
        so whoever looks for its table finds the statement here.
        """
        if sql not in self._known and len(self._known) < MOST_STATEMENTS:
            self._known.add(sql)
            self._new.append(str(sql))
        return execute(sql, params, many, context)

    def found(self, look: Callable[[str], Collection[str]]) -> frozenset[str]:
        """Return what ``look`` finds in all statements so far; it is called once for each."""
        while self._new:
            self._found |= frozenset(look(self._new.pop()))
        return self._found
