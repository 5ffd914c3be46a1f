"""The application: one list for each way in which a repository follows hints, published or by handler."""

import logging
from typing import Annotated, Any

import structlog
from fastapi import Depends, FastAPI, Response
from opentelemetry.metrics import set_meter_provider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from pydantic import BaseModel

from fastapi_django_orm import CachedRepository, DjangoORM

# Without one, hints and loads would not be counted; with all lines, half an hour would fill the memory.
metrics = InMemoryMetricReader()
set_meter_provider(MeterProvider([metrics]))
structlog.configure(
    wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
    processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer()],
)


class Items(CachedRepository):
    """Ordered by a number, so that keys are enough."""

    model = "stock.Item"
    ordering = ("number", "pk")
    fields = ("id", "number", "title", "is_open", "shelf_id", "seal")
    publish = "/items/"


class Titles(CachedRepository):
    """Ordered by a text, so that each hint loads all."""

    model = "stock.Item"
    ordering = ("title", "pk")


class OpenItems(CachedRepository):
    """Rows move in and out."""

    model = "stock.Item"
    ordering = ("-number", "-pk")
    fields = ("id", "number", "title", "is_open", "shelf_id", "seal")
    publish = "/open/"

    def queryset(self) -> Any:
        """Those that are open."""
        return super().queryset().filter(is_open=True)


class Placed(CachedRepository):
    """With values of a relation."""

    model = "stock.Item"
    ordering = ("pk",)

    def queryset(self) -> Any:
        """The items, each with its shelf's name."""
        return super().queryset().values("id", "title", "shelf_id", "shelf__name", "shelf__seal")


class ShelfOut(BaseModel):
    """A shelf and how many items are on it."""

    id: int
    name: str
    seal: str
    items: int


class Shelves(CachedRepository[ShelfOut]):
    """With a schema, and a number that another table decides."""

    model = "stock.Shelf"
    schema = ShelfOut
    ordering = ("name", "pk")

    def queryset(self) -> Any:
        """The shelves, each with its number of items."""
        from django.db.models import Count

        return super().queryset().annotate(items=Count("item"))


class Accounts(CachedRepository):
    """By keys; rows of one transaction may come one after the other."""

    model = "stock.Account"
    ordering = ("pk",)
    fields = ("id", "balance", "seal")
    publish = "/accounts/"


class Books(CachedRepository):
    """The same rows, declared to depend on each other, so that their sum is right in every answer."""

    model = "stock.Account"
    ordering = ("pk",)
    depends_on = ("stock.Account",)
    fields = ("id", "balance", "seal")
    publish = "/books/"


app = FastAPI(lifespan=DjangoORM.lifespan)


@app.get("/titles/")
async def titles(repository: Annotated[Titles, Depends(Titles.current)]) -> Response:
    """By handler."""
    return repository.response()


@app.get("/placed/")
async def placed(repository: Annotated[Placed, Depends(Placed.current)]) -> Response:
    """By handler."""
    return repository.response()


@app.get("/shelves/")
async def shelves(repository: Annotated[Shelves, Depends(Shelves.current)]) -> Response:
    """By handler."""
    return repository.response()


@app.get("/counted/")
async def counted() -> dict[str, int]:
    """How many hints have come, and how many loads they have caused."""
    data = metrics.get_metrics_data()
    found: dict[str, int] = {}
    for resource in data.resource_metrics if data else ():
        for metric in (metric for scope in resource.scope_metrics for metric in scope.metrics):
            if metric.name in ("django_orm.hints", "django_orm.loads"):
                for point in metric.data.data_points:
                    words = [str(value) for _, value in sorted((point.attributes or {}).items())]
                    found[" ".join([metric.name.rpartition(".")[2], *words])] = int(point.value)  # type: ignore[union-attr]
    return found
