"""``create()``, ``update()`` and ``delete()`` of a repository."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Generic

from django.db import transaction
from pydantic import BaseModel

from ..database.atomic import awaits_commit
from ..memory.snapshot import RowT
from .values import given
from .writer import Change, Work, Writer

Data = BaseModel | Mapping[str, Any] | None


class Writes(Generic[RowT]):
    """Writes the rows of a repository through Django: validated, saved, in one transaction.

    ``data`` is a pydantic model or a dict. Its names are those of the model's fields; a relation is given by
    its key or by an instance (``author=3``, ``author_id=3``), a many-to-many relation by a list of these, a
    file by an ``UploadFile``. Keyword arguments are values that the client does not decide, and win over
    ``data``.

    A subclass may override each of these methods; routes of ``router()`` call them.
    """

    async def create(self, data: Data = None, /, **values: Any) -> RowT:
        """Insert a row, and return it as the repository serves it.

        Outside of a transaction this worker serves the row when the call returns; inside of ``atomic()``,
        when that has committed. A pydantic field that is not set has its own default, or, if that is None,
        the default of Django's model.

        Args:
            data: the row's values.
            **values: more of them.

        Raises:
            ValidationError: ``full_clean()`` refuses the row. In a handler: 422.
            IntegrityError: the database refuses it. In a handler: 409.
            UnknownField: the model does not have a field.
        """
        change = await self._write(self._writer.insert([given(data, partial=False) | values], where="create"))
        assert change.keys is not None, "inserted rows have keys"
        return await self._row(change, change.keys[0])

    async def create_many(self, items: Iterable[Data], /, **values: Any) -> list[RowT]:
        """Insert several rows in one transaction, all or none, and return them; see ``create()``.

        Args:
            items: the values of each row.
            **values: more of them, the same for all rows.
        """
        rows = [given(data, partial=False) | values for data in items]
        change = await self._write(self._writer.insert(rows, where="create_many"))
        assert change.keys is not None, "inserted rows have keys"
        return await asyncio.gather(*(self._row(change, key) for key in change.keys))  # in one query

    async def update(
        self, pk: Any, data: Data = None, /, *, if_match: str | None = None, **values: Any
    ) -> RowT:
        """Change a row, and return it as the repository serves it; see ``create()``.

        A pydantic field that is not set is left alone. The row is locked meanwhile (where the database can),
        so what others change at the same moment is not lost.

        Args:
            pk: the row's primary key.
            data: what to change.
            if_match: the entity tag that the client has of the row, as the header ``If-Match`` has it; None
                to change the row whatever it is.
            **values: more to change.

        Raises:
            NotFound: ``queryset()`` has no such row. In a handler: 404.
            PreconditionFailed: the row is another than that of the tag. In a handler: 412.
            ValidationError: ``full_clean()`` refuses the row. In a handler: 422.
            IntegrityError: the database refuses it. In a handler: 409.
            UnknownField: the model does not have a field.
        """
        named = given(data, partial=True) | values
        change = await self._write(self._writer.update(pk, named, if_match))
        assert change.keys is not None, "a row that was changed has a key"
        return await self._row(change, change.keys[0])

    async def delete(self, pk: Any, *, if_match: str | None = None) -> None:
        """Delete a row, with all that Django deletes with it.

        Args:
            pk: the row's primary key.
            if_match: as for ``update()``.

        Raises:
            NotFound: ``queryset()`` has no such row. In a handler: 404.
            PreconditionFailed: the row is another than that of the tag. In a handler: 412.
            ProtectedError: others refer to it. In a handler: 409. ``RestrictedError`` as well.
        """
        await self._write(self._writer.delete(pk, if_match))

    async def _write(self, work: Work) -> Change:
        change = await self._writer.run(work)
        if not change.is_joined:
            await self._serve(change)
            return change
        serve = partial(self._serve, change)
        if not awaits_commit(serve, change.alias, first=True):
            # The thread that commits keeps its connection meanwhile, and reading may need one: no waiting.
            transaction.on_commit(self._serve_soon(change), using=change.alias)
        return change

    # What a repository adds

    @property
    def _writer(self) -> Writer:
        """What writes the rows."""
        raise NotImplementedError

    async def _row(self, change: Change, key: Any) -> RowT:
        """Return a row that was written."""
        raise NotImplementedError

    async def _serve(self, change: Change) -> None:
        """Wait until this worker serves what was committed."""

    def _serve_soon(self, change: Change) -> Callable[[], None]:
        """Return what has this worker serve what was committed, from any thread."""
        return lambda: None
