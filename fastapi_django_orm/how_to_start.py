"""What to do where no lifespan of ``DjangoORM`` runs: none was written, or nothing has run it."""

import sys
from typing import Any

WRITE = "Write FastAPI(lifespan=DjangoORM.lifespan)"


def how_to_start() -> str:
    """The end of a message: what to do, for the request that the calling code answers, if it answers one."""
    scope = _request_of_caller()
    if scope is None or "router" not in scope:
        return f"{WRITE}; in a test, enter the client: `with TestClient(app)`."
    router = scope["app"].router
    if scope["router"] is not router:
        return (
            f"This application is mounted in another one, at {scope.get('root_path', '')!r}, and a server "
            "runs the lifespan of the outermost application only. Write that one as "
            "FastAPI(lifespan=DjangoORM.lifespan), or put `async with DjangoORM.lifespan(mounted_app):` into "
            "its own lifespan."
        )
    if hasattr(router.lifespan_context, "_router"):  # FastAPI's default
        return f"{WRITE}."
    if tuple(scope.get("client") or ())[:1] == ("testclient",):
        return "A test client runs the lifespan when it is entered: write `with TestClient(app) as client:`."
    return (
        "The server has not run this application's lifespan: start it without `--lifespan off`. "
        "(httpx.ASGITransport runs none: enter `async with app.router.lifespan_context(app):` around it. A "
        "lifespan of your own must contain `async with DjangoORM.lifespan(app):`.)"
    )


def _request_of_caller() -> Any:
    """The ASGI scope of that request; None where it cannot be seen, as from a thread."""
    frame = sys._getframe()
    while frame is not None:
        scope = frame.f_locals.get("scope")
        if isinstance(scope, dict) and scope.get("type") in ("http", "websocket") and "app" in scope:
            return scope
        frame = frame.f_back  # type: ignore[assignment]
    return None
