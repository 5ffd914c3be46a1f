"""Dependencies that handlers take."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends

from .database.atomic import atomic


async def in_transaction() -> AsyncIterator[None]:
    """Open a transaction on the default database for the rest of the handler's work."""
    async with atomic():
        yield


# "function": it ends when the handler does, so the client is not told of what may still be rolled back.
InTransaction = Annotated[None, Depends(in_transaction, scope="function")]
"""Wraps a handler in a transaction, ``async def post(_: InTransaction)``, that is committed before the
response is sent, and rolled back if the handler raises."""
