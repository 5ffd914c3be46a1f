"""Which rows are kept as Python objects, beside their JSON.

All of them for a table of ordinary size, so that reading it costs what reading a list costs. Of a large one
those that were read last; the others are made of their JSON when somebody asks.
"""

import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

from ..rows.codec import RowCodec
from ..shared import renewed_at_fork
from .pages import Page


class RowCache:
    """Gives pages' rows in Python, for all snapshots of a repository whose columns have the same types.

    Attributes:
        most: how many rows are kept.
        codec: reads the JSON; None if every row comes as an object.
    """

    def __init__(self, codec: RowCodec | None, most: int) -> None:
        """Keep nothing yet.

        Args:
            codec: reads the JSON; None if every row comes as an object.
            most: how many rows to keep.
        """
        self.most = most
        self.codec = codec
        self._kept: deque[tuple[Page, int]] = deque()
        self._count = 0
        self._lock = renewed_at_fork(threading.Lock())  # handlers read on many threads

    def rows(self, page: Page) -> Sequence[Any]:
        """The rows of a page."""
        rows = page.decoded
        if rows is None:
            rows = page.objects if page.objects is not None and None not in page.objects else None
            if rows is None:
                rows = self._decode(page)
                self._keep(page, rows)
        return rows

    def row(self, page: Page, index: int) -> Any:
        """One row, without making the others of its page."""
        if page.decoded is not None:
            return page.decoded[index]
        row = None if page.objects is None else page.objects[index]
        return self.decode(page.row_json(index)) if row is None else row

    def decode(self, json: bytes) -> Any:
        """The row that this JSON says all of."""
        assert self.codec is not None, "such rows come with a codec"
        return self.codec.decode(json)

    def _decode(self, page: Page) -> Sequence[Any]:
        if page.objects is None:
            assert self.codec is not None, "such rows come with a codec"
            return self.codec.decode_list(page.json)
        return [
            self.decode(page.row_json(index)) if row is None else row
            for index, row in enumerate(page.objects)
        ]

    def _keep(self, page: Page, rows: Sequence[Any]) -> None:
        with self._lock:
            page.decoded = rows
            self._kept.append((page, len(page)))
            self._count += len(page)
            while self._count > self.most and len(self._kept) > 1:
                oldest, count = self._kept.popleft()
                oldest.decoded = None
                self._count -= count
