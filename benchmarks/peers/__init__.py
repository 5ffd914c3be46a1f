"""One short file for each peer, written as that peer's documentation says; `catalog.py` runs them.

Corrections are welcome: whoever uses a peer should be able to read its file in a minute and say
whether it is fair.
"""
