"""A PostgreSQL engine that sorts nulls last, as some projects have one."""
