"""What a run has found: the first thing that was wrong, or nothing, and what was done meanwhile."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tests.soak.plan import Plan
from tests.soak.staleness import Staleness

OUTCOMES = ("committed", "rolled back", "refused", "nothing to do")


@dataclass
class Verdict:
    """One run's.

    Attributes:
        wrong: the first thing that was wrong.
        writes: by kind, what became of them.
        answers: by list, how many were judged.
        halves: how many different states of the accounts by keys were between two states of the table.
        counted: hints and loads of all workers together.
        events: the names of what workers have logged as warnings and errors.
        faults: what was done to them.
        settled: seconds until every worker had everything, after the expected lists had been read.
    """

    plan: Plan
    wrong: str | None = None
    writes: dict[str, Counter[str]] = field(default_factory=dict)
    answers: Counter[str] = field(default_factory=Counter)
    halves: int = 0
    counted: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    settled: float | None = None
    staleness: Staleness = field(init=False)

    def __post_init__(self) -> None:
        self.staleness = Staleness(self.plan.staleness)

    @property
    def commits(self) -> int:
        """How many writes were committed."""
        return sum(outcomes["committed"] for outcomes in self.writes.values())

    @property
    def behind(self) -> dict[str, float]:
        """For each list with the beacon, the most seconds that an answer was behind the table."""
        return self.staleness.most

    def add_writes(self, counts: Mapping[str, Mapping[str, int]]) -> None:
        """Take in what one writer has done."""
        for kind, outcomes in counts.items():
            self.writes.setdefault(kind, Counter()).update(outcomes)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        plan = self.plan
        faults = "with faults" if plan.faults else "without faults"
        yield f"{plan.database}, {plan.seconds:g} s, seed {plan.seed}, {plan.workers} workers, {faults}"
        yield ""
        yield f"{'writes':<18}" + "".join(f"{outcome:>15}" for outcome in OUTCOMES)
        for kind, outcomes in sorted(self.writes.items()):
            yield f"{kind:<18}" + "".join(f"{outcomes[outcome]:>15}" for outcome in OUTCOMES)
        yield ""
        yield from _table("answers", self.answers)
        yield from _table("counted", self.counted)
        yield from _table("logged", self.events)
        yield from _table("faults", self.faults)
        yield f"half a transfer in {self.halves} states of the accounts that are refreshed by keys"
        yield from _table("most seconds behind", {path: f"{most:.3f}" for path, most in self.behind.items()})
        if self.settled is not None:
            yield f"in the end all workers equal to the table, {self.settled:.2f} s after it was read"
        yield f"WRONG: {self.wrong}" if self.wrong else f"{self.commits} commits, nothing wrong"


def _table(title: str, counts: Mapping[str, int | str]) -> Iterator[str]:
    if counts:
        yield f"{title}:"
        width = max(map(len, counts)) + 2
        yield from (f"  {name:<{width}}{count:>9}" for name, count in sorted(counts.items()))
