"""Hints over HTTP, for writers that reach no broker."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from structlog.testing import capture_logs

from fastapi_django_orm import DjangoORM, ORMSettings
from fastapi_django_orm.coherence.choice import publishers
from fastapi_django_orm.coherence.hints import EVERYTHING, Hint
from fastapi_django_orm.coherence.publishers import HTTPPublisher
from fastapi_django_orm.coherence.transport import TransportUnavailable
from tests.support.databases import wait_until
from tests.support.gates import Gate, add_topics, gated
from tests.support.servers import free_port
from tests.support.serving import serving


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[Any]]:
    """What is logged, instead of the output."""
    with capture_logs() as entries:
        yield entries


def application(gate: Gate) -> FastAPI:
    repository = gated(gate)
    app = FastAPI(lifespan=DjangoORM(ORMSettings(refresh_token="token"), repositories=[repository]).lifespan)

    @app.get("/")
    async def index() -> Any:
        return (await repository.current()).response()

    return app


def refresh_route(client: Any) -> str:
    return f"{client.base_url}".rstrip("/") + "/refresh/"


@pytest.mark.parametrize("kind", ["keys", "model", "everything"])
def test_a_posted_hint_is_followed(sqlite: str, kind: str) -> None:
    """The application that is told serves what was written."""
    with serving(application(Gate())) as client:
        (topic,) = add_topics("one")
        keys = Hint("board.Topic", (topic.pk,))
        hint = {"keys": keys, "model": Hint("board.Topic"), "everything": EVERYTHING}[kind]
        url = refresh_route(client)
        (publisher,) = publishers(ORMSettings(coherence=f"auto,{url}", refresh_token="token"))
        publisher.check()
        publisher.publish(hint)
        publisher.close()
        wait_until(lambda: "one" in client.get("/").text, "the topic is served")


def test_a_hint_with_the_wrong_token(sqlite: str) -> None:
    """The refusal names the setting, and not the token."""
    with serving(application(Gate())) as client:
        publisher = HTTPPublisher(refresh_route(client), "hunter2")
        with pytest.raises(TransportUnavailable, match="DJANGO_ORM_REFRESH_TOKEN") as error:
            publisher.publish(Hint("board.Topic"))
        assert "hunter2" not in str(error.value)


def test_nobody_answers() -> None:
    """It is told at once, with where."""
    port = free_port()
    publisher = HTTPPublisher(f"http://127.0.0.1:{port}/refresh/", None)
    for attempt in (publisher.check, lambda: publisher.publish(EVERYTHING)):
        with pytest.raises(TransportUnavailable, match=f"127.0.0.1:{port}"):
            attempt()


def test_somebody_who_hangs_up() -> None:
    """A server that speaks no HTTP is unavailable, like one that is not there."""

    async def main() -> None:
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server:
            publisher = HTTPPublisher(f"http://127.0.0.1:{port}/refresh/", None)
            with pytest.raises(TransportUnavailable):
                await asyncio.to_thread(publisher.publish, EVERYTHING)

    asyncio.run(main())
