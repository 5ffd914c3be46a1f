"""SQLAlchemy 2 async over asyncpg, a session for each request, a pool of 8, under FastAPI."""

import os
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException
from sqlalchemy import DateTime, make_url, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.project.bbs.schemas import TopicList, TopicOut

url = make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+asyncpg")
engine = create_async_engine(url, pool_size=8, max_overflow=0)
sessions = async_sessionmaker(engine, expire_on_commit=False)


class Base(DeclarativeBase):
    """SQLAlchemy's registry."""


class Topic(Base):
    """The table that Django made."""

    __tablename__ = "bbs_topic"

    id: Mapped[int] = mapped_column(primary_key=True)
    comment: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


async def session() -> AsyncIterator[AsyncSession]:
    """Open a session for the request."""
    async with sessions() as session:
        yield session


Session = Annotated[AsyncSession, Depends(session)]

app = FastAPI()


@app.get("/topics/{pk}", response_model=TopicOut)
async def topic(pk: int, session: Session) -> dict[str, object]:
    """Read one topic."""
    if (found := await session.get(Topic, pk)) is None:
        raise HTTPException(404)
    return row(found)


@app.get("/latest", response_model=TopicList)
async def latest(session: Session) -> dict[str, object]:
    """Read the 20 latest."""
    found = await session.scalars(select(Topic).order_by(Topic.id.desc()).limit(20))
    return {"topics": [row(topic) for topic in found]}


def row(topic: Topic) -> dict[str, object]:
    """Take the columns off a mapped object."""
    return {"id": topic.id, "comment": topic.comment, "created_at": topic.created_at}
