"""What a run does, for how long, and how patient it is."""

from dataclasses import dataclass

PINNED_ITEMS = 50  # keys from 1 on that no commit deletes
BEACON = 1  # the item whose title counts up, several times a second
PINNED_SHELVES = 10
ACCOUNTS = 100
NEVER = "never"  # what titles begin with that are rolled back
TOTAL = ACCOUNTS * 1000  # of their balances, after every commit


@dataclass(frozen=True, slots=True)
class Plan:
    """One run.

    Attributes:
        database: ``postgresql``, ``sqlite`` or ``mariadb``.
        seconds: how long writers write.
        seed: of everything that is left to chance.
        rows: about how many items there are.
        faults: whether connections are cut, brokers restarted and workers stopped for a while.
        fault_every: seconds between two faults.
        workers: processes of uvicorn.
        pause: seconds between two writes of a writer, on average.
        patience: seconds after which a worker must serve a commit, when nothing fails.
    """

    database: str
    seconds: float
    seed: int
    rows: int = 2000
    faults: bool = False
    fault_every: float = 10.0
    workers: int = 4
    pause: float = 0.08
    patience: float = 5.0

    @property
    def staleness(self) -> float:
        """Seconds after which a worker must serve a commit, whatever the plan has fail.

        With faults there are those that it may take to find a connection that has gone silent: see
        docs/coherence.md.
        """
        return self.patience + (20.0 if self.faults else 0.0)
