"""Published answers below ASGI: ``uvicorn main:app --http fastapi_django_orm.server:Published``."""

from .protocol import Published

__all__ = ["Published"]
