"""Repositories that are served without a handler."""
