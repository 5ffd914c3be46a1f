"""Who may refresh: the holder of the token, or anybody while Django's ``DEBUG`` is on."""

import secrets
from collections.abc import Awaitable, Callable
from typing import Annotated

from django.conf import settings as django_settings
from fastapi import Depends, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import SecretStr

from ..events import logger
from ..settings import ORMSettings

HOW_TO_ALLOW = "set DJANGO_ORM_REFRESH_TOKEN and send `Authorization: Bearer <token>`"

_bearer = HTTPBearer(
    # A name of its own: an application may have a bearer scheme, too, and both stand in one document.
    scheme_name="DjangoORMRefreshToken",
    auto_error=False,
    description="The value of DJANGO_ORM_REFRESH_TOKEN.",
)


def may_refresh(token: SecretStr | None) -> Callable[..., Awaitable[None]]:
    """A dependency that lets a request pass or ends it with 401 or 403.

    Args:
        token: the secret; without one only ``DEBUG`` lets anybody pass.
    """

    async def check(
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    ) -> None:
        if token is None:
            if not django_settings.DEBUG:
                raise _refused(403, f"Refreshing is closed: {HOW_TO_ALLOW}.", "no token configured")
        elif credentials is None:
            raise _refused(401, "Send `Authorization: Bearer <token>`.", "no token sent")
        elif not secrets.compare_digest(
            # A header's bytes are read as Latin-1; the token's are UTF-8.
            credentials.credentials.encode("latin-1"),
            token.get_secret_value().encode(),
        ):
            raise _refused(403, "This token may not refresh.", "wrong token")

    return check


def warn_if_closed(settings: ORMSettings) -> None:
    """Say in the log who may refresh, where nobody has said so in the settings."""
    if settings.refresh_token is None:
        logger.warning(
            "refresh_open_to_all" if django_settings.DEBUG else "refresh_closed",
            path=settings.refresh_path,
            hint=HOW_TO_ALLOW,
        )


def _refused(status: int, detail: str, reason: str) -> HTTPException:
    logger.warning("refresh_refused", status=status, reason=reason)
    return HTTPException(status, detail, {"WWW-Authenticate": "Bearer"} if status == 401 else None)
