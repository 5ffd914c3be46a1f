"""The same for SQLite."""
