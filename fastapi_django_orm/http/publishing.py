"""Where the routes of published repositories stand among the application's own."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from starlette.routing import BaseRoute, Match, Mount

from ..events import logger
from .publication import Publication
from .published_route import PublishedRoute, list_route, row_route
from .routing import routes_inserted
from .sources import CachedSource

_EXAMPLES: dict[Any, str] = {int: "0", UUID: str(UUID(int=0))}


@contextmanager
def published(app: FastAPI, found: Sequence[Publication]) -> Iterator[list[PublishedRoute]]:
    """Serve what is published, by the routes that this yields, for the length of the block.

    The routes stand after the application's own and before what is mounted at ``/``, as Django may be, since
    that matches every path. A path that the application serves itself is found here, once.
    """
    try:
        routes = app.router.routes
        at_root = (at for at, each in enumerate(routes) if isinstance(each, Mount) and not each.path)
        place = next(at_root, len(routes))
        added: list[PublishedRoute] = []
        for route in _routes(app, found):
            example = route.path.format(pk=_EXAMPLES.get(route.publication.key_type, "~"))
            if (taken := _taken_by([*routes[:place], *added], example)) is None:
                added.append(route)
            else:
                label = route.publication.label
                logger.warning(
                    "route_not_added",
                    path=route.path,
                    reason="the path is taken",
                    taken_by=_path_of(taken, example),
                    repository=route.publication.name,
                    hint=f"give {label}.publish another path, or leave this one to the route that is there",
                )
        with routes_inserted(app, added, place):
            yield added
    finally:
        for publication in found:
            publication.end()


def _routes(app: FastAPI, found: Sequence[Publication]) -> Iterator[PublishedRoute]:
    # Lists before rows, since a key could be the last part of a list's path.
    for publication in found:
        _warn_of_empty_key(publication)
        yield list_route(app, publication)
    # Deep paths before shallow ones.
    for publication in sorted(found, key=lambda each: -each.base.count("/")):
        if publication.key_type is not None:
            yield row_route(app, publication)


def _warn_of_empty_key(publication: Publication) -> None:
    source = publication.source
    snapshot = source.refresher.snapshot if isinstance(source, CachedSource) else None
    if snapshot is not None and snapshot.table.where is not None and "" in snapshot.table.where:
        logger.warning(
            "row_not_reachable",
            repository=publication.name,
            reason="its key is an empty text, and so its path would be the list's",
        )


def _taken_by(before: Iterable[BaseRoute], path: str) -> BaseRoute | None:
    """The route that matches a path and so would be reached in the place of ours."""
    scope = {"type": "http", "method": "GET", "path": path, "root_path": "", "headers": []}
    # The scope is copied: FastAPI leaves notes in it.
    return next((each for each in before if each.matches({**scope})[0] is Match.FULL), None)


def _path_of(taken: BaseRoute, path: str) -> str:
    """The path of a route that matches, which may be one of several in an included router."""
    for each in iter_route_contexts([taken]):
        pattern = getattr(each, "path_regex", None)
        if pattern is not None and pattern.match(path):
            return str(each.path)
    return type(taken).__name__
