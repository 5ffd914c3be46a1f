"""The one table that is read."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar

from django.db import models


class Topic(models.Model):
    """A line on the board; its columns are the fields of every peer's answer."""

    comment: models.CharField[str, str] = models.CharField(max_length=2000)
    created_at: models.DateTimeField[datetime, datetime] = models.DateTimeField()

    objects: ClassVar[models.Manager[Topic]] = models.Manager()

    class Meta:
        ordering = ("pk",)

    def __str__(self) -> str:
        return self.comment
