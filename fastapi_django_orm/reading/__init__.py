"""How rows are read from the database, now or for a snapshot, and how they become JSON."""
