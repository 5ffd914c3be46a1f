"""Plays random programs under the plugin, and compares what they leave with what the oracle expects."""

import asyncio
import faulthandler
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from itertools import count
from typing import Any
from weakref import WeakSet

import anyio.from_thread
from anyio.to_thread import run_sync  # by this name, as modules of a project have it
from asgiref.sync import async_to_sync, sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.db import IntegrityError, transaction
from django.db.transaction import TransactionManagementError

from fastapi_django_orm import atomic, run
from fastapi_django_orm.errors import DatabaseBusy
from tests.project.board.models import Topic
from tests.support.playing import committed
from tests.support.transactions.programs import (
    Block,
    Call,
    Cut,
    Generator,
    Hook,
    Left,
    Pause,
    Step,
    Together,
    Write,
    wanted,
)

DEADLINE = 30.0  # seconds that a program may take on an idle machine; it takes a tenth of one
TICK = 0.1  # seconds
THREADS = 2


class Deliberate(Exception):
    """What blocks raise that are meant to fail."""


class Player:
    """Plays one program, among others that run at the same time.

    Attributes:
        faults: what no program may see.
        hooks: the labels whose on_commit callback has run.
    """

    def __init__(self, seed: int, number: int, executor: ThreadPoolExecutor) -> None:
        self.faults: list[str] = []
        self.hooks: set[int] = set()
        # With the seed: what a program before has started and given up may still write.
        self._name = f"{seed}/{number}:"
        self._executor = executor
        # By connection: what has outlived its block may have a transaction of its own by then.
        self._using: dict[int, threading.Lock] = {}
        self._left: list[asyncio.Task[None]] = []
        self._ended = False

    async def play(self, program: Step) -> None:
        """Play the program, and wait for what it has left behind."""
        with suppress(Deliberate):
            await self._step(program)
        self._ended = True
        for task in self._left:
            # A task that is still in its block when the one around it ends has lost it, and is told. Outside
            # of all blocks there is no on_commit() on the event loop.
            with suppress(TransactionManagementError, SynchronousOnlyOperation, ExceptionGroup):
                try:
                    await task
                except RuntimeError as error:  # its calls were to run on a thread that has gone on
                    if not any(said in str(error) for said in ("waits no more", "has exited")):
                        raise
                except DatabaseBusy as error:  # all wait for others, outside of blocks
                    if "No database thread" not in str(error):
                        raise

    async def _steps(self, steps: list[Step]) -> None:
        for step in steps:
            await self._step(step)

    async def _step(self, step: Step) -> None:
        match step:
            case Write(way=way, label=label):
                await (
                    self._awrite(label) if way == "" else self._in_a_call(way, partial(self._write, label))
                )
            case Hook(way=way, label=label):
                hook = partial(transaction.on_commit, partial(self.hooks.add, label))
                if way == "":
                    hook()
                else:
                    await self._in_a_call(way, hook)
            case Block():
                await self._block(step)
            case Together(body=body):
                async with asyncio.TaskGroup() as group:
                    for each in body:
                        group.create_task(self._step(each))
            case Call(way=way):
                with suppress(Deliberate):
                    await self._in_a_call(way, partial(self._call, step))
            case Cut():
                await self._cut(step)
            case Left(body=body):
                task = asyncio.create_task(self._step(body))
                if asyncio.get_running_loop() is self.loop:  # others cancel what is left at their end
                    self._left.append(task)
            case Pause(turns=turns):
                await _turns(turns)

    async def _block(self, block: Block) -> None:
        try:
            async with atomic():
                await self._steps(block.body)
                if block.end == "raises":
                    raise Deliberate
                if block.end == "swallows":
                    await self._swallow()
        except Deliberate:
            return
        except TransactionManagementError as error:
            if block.end != "swallows" or "ended without an exception" not in str(error):
                raise
        else:
            if block.end == "swallows":
                self.faults.append("a block that was rolled back has ended without an error")

    async def _swallow(self) -> None:
        topic = await Topic.objects.acreate(comment=f"{self._name}0")
        with suppress(IntegrityError):
            await Topic.objects.acreate(pk=topic.pk, comment=f"{self._name}0")

    async def _cut(self, cut: Cut) -> None:
        task = asyncio.create_task(self._step(cut.body))
        try:
            await _turns(cut.turns)
        finally:  # a cut around this one cancels it as well; else it would be a task that is left
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    # Synchronous functions

    async def _in_a_call(self, way: str, function: Callable[[], Any]) -> None:
        _give_room(asyncio.get_running_loop())
        ways: dict[str, Callable[[], Awaitable[Any]]] = {
            "run": lambda: run(function),
            "sync_to_async": lambda: sync_to_async(function)(),
            "anyio": lambda: run_sync(function),
            "to_thread": lambda: asyncio.to_thread(function),
            "not thread-sensitive": lambda: sync_to_async(function, thread_sensitive=False)(),
            "executor": lambda: asyncio.get_running_loop().run_in_executor(self._executor, function),
        }
        await ways[way]()

    def _call(self, call: Call) -> None:
        wait = {
            "async_to_sync": lambda: async_to_sync(self._steps)(call.body),
            "from_thread": lambda: anyio.from_thread.run(self._steps, call.body),
            "threadsafe": lambda: asyncio.run_coroutine_threadsafe(
                self._steps(call.body), self.loop
            ).result(),
            "asyncio.run": lambda: asyncio.run(self._steps(call.body)),
        }[call.wait]
        if call.atomic:
            with transaction.atomic():
                self._around(call, wait)
                if call.atomic == "raises":
                    raise Deliberate
        else:
            self._around(call, wait)

    def _around(self, call: Call, wait: Callable[[], None]) -> None:
        self._write(call.before)
        wait()
        self._write(call.after)

    def _write(self, label: int) -> None:
        with self._alone():
            Topic.objects.create(comment=f"{self._name}{label}")
            if not Topic.objects.filter(comment=f"{self._name}{label}").exists():
                self.faults.append(f"{label} is not there right after it was written")

    async def _awrite(self, label: int) -> None:
        await Topic.objects.acreate(comment=f"{self._name}{label}")
        # Not for what a time limit may have left: the block around it may end meanwhile.

    @contextmanager
    def _alone(self) -> Iterator[None]:
        transaction.get_connection()  # here a call waits for its turn
        connection = transaction.get_connection()
        if not connection.in_atomic_block:  # what has outlived the transaction is alone
            yield
            return
        using = self._using.setdefault(id(connection), threading.Lock())
        if not using.acquire(blocking=False):
            self.faults.append("two calls use the connection at the same time")
        else:
            try:
                yield
            finally:
                using.release()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    @loop.setter
    def loop(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop


_roomy: "WeakSet[asyncio.AbstractEventLoop]" = WeakSet()


def _give_room(loop: asyncio.AbstractEventLoop) -> None:
    """Let a loop have enough threads for what waits in them, and for what that waits for."""
    if loop not in _roomy:
        _roomy.add(loop)
        loop.set_default_executor(ThreadPoolExecutor(64))


async def _turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def check(seed: int, executor: ThreadPoolExecutor) -> None:
    """Play three programs of a seed at the same time.

    Raises:
        AssertionError: something is wrong; the message names the seed and the programs.
    """
    generator = Generator(seed)
    programs = [generator.program() for _ in range(3)]
    players = [Player(seed, number, executor) for number in range(3)]
    for player in players:
        player.loop = asyncio.get_running_loop()
    try:
        async with _deadline(), asyncio.TaskGroup() as group:
            for player, program in zip(players, programs, strict=True):
                group.create_task(player.play(program))
        await _all_is_free()
        left = await committed()
    except BaseException as error:
        raise AssertionError(f"seed {seed}: {error!r} of\n" + "\n".join(map(repr, programs))) from error
    for player, program in zip(players, programs, strict=True):
        kept = {int(text.split(":")[1]) for text in left if text.startswith(player._name)}
        expected = wanted(program)
        faults = [*player.faults, *expected.wrong(kept | player.hooks)]
        assert not faults, f"seed {seed}: {faults}, in\n{program!r}"
    await Topic.objects.all().adelete()


@asynccontextmanager
async def _deadline() -> AsyncIterator[None]:
    """Raise TimeoutError if the block hangs, having written where its tasks and threads are.

    A late tick counts as one in time: on a loaded machine the programs are as late as the ticks.
    """

    async def watch() -> None:
        for _ in range(int(DEADLINE / TICK)):
            await asyncio.sleep(TICK)
        for task in asyncio.all_tasks():
            task.print_stack()
        faulthandler.dump_traceback(sys.__stderr__)
        limit.reschedule(asyncio.get_running_loop().time())

    async with asyncio.timeout(None) as limit:
        watching = asyncio.create_task(watch())
        try:
            yield
        finally:
            watching.cancel()


async def _all_is_free() -> None:
    """Acquire as many connections at once as there are: none has been lost.

    Raises:
        DatabaseBusy: one was.
    """
    barrier = threading.Barrier(THREADS)

    def acquire() -> None:
        assert not transaction.get_connection().in_atomic_block
        barrier.wait(DEADLINE)

    async with asyncio.TaskGroup() as group:
        for _ in range(THREADS):
            group.create_task(run(acquire))


async def play_for(seconds: float, first: int, report: Callable[[int], None] = lambda seed: None) -> int:
    """Play the programs of one seed after the other.

    Args:
        seconds: how long.
        first: the first seed.
        report: called with each seed.

    Returns:
        How many seeds were played.
    """
    end = time.monotonic() + seconds
    executor = ThreadPoolExecutor(32)
    try:
        for seed in count(first):
            if time.monotonic() > end:
                return seed - first
            report(seed)
            await check(seed, executor)
    finally:
        executor.shutdown()
    raise AssertionError("unreachable")
