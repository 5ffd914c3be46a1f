"""Random programs of transactions leave what an oracle says, whatever way the code takes.

For an hour: ``RANDOM_TRANSACTIONS=3600 RANDOM_TRANSACTIONS_SEED=1
pytest tests/database/test_random_transactions.py --timeout=0 -s -k postgresql``.
"""

import os
import threading

import pytest

from tests.support.playing import play
from tests.support.transactions.playing import DEADLINE, THREADS, play_for

SECONDS = float(os.environ.get("RANDOM_TRANSACTIONS", "3"))
SEED = int(os.environ.get("RANDOM_TRANSACTIONS_SEED", "1"))


@pytest.mark.timeout(SECONDS + 210)
def test_random_programs_leave_what_they_must(default_database: str) -> None:
    """Rows are kept or lost as their blocks are; nothing waits for ever; no connection or thread is lost."""
    played = play(
        lambda: play_for(SECONDS, SEED, _report),
        deadline=SECONDS + 200,
        threads=THREADS,
        # Its error fails the program, but for what was left outside of all blocks, which may find no thread.
        thread_timeout=DEADLINE / 2,
    )
    assert played
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("transaction-")]
    if "RANDOM_TRANSACTIONS" in os.environ:
        print(f"\n{default_database}: seeds {SEED} to {SEED + played - 1}")


def _report(seed: int) -> None:
    if "RANDOM_TRANSACTIONS" in os.environ and seed % 500 == 0:
        print(seed, end=" ", flush=True)
