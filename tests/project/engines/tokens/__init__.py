"""PostgreSQL, with passwords that are tokens."""
