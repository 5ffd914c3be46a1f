"""This package: a published repository that keeps nothing."""

from fastapi import FastAPI

from fastapi_django_orm import DjangoORM, Repository


class Topics(Repository):
    """Every topic of the board, the latest first."""

    model = "bbs.Topic"
    ordering = ("-pk",)
    fields = ("id", "comment", "created_at")
    publish = "/topics"


app = FastAPI(lifespan=DjangoORM.lifespan)
