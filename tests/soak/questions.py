"""What clients ask for: lists, parts of lists and single rows, as they are or compressed."""

import random
from dataclasses import dataclass

from tests.soak.lists import LISTS, List
from tests.soak.plan import PINNED_ITEMS

LIMIT = 20


@dataclass(frozen=True, slots=True)
class Question:
    """A request.

    Attributes:
        of: the list that it is about.
        path: where; with a query for a part of it.
        coding: the content coding that the client accepts.
    """

    of: List
    path: str
    coding: str = "identity"

    @property
    def whole(self) -> bool:
        """Whether it asks for the list and not for a part of it or a row."""
        return self.path == self.of.path


def question(rng: random.Random) -> Question:
    """One of them."""
    (of,) = rng.choices(LISTS, [each.weight for each in LISTS])
    chance = rng.random()
    if not of.parts or chance > 0.3:
        return Question(of, of.path, rng.choice(("identity", "gzip")))
    if chance > 0.15 or of.path == "/open/":  # of whose rows none is sure to be there
        return Question(of, f"{of.path}?offset={rng.choice((0, 0, 50, 1000))}&limit={LIMIT}")
    return Question(of, f"{of.path}{rng.randint(1, PINNED_ITEMS)}")
