"""The SQL that loading a repository really executes.

Where rows are made of model instances, Python code may query as it likes: a property, a serializer's method,
a generic foreign key, an iterable of another package. No analysis of the repository finds that, so the loads
are watched.
"""

from collections.abc import Callable, Collection, Hashable
from typing import Any, Generic

from django.db import connections

from ..snapshots.snapshot import RowT, Snapshot
from .refresh import RowLoader

MOST_STATEMENTS = 10_000  # different ones; what an N+1 of literal values may make of them


class Observed:
    """The statements that were executed, and what was found in them.

    Threads add statements, and the event loop looks at them.
    """

    changes_nothing = True  # for own_ways, which looks for wrappers that may

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._new: list[str] = []
        self._found: frozenset[str] = frozenset()

    def __call__(self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any) -> Any:
        """Note a statement, and execute it: Django's protocol of ``execute_wrapper()``.

        It is noted first. A change that commits after the statement has read is announced after that, and
        so it finds the statement here.
        """
        if sql not in self._known and len(self._known) < MOST_STATEMENTS:
            self._known.add(sql)
            self._new.append(str(sql))
        return execute(sql, params, many, context)

    def found(self, look: Callable[[str], Collection[str]]) -> frozenset[str]:
        """What there is in all statements so far. On the event loop.

        Args:
            look: finds it in one; called once for each statement.
        """
        while self._new:
            self._found |= frozenset(look(self._new.pop()))
        return self._found


class ObservingLoader(Generic[RowT]):
    """A repository's loader, whose statements are noted."""

    def __init__(self, loader: RowLoader[RowT], observed: Observed, alias: str) -> None:
        """Load nothing yet.

        Args:
            loader: what reads the rows.
            observed: where to note its statements.
            alias: the database that it reads.
        """
        self._loader = loader
        self._observed = observed
        self._alias = alias

    def load(self, before: Snapshot[RowT] | None) -> Snapshot[RowT]:
        """As the loader does."""
        with connections[self._alias].execute_wrapper(self._observed):
            return self._loader.load(before)

    def load_keys(self, before: Snapshot[RowT], keys: Collection[Hashable]) -> Snapshot[RowT] | None:
        """As the loader does."""
        with connections[self._alias].execute_wrapper(self._observed):
            return self._loader.load_keys(before, keys)

    async def load_keys_on_loop(
        self, before: Snapshot[RowT], keys: Collection[Hashable]
    ) -> Snapshot[RowT] | None:
        """As the loader does; the event loop reads no instances."""
        return await self._loader.load_keys_on_loop(before, keys)

    def let_go(self, pieces: list[Any]) -> None:
        """As the loader does."""
        self._loader.let_go(pieces)
