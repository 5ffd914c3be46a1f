"""How a repository follows hints: merged, spread, and never forgotten."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from fastapi_django_orm.coherence.follower import Follower
from fastapi_django_orm.memory.refreshing import Load

DEADLINE = 20.0  # seconds


class Loads:
    """Stands for a refresher whose loads take a time."""

    name = "topics"

    def __init__(self, duration: float = 0.0) -> None:
        self.duration = duration
        self.begun: list[float] = []

    async def refresh(self, trigger: str, keys: Any = None) -> Load[Any]:
        self.begun.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.duration)
        snapshot: Any = None
        return Load(snapshot, self.duration, trigger)


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose clock goes on only when all wait: a pause takes as long as it says, and no time."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self.now = max(self.now, self._scheduled[0]._when)  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


def run(main: Callable[[], Any]) -> None:
    async def with_deadline() -> None:
        async with asyncio.timeout(DEADLINE):
            await main()

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(with_deadline())


def follower(loads: Any, spread: float = 0.0) -> Follower:
    return Follower(loads, spread)


def test_many_workers_do_not_load_at_once() -> None:
    """Those that hear the same hint spread their full loads over a multiple of what one takes."""

    async def main() -> None:
        workers = [(loads, follower(loads, spread=10)) for loads in (Loads(0.05) for _ in range(20))]
        for _ in range(2):  # the first time nobody knows what a load takes
            for _loads, worker in workers:
                worker.follow(None)
            await asyncio.gather(*(worker.settle() for _loads, worker in workers))
        begun = [loads.begun[1] for loads, _worker in workers]
        assert max(begun) - min(begun) > 0.08
        assert max(begun) - min(begun) < 0.4
        await asyncio.gather(*(worker.stop() for _loads, worker in workers))

    run(main)


def test_the_spread_is_bounded() -> None:
    """However long a load takes, no worker waits longer than the setting says."""

    async def main() -> None:
        loads = Loads(0.3)
        worker = follower(loads, spread=0.01)
        for _ in range(2):
            worker.follow(None)
            await worker.settle()
        assert loads.begun[1] - loads.begun[0] < 0.3 + 0.25
        await worker.stop()

    run(main)


@pytest.mark.parametrize("keys", [None, {1}])
def test_a_burst_during_a_load_costs_one_more(keys: set[int] | None) -> None:
    """However many hints come while a load runs, they share the next one."""

    async def main() -> None:
        loads = Loads(0.02)
        worker = follower(loads)
        worker.follow(keys)
        await asyncio.sleep(0.005)
        for number in range(10_000):
            worker.follow(None if keys is None else {number})
        await worker.settle()
        assert len(loads.begun) == 2
        await worker.stop()

    run(main)


def test_hints_that_never_end_have_a_pace() -> None:
    """A hint whenever a refresh has ended: no more than a hundred refreshes a second."""

    async def main() -> None:
        loads = Loads()
        worker = follower(loads)
        for number in range(20):
            worker.follow({number})
            await worker.settle()
        assert loads.begun[-1] - loads.begun[0] >= 19 * 0.009
        await worker.stop()

    run(main)


def test_settling_waits_for_a_load_that_begins_later() -> None:
    """The load that runs when a hint comes may have read before the commit."""

    async def main() -> None:
        loads = Loads(0.02)
        worker = follower(loads)
        worker.follow({1})
        await asyncio.sleep(0.005)
        worker.follow({2})
        await worker.settle()
        assert len(loads.begun) == 2
        await worker.stop()

    run(main)


def test_no_keys_are_nothing_to_wait_for() -> None:
    """A hint for no rows, as of a relation that is set to what it is, loads nothing and holds nobody up."""

    async def main() -> None:
        loads = Loads()
        worker = follower(loads)
        worker.follow(set())
        await worker.settle()
        assert loads.begun == []
        await worker.stop()

    run(main)


def test_stopping_lets_go_of_who_waits() -> None:
    """Nobody hangs who waits for a repository to settle when the application ends."""

    async def main() -> None:
        worker = follower(Loads(60))
        worker.follow(None)
        waiting = asyncio.create_task(worker.settle())
        await asyncio.sleep(0.005)
        await worker.stop()
        await waiting

    run(main)
