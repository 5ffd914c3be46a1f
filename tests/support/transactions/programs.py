"""Random programs of transactions, and what must be in the database after each.

A program is a tree of steps. The oracle reads the tree: it knows nothing of connections, threads or tasks.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import count

# Ways to run a synchronous function, and ways in which such a function waits for asynchronous code.
WAYS = ("run", "sync_to_async", "anyio", "to_thread", "not thread-sensitive", "executor")
WAITS = ("async_to_sync", "from_thread", "threadsafe", "asyncio.run")


class Fate(Enum):
    """What becomes of rows."""

    KEPT = auto()
    LOST = auto()
    EITHER = auto()


@dataclass
class Step:
    """A part of a program."""

    def parts(self) -> "list[Step]":
        return []


@dataclass
class Write(Step):
    """One row, from asynchronous code; "" for the asynchronous ORM."""

    way: str
    label: int


@dataclass
class Block(Step):
    """``async with atomic():`` around the steps."""

    body: list[Step]
    end: str  # "kept"; "raises"; "swallows" an error of the database, whose block must raise at its end

    def parts(self) -> list[Step]:
        return self.body


@dataclass
class Together(Step):
    """The steps in tasks of their own at once."""

    body: list[Step]

    def parts(self) -> list[Step]:
        return self.body


@dataclass
class Call(Step):
    """A synchronous function that writes a row, waits for asynchronous steps, and writes another row."""

    way: str
    before: int
    atomic: str  # "": no transaction of its own; "kept"; "raises"
    wait: str
    body: list[Step]
    after: int

    def parts(self) -> list[Step]:
        return self.body


@dataclass
class Cut(Step):
    """The step in a task that is cancelled after some turns of the event loop."""

    body: Step
    turns: int

    def parts(self) -> list[Step]:
        return [self.body]


@dataclass
class Left(Step):
    """The step in a task that nobody awaits before the transaction has ended."""

    body: Step

    def parts(self) -> list[Step]:
        return [self.body]


@dataclass
class Pause(Step):
    """Some turns of the event loop."""

    turns: int


@dataclass
class Hook(Step):
    """``transaction.on_commit()``."""

    way: str
    label: int


@dataclass
class Wanted:
    """What the oracle expects.

    Attributes:
        fates: of each label.
        whole: sets of labels that are kept together or lost together.
    """

    fates: dict[int, Fate] = field(default_factory=dict)
    whole: list[set[int]] = field(default_factory=list)

    def wrong(self, kept: set[int]) -> Iterator[str]:
        """What is not as it should be, if just these labels were kept."""
        for label, fate in self.fates.items():
            if fate is Fate.KEPT and label not in kept:
                yield f"{label} is lost"
            if fate is Fate.LOST and label in kept:
                yield f"{label} was kept"
        for group in self.whole:
            if group & kept and group - kept:
                yield f"of {sorted(group)} only {sorted(group & kept)} were kept"
        if unknown := kept - set(self.fates):
            yield f"{sorted(unknown)} belong to nobody"


def wanted(program: Step) -> Wanted:
    """What a program must leave."""
    result = Wanted()
    _expect(program, Fate.KEPT, set(), result)
    return result


def _expect(step: Step, fate: Fate, group: set[int], result: Wanted) -> None:
    match step:
        case Write(label=label) | Hook(label=label):
            _note(label, fate, group, result)
        case Block(body=body, end=end):
            _expect_all(body, fate if end == "kept" else Fate.LOST, group, result)
        case Call():
            inner = Fate.LOST if step.atomic == "raises" else fate
            _note(step.before, inner, group, result)
            _expect_all(step.body, inner, group, result)
            _note(step.after, inner, group, result)
        case Cut(body=body):
            _expect_either(body, fate, result)
        case Left(body=body):
            # It may be inside or outside when it runs, so also what failed around it may not count.
            _expect_either(body, Fate.EITHER, result)
        case _:
            _expect_all(step.parts(), fate, group, result)


def _expect_either(step: Step, fate: Fate, result: Wanted) -> None:
    """Some of it may have happened; a transaction in it has happened as a whole or not at all."""
    if isinstance(step, Left):  # see above
        _expect_either(step.body, Fate.EITHER, result)
        return
    fate = Fate.LOST if fate is Fate.LOST else Fate.EITHER
    group: set[int] = set()
    if isinstance(step, Block) or (isinstance(step, Call) and step.atomic):
        _expect(step, fate, group, result)
        result.whole.append(group)
        return
    match step:
        case Write(label=label) | Hook(label=label):
            result.fates[label] = fate
        case Call():
            result.fates[step.before] = result.fates[step.after] = fate
    for part in step.parts():
        _expect_either(part.body if isinstance(part, Cut) else part, fate, result)


def _expect_all(body: list[Step], fate: Fate, group: set[int], result: Wanted) -> None:
    for step in body:
        _expect(step, fate, group, result)


def _note(label: int, fate: Fate, group: set[int], result: Wanted) -> None:
    result.fates[label] = fate
    if fate is Fate.EITHER:
        group.add(label)


class Generator:
    """Makes programs of a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._labels = count(1)

    def program(self) -> Block | Cut:
        """A transaction, which may be cancelled."""
        block = Block(self._body(3), self._random.choice(["kept", "kept", "kept", "raises"]))
        if self._random.random() < 0.3:
            return Cut(block, self._random.randrange(80))
        return block

    def _body(self, depth: int) -> list[Step]:
        return [self._step(depth) for _ in range(self._random.randint(1, 3))]

    def _step(self, depth: int) -> Step:
        kinds = ["write", "write", "pause", "hook"]
        if depth:
            kinds += ["block", "together", "together", "call", "call", "call", "cut", "left"]
        choose = self._random.choice
        match choose(kinds):
            case "block":
                end = choose(["kept", "kept", "raises", "swallows"])
                return Block(self._body(depth - 1), end)
            case "together":
                return Together([self._step(depth - 1) for _ in range(self._random.randint(2, 3))])
            case "call":
                return self._call(depth)
            case "cut":
                return Cut(self._step(depth - 1), self._random.randrange(30))
            case "left":
                return Left(self._step(depth - 1))
            case "pause":
                return Pause(self._random.randint(1, 5))
            case "hook":
                return Hook(choose(["", *WAYS]), next(self._labels))
            case _:
                return Write(choose(["", "", *WAYS]), next(self._labels))

    def _call(self, depth: int) -> Call:
        choose = self._random.choice
        way = choose(WAYS)
        # AnyIO's from_thread works on AnyIO's threads alone.
        wait = choose(WAITS if way == "anyio" else [each for each in WAITS if each != "from_thread"])
        atomic = choose(["", "", "kept", "raises"])
        return Call(way, next(self._labels), atomic, wait, self._body(depth - 1), next(self._labels))
