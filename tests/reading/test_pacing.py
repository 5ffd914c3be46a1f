"""How a load gives way to requests: by the share of the time that it has, whatever its steps look like."""

from collections.abc import Callable

import pytest

from fastapi_django_orm.reading import pacing
from fastapi_django_orm.reading.pacing import SAVED, SHARE, Pace

STEP = 0.0005  # seconds


class Clock:
    """A thread that computes and sleeps, without taking the time.

    Attributes:
        now: seconds since it began.
        worked: seconds of these in which it has computed.
        requests: how many there have been.
    """

    def __init__(self) -> None:
        self.now = self.worked = 0.0
        self.requests = 0

    def monotonic(self) -> float:
        return self.now

    def thread_time(self) -> float:
        return self.worked

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.requests += 1

    def work(self, seconds: float) -> None:
        self.now += seconds
        self.worked += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pacing, "time", clock)
    monkeypatch.setattr(pacing, "monotonic", clock.monotonic)
    return clock


def share(clock: Clock, load: Callable[[], None], seconds: float = 5.0) -> float:
    """What loads that follow each other at once have of some time."""
    began, worked = clock.now, clock.worked
    while clock.now - began < seconds:
        load()
    return (clock.worked - worked) / (clock.now - began)


@pytest.mark.parametrize("every", [1, 2, 20], ids=lambda every: f"seen after every {every}")
def test_a_long_load_has_its_share(clock: Clock, every: int) -> None:
    """Also where most steps are over before the requests that came in them are counted."""
    pace = Pace(lambda: clock.requests)

    def load() -> None:
        pace.begin()
        for number in range(200):
            clock.work(STEP)
            clock.requests += number % every == 0
            pace.rest()
        pace.end()

    assert share(clock, load) == pytest.approx(SHARE, rel=0.2)


@pytest.mark.parametrize("steps", [0, 1], ids=["one step", "two steps"])
def test_small_loads_have_their_share_together(clock: Clock, steps: int) -> None:
    """Many in a row have no more than a long one, though the last step of each is followed by no rest."""
    pace = Pace(lambda: clock.requests)

    def load() -> None:
        pace.begin()
        for _ in range(steps):
            clock.work(4 * STEP)
            clock.requests += 1
            pace.rest()
        clock.work(4 * STEP)
        clock.requests += 1
        pace.end()

    assert share(clock, load) == pytest.approx(SHARE, rel=0.2)


def test_a_small_load_after_a_while_does_not_wait(clock: Clock) -> None:
    """What was not used before is saved up, so that one load of a thousand rows has no rests."""
    pace = Pace(lambda: clock.requests)
    clock.now += 60
    began = clock.now
    pace.begin()
    for _ in range(int(SAVED / STEP)):
        clock.work(STEP)
        clock.requests += 1
        pace.rest()
    assert clock.now - began == pytest.approx(SAVED)


def test_nobody_to_give_way_to(clock: Clock) -> None:
    """Without requests a load runs at full speed, also soon after the last."""
    pace = Pace(lambda: clock.requests)
    clock.requests += 1
    pace.begin()
    clock.work(STEP)
    pace.rest()
    clock.now += 1
    began = clock.now
    for _ in range(1000):
        clock.work(STEP)
        pace.rest()
    assert clock.now - began == pytest.approx(1000 * STEP)
