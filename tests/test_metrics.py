"""What OpenTelemetry is told, seen by an SDK in a process of its own, since a process has one for good."""

import json
import time
from typing import Any

import httpx

from tests.support.projects import Project

DEADLINE = 20.0  # seconds

SDK = """
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from fastapi import Response

reader = InMemoryMetricReader()


@app.get("/measured/")
async def measured():
    if not isinstance(metrics.get_meter_provider(), MeterProvider):
        metrics.set_meter_provider(MeterProvider([reader]))  # later than the instruments were made
    data = reader.get_metrics_data()
    return Response(data.to_json() if data else "null")


"""


def measured(client: httpx.Client) -> dict[str, list[Any]]:
    """The points of each metric of ours."""
    data = client.get("/measured/").json() or {"resource_metrics": []}
    return {
        metric["name"]: metric["data"]["data_points"]
        for resource in data["resource_metrics"]
        for scope in resource["scope_metrics"]
        if scope["scope"]["name"] == "fastapi_django_orm"
        for metric in scope["metrics"]
    }


def values(points: list[Any]) -> dict[tuple[Any, ...], Any]:
    """The points' values by those of their attributes."""
    return {tuple(sorted(point["attributes"].values())): point.get("value") for point in points}


def test_loads_hints_rows_and_transports(project: Project) -> None:
    """An SDK that is configured sees loads by outcome, their time, hints, rows, ages and transports."""
    project.append("main.py", SDK)
    with project.uvicorn() as server:
        measured(server.client)
        server.post("/refresh/").raise_for_status()
        project.add_topic("second")
        found = wait_for(
            server.client, lambda found: ("sqlite:default",) in values(found.get("django_orm.hints", []))
        )
        loads = values(found["django_orm.loads"])
        assert loads["loaded", "route", "topics"] == 1
        durations = {point["attributes"]["trigger"]: point for point in found["django_orm.load.duration"]}
        assert durations["route"]["count"] == 1
        assert 0 < durations["route"]["sum"] < DEADLINE
        assert durations["route"]["explicit_bounds"][0] == 0.001
        assert values(found["django_orm.transport.up"]) == {("process",): 1, ("sqlite:default",): 1}
        wait_for(server.client, lambda found: values(found["django_orm.rows"]) == {("topics",): 2})
        assert 0 <= values(found["django_orm.age"])["topics",] < DEADLINE


def test_loads_that_fail(project: Project) -> None:
    """They are counted by the class of the error, and what is served is shown on."""
    project.append("main.py", SDK)
    with project.uvicorn(DJANGO_ORM_COHERENCE="off") as server:
        measured(server.client)
        project.drop_table()
        assert server.post("/refresh/").status_code == 503
        found = measured(server.client)
        assert values(found["django_orm.loads"])["TableMissing", "failed", "route", "topics"] == 1
        assert values(found["django_orm.rows"]) == {("topics",): 1}
        assert "django_orm.transport.up" not in found


def test_without_an_sdk(project: Project) -> None:
    """Nothing is missed, and nothing is kept."""
    output = project.python(
        """
        import sys
        from fastapi_django_orm import metrics
        metrics.count_load("topics", "route", 0.1)
        metrics.count_hint("process")
        print("opentelemetry.sdk" in sys.modules)
        """
    )
    assert output == "False\n"


def wait_for(client: httpx.Client, condition: Any) -> dict[str, list[Any]]:
    end = time.monotonic() + DEADLINE
    while not condition(found := measured(client)):
        assert time.monotonic() < end, json.dumps(found)
        time.sleep(0.02)
    return found
