"""What the lists must be in the end: Django's rows as FastAPI sends them, without the package.

Printed as JSON: for each path the body.
"""

import asyncio
import json
import os
from typing import Any

import django
import httpx
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()


class ShelfOut(BaseModel):
    id: int
    name: str
    seal: str
    items: int


Rows = dict[str, list[dict[str, Any]]]


@app.get("/items/")
def items() -> Rows:
    from tests.soak.project.stock.models import Item

    return {"items": list(Item.objects.order_by("number", "id").values())}


@app.get("/titles/")
def titles() -> Rows:
    from tests.soak.project.stock.models import Item

    return {"titles": list(Item.objects.order_by("title", "id").values())}


@app.get("/open/")
def open_items() -> Rows:
    from tests.soak.project.stock.models import Item

    return {"open_items": list(Item.objects.filter(is_open=True).order_by("-number", "-id").values())}


@app.get("/placed/")
def placed() -> Rows:
    from tests.soak.project.stock.models import Item

    names = ("id", "title", "shelf_id", "shelf__name", "shelf__seal")
    return {"placed": list(Item.objects.order_by("id").values(*names))}


@app.get("/shelves/")
def shelves() -> dict[str, list[ShelfOut]]:
    from tests.soak.project.stock.models import Item, Shelf

    on: dict[int, int] = {}
    for shelf in Item.objects.values_list("shelf_id", flat=True):
        on[shelf] = on.get(shelf, 0) + 1
    rows = Shelf.objects.order_by("name", "id").values("id", "name", "seal")
    return {"shelves": [ShelfOut(**row, items=on.get(row["id"], 0)) for row in rows]}


@app.get("/accounts/")
def accounts() -> Rows:
    return {"accounts": _accounts()}


@app.get("/books/")
def books() -> Rows:
    return {"books": _accounts()}


def _accounts() -> list[dict[str, Any]]:
    from tests.soak.project.stock.models import Account

    return list(Account.objects.order_by("id").values())


async def bodies() -> dict[str, str]:
    """All of them."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
        paths = list(app.openapi()["paths"])
        answers = {path: await client.get(path) for path in paths}
    assert all(answer.status_code == 200 for answer in answers.values()), answers
    return {path: answer.text for path, answer in answers.items()}


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.soak.project.settings")
    django.setup()
    print(json.dumps(asyncio.run(bodies())))
