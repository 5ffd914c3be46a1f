"""Whether workers share what they load, from ``DJANGO_ORM_SHARED``."""

from typing import TYPE_CHECKING

from ..errors import InvalidSettings
from ..settings import ORMSettings

if TYPE_CHECKING:  # it needs redis-py
    from .loader import SharedSnapshots


def shared_snapshots(settings: ORMSettings) -> "SharedSnapshots | None":
    """Where workers share what they load; None if they do not."""
    if settings.shared is None:
        return None
    try:
        from .loader import SharedSnapshots
    except ImportError as error:
        raise InvalidSettings(
            f"DJANGO_ORM_SHARED needs redis-py ({error}). Install it: "
            "pip install 'fastapi-django-orm[redis]'."
        ) from error
    try:
        return SharedSnapshots(settings.shared.get_secret_value())
    except ValueError as error:
        raise InvalidSettings(f"DJANGO_ORM_SHARED: {error}.") from None
