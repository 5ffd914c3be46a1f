"""The pydantic forms of the answers, for the peers that use a response model."""

from datetime import datetime

from pydantic import BaseModel


class TopicOut(BaseModel):
    """One topic."""

    id: int
    comment: str
    created_at: datetime


class TopicList(BaseModel):
    """Several topics, under the article's key."""

    topics: list[TopicOut]
