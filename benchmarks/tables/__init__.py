"""The tables of each part: `TITLE`, `conditions(plan)` in prose, and `tables(results)`, a block for each."""
