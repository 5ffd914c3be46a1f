# mypy: disable-error-code="import-untyped,untyped-decorator"
"""django-bolt with its own server: async handlers and a psycopg pool, as its documentation asks."""

from django_bolt import BoltAPI

from benchmarks.project.bbs import reads

api = BoltAPI(enable_logging=False, compression=False)


@api.get("/topics/{pk}")
async def topic(pk: int):  # type: ignore[no-untyped-def]  # an annotation would make bolt validate
    """Read one topic."""
    return await reads.aget(pk)


@api.get("/latest")
async def latest():  # type: ignore[no-untyped-def]  # see above
    """Read the 20 latest."""
    return {"topics": await reads.alatest()}
