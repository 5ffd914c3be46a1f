"""Clients that ask every worker for everything, and judge each answer."""

import asyncio
import random
import time
from collections.abc import Iterator

import httpx

from tests.soak.checks import balanced
from tests.soak.errors import Wrong
from tests.soak.ledger import Judged, Ledger
from tests.soak.lists import beacon_of
from tests.soak.questions import Question, question
from tests.soak.verdict import Verdict

PATIENCE = 30.0  # seconds: a worker may be stopped for a while
PAUSE = 0.03  # seconds between two requests to one worker


class Reader:
    """The clients of one worker.

    Args:
        worker: which.
        url: where it is.
        ledger: what all workers have answered.
        verdict: takes in what is found.
        rng: decides what is asked for.
    """

    def __init__(self, worker: int, url: str, ledger: Ledger, verdict: Verdict, rng: random.Random) -> None:
        self._worker = worker
        self._url = url
        self._ledger = ledger
        self._verdict = verdict
        self._rng = rng
        self._tags: dict[Question, str] = {}

    async def read(self) -> None:
        """Ask until cancelled.

        Raises:
            Wrong: an answer is not what it must be.
        """
        async with httpx.AsyncClient(base_url=self._url, timeout=PATIENCE, trust_env=False) as client:
            while True:
                try:
                    await self._ask(client, question(self._rng))
                except httpx.HTTPError as error:
                    raise Wrong(f"worker {self._worker} does not answer: {error!r}") from error
                except Wrong as wrong:
                    raise Wrong(f"worker {self._worker}: {wrong}") from None
                await asyncio.sleep(PAUSE)

    async def _ask(self, client: httpx.AsyncClient, asked: Question) -> None:
        tag = self._tags.get(asked) if self._rng.random() < 0.5 else None
        headers = {"Accept-Encoding": asked.coding, **({"If-None-Match": tag} if tag else {})}
        began = time.monotonic()
        answer = await client.get(asked.path, headers=headers)
        self._verdict.answers[f"{answer.status_code} {asked.of.path}"] += 1
        judged = self._judged(asked, answer, tag)
        self._tags[asked] = answer.headers["ETag"]
        if judged is not None and judged.beacon is not None:
            source = f"worker {self._worker} {asked.of.path}"
            self._verdict.staleness.answered(source, asked.of.path, judged.beacon, began)

    def _judged(self, asked: Question, answer: httpx.Response, tag: str | None) -> Judged | None:
        etag = answer.headers.get("ETag", "")
        entry = asked.path, asked.coding, etag
        if answer.status_code == 304 and etag == tag:
            return self._ledger.find(entry, None)
        if answer.status_code != 200 or not etag:
            said = f"{answer.status_code}, ETag {etag!r} for who has {tag!r}"
            raise Wrong(f"{asked.path}: {said}: {answer.text[:300]}")
        return self._ledger.find(entry, answer.content) or self._judge(entry, asked, answer)

    def _judge(self, entry: tuple[str, ...], asked: Question, answer: httpx.Response) -> Judged:
        found = answer.json()
        rows = found.get(asked.of.name, [found])  # a list, or one row
        for fault in asked.of.faults(rows, whole=asked.whole):
            raise Wrong(f"{asked.path}: {fault}")
        if asked.path == "/accounts/" and any(balanced(rows)):
            self._verdict.halves += 1
        return self._ledger.add(entry, answer.content, beacon_of(rows))


def readers(urls: list[str], verdict: Verdict) -> Iterator[Reader]:
    """One for each worker; they share what entity tags stand for."""
    ledger = Ledger()
    for number, url in enumerate(urls):
        yield Reader(number, url, ledger, verdict, random.Random(f"{verdict.plan.seed} reader {number}"))
