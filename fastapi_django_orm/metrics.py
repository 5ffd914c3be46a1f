"""What is counted and measured, through OpenTelemetry's API. Exporting it is the application's business.

Without an SDK nothing is kept: each call ends in a check for one. The instruments are made at import, and
turn into real ones whenever an SDK is configured.
https://opentelemetry.io/docs/specs/otel/metrics/api/
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from opentelemetry.metrics import CallbackOptions, Observation, get_meter

# Seconds. The API's own are for milliseconds.
_BOUNDARIES = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60]


# Refreshers, and transports' supervisors: each adds itself, and removes itself when it stops. An exporter's
# thread reads copies.
repositories: set[Any] = set()
transports: set[Any] = set()


def count_load(repository: str, trigger: str, seconds: float, error: BaseException | None = None) -> None:
    """Count a load, and record how long it took."""
    attributes = {"repository": repository, "trigger": trigger, "outcome": "failed" if error else "loaded"}
    if error is not None:
        attributes["error.type"] = type(error).__name__
    with suppress(Exception):  # an error of an SDK's extension must not end refreshing
        _loads.add(1, attributes)
        _durations.record(seconds, attributes)


def count_hint(transport: str) -> None:
    """Count a hint that a transport has brought."""
    with suppress(Exception):
        _hints.add(1, {"transport": transport})


def _rows(options: CallbackOptions) -> Iterator[Observation]:
    for repository in repositories.copy():
        if (snapshot := repository.snapshot) is not None:
            yield Observation(len(snapshot), {"repository": repository.name})


def _ages(options: CallbackOptions) -> Iterable[Observation]:
    for repository in repositories.copy():
        if (age := repository.age) is not None:
            yield Observation(age, {"repository": repository.name})


def _up(options: CallbackOptions) -> Iterable[Observation]:
    for transport in transports.copy():
        yield Observation(int(transport.connected_since is not None), {"transport": transport.name})


_meter = get_meter("fastapi_django_orm")
_loads = _meter.create_counter("django_orm.loads", "{load}", "Loads of repositories.")
_durations = _meter.create_histogram(
    "django_orm.load.duration",
    "s",
    "How long loads took.",
    explicit_bucket_boundaries_advisory=_BOUNDARIES,
)
_hints = _meter.create_counter("django_orm.hints", "{hint}", "Hints of changes that have come.")
_meter.create_observable_gauge("django_orm.rows", [_rows], "{row}", "Rows that are served.")
_meter.create_observable_gauge("django_orm.age", [_ages], "s", "Time since the rows were read.")
_meter.create_observable_gauge("django_orm.transport.up", [_up], "1", "1 while a transport is connected.")
