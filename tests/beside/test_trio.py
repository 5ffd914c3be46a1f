"""trio beside the plugin, which runs on asyncio alone."""

import pytest

trio = pytest.importorskip("trio", reason="trio is not installed")

from fastapi import FastAPI  # noqa: E402

from fastapi_django_orm import DjangoORM  # noqa: E402
from fastapi_django_orm.errors import AsyncioNeeded  # noqa: E402


def test_another_event_loop_is_refused(sqlite: str) -> None:
    """The error says that asyncio is needed, and with which server, instead of "no running event loop"."""
    app = FastAPI(lifespan=DjangoORM(repositories=[]).lifespan)

    async def main() -> None:
        async with app.router.lifespan_context(app):
            pass

    with pytest.raises(AsyncioNeeded, match=r"asyncio.*hypercorn --worker-class asyncio"):
        trio.run(main)
