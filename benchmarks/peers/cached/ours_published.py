"""This package: a published repository, which needs no handler."""

from fastapi import FastAPI

from fastapi_django_orm import CachedRepository, DjangoORM


class Topics(CachedRepository):
    """Every topic of the board."""

    model = "bbs.Topic"
    ordering = ("pk",)
    fields = ("id", "comment", "created_at")
    publish = "/topics"


app = FastAPI(lifespan=DjangoORM.lifespan)
