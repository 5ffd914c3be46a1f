"""Hints that wait to be told, merged by model, so that there are never more of them than models."""

from typing import Any

from ..coherence.hints import EVERYTHING, Hint

MOST_KEYS_OF_MODEL = 1000  # beyond them a hint says "all"


class Waiting:
    """Hints that wait, merged."""

    def __init__(self) -> None:
        self._keys: dict[str, set[Any] | None] = {}

    def add(self, hint: Hint) -> None:
        """Add a hint."""
        keys = self._keys.setdefault(hint.label, set())
        if keys is None:
            return
        keys.update(hint.keys or ())
        if hint.keys is None or len(keys) > MOST_KEYS_OF_MODEL:
            self._keys[hint.label] = None

    def take(self) -> list[Hint]:
        """Take all hints out."""
        keys, self._keys = self._keys, {}
        if EVERYTHING.label in keys:
            return [EVERYTHING]
        return [Hint(label, None if found is None else tuple(found)) for label, found in keys.items()]

    def __bool__(self) -> bool:
        return bool(self._keys)
