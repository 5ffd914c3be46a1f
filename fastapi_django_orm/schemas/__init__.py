"""Schemas: pydantic models whose fields come from Django's models."""

from .kinds import register_field
from .model_schema import ModelSchema
from .values import FileURL

__all__ = ["FileURL", "ModelSchema", "register_field"]
