"""One row: what readers share of it, how it becomes JSON, and how it is kept."""
