"""Reading a whole table: `load(upto)` reads the rows with keys up to that one and returns what is kept.

`row(kept, key)` gives one row of it. Keys begin at 1 and have no gaps, so that a list needs no index.
"""
