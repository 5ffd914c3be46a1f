"""Schemas: pydantic models whose fields come from Django's models."""
