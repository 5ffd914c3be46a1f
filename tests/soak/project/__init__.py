"""The project whose rows are written and served; a process for each of its modules that is run."""
