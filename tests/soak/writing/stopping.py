"""How a writer is told to end: its standard input does, also when whoever started it has died."""

import sys
import threading


def at_end_of_input() -> threading.Event:
    """An event that is set when standard input ends."""
    stopping = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        stopping.set()

    threading.Thread(target=wait, daemon=True).start()
    return stopping
