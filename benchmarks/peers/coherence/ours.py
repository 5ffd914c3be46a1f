"""This package: a published repository; its log tells when a snapshot has been put in place."""

import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from fastapi import FastAPI
from structlog.typing import EventDict, WrappedLogger

from benchmarks.peers.coherence.seen import Seen, comment_of, key_of
from fastapi_django_orm import CachedRepository, DjangoORM


class Topics(CachedRepository):
    """Every topic of the board."""

    model = "bbs.Topic"
    ordering = ("pk",)
    fields = ("id", "comment", "created_at")
    publish = "/topics"


class Watch:
    """A processor of the log that looks at the rows whenever they are new."""

    def __init__(self, topics: Topics) -> None:
        self.topics = topics
        self.seen = Seen()

    def __call__(self, logger: WrappedLogger, level: str, event: EventDict) -> EventDict:
        """Note which writes are there. The event goes no further: printing it would take time."""
        if event["event"] != "repository_refreshed":
            return event
        moment, seen = time.monotonic(), self.seen
        while self.topics.get(key_of(seen.next, len(self.topics)))["comment"] == comment_of(seen.next):
            seen.note(moment, event["duration_ms"])
        raise structlog.DropEvent


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Watch for as long as the application lives; its transports are up before this starts."""
    async with DjangoORM.lifespan(app):
        watch = Watch(await Topics.current())
        structlog.configure(
            processors=[watch, structlog.processors.JSONRenderer()],
            logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        )
        with watch.seen.told():
            yield


app = FastAPI(lifespan=lifespan)
