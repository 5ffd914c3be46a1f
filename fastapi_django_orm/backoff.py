"""How long to wait after failures, wherever something is tried again."""


def backoff(failures: int, first: float, last: float) -> float:
    """Seconds until the next attempt: twice as long after each failure.

    Args:
        failures: how many there were in a row.
        first: seconds after the first one.
        last: seconds at most.
    """
    return min(last, first * 2.0 ** min(failures - 1, 10))
