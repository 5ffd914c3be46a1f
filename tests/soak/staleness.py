"""How old the rows are that workers serve, told by the beacon among them, which counts its own commits.

A request that began when a number had been committed, and is answered without it, is stale by the time
between the two. What is committed while the request is under way does not count.
"""

from bisect import bisect_left

from tests.soak.errors import Wrong


class Staleness:
    """Of all workers.

    Args:
        limit: the seconds that an answer may be behind.

    Attributes:
        most: for each list, the longest time in seconds by which an answer was behind.
    """

    def __init__(self, limit: float) -> None:
        self.most: dict[str, float] = {}
        self._limit = limit
        self._committed: list[float] = []  # the time of number 1, 2, …
        self._served: dict[str, int] = {}

    def commit(self, line: str) -> None:
        """Take in what the beacon says."""
        number, when = line.split()
        assert int(number) == len(self._committed) + 1, line
        self._committed.append(float(when))

    def answered(self, source: str, path: str, number: int, began: float) -> None:
        """Take in an answer.

        Args:
            source: which worker's list it is from.
            path: the list's.
            number: the beacon's.
            began: when the request was sent, by the monotonic clock.

        Raises:
            Wrong: it is older than the one before, or too old.
        """
        before, self._served[source] = self._served.get(source, 0), number
        if number < before:
            raise Wrong(f"{path}: older rows after newer ones, beacon {number} after {before}")
        behind = 0.0
        if number < bisect_left(self._committed, began):
            behind = began - self._committed[number]
        self.most[path] = max(self.most.get(path, 0.0), behind)
        if behind > self._limit:
            raise Wrong(f"{path}: {behind:.1f} s behind the table")
