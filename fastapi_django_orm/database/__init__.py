"""Where ORM code runs, and on which connection."""
