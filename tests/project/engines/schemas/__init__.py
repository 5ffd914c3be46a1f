"""PostgreSQL, with a schema that is chosen anew before each query."""
