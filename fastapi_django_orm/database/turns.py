"""Asynchronous code that a call of a transaction runs, while the transaction's thread waits for the call.

A ``def`` handler may use ``anyio.from_thread.run``, a function ``async_to_sync``. What runs there is inside
the transaction, and its calls cannot wait for the transaction's thread, because the thread waits for them.
So that code is in a block too, a turn, which sends its calls to the thread that waits.
"""

import asyncio
import queue
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from functools import partial

from asgiref.current_thread_executor import CurrentThreadExecutor
from asgiref.sync import AsyncToSync

from .blocks import Block, current_block
from .requests import current_request
from .threads import Job


class Turn(Block):
    """What a call has asynchronous code do, while the transaction's thread waits for the call."""

    def __init__(self, parent: Block, send: Callable[[Job], bool]) -> None:
        """Begin a block that ends with the call, so that nested ones wait for each other.

        Args:
            parent: the block that the call is in.
            send: has the waiting thread run a job; False if it waits no more.
        """
        super().__init__(parent.transaction, parent)
        self._send = send

    @property
    def ended(self) -> bool:
        """Whether the call has ended, or all around it."""
        return self._ended or (self.parent is not None and self.parent.ended)

    def put(self, job: Job) -> None:
        """Run the job on the thread that waits; if none waits any more, as the block around does."""
        with self.transaction.lock:
            if self._ended or not self._send(job):
                super().put(job)


class ThreadTurn(Turn):
    """The right of a thread that is not the transaction's own to use its connections."""

    def __init__(self, parent: Block) -> None:
        """Ask for this right.

        Args:
            parent: the innermost block of the asking task.
        """
        super().__init__(parent, self._to_waiting_thread)
        self._begun = False
        self._granted: Future[None] = Future()
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        parent.submit(Job(self._wait))

    def _to_waiting_thread(self, job: Job) -> bool:
        self._jobs.put(job)
        return True

    def _wait(self) -> None:
        # On the transaction's thread, which so does nothing else meanwhile.
        if self._granted.set_running_or_notify_cancel():
            self._granted.set_result(None)
            while (job := self._jobs.get()) is not None:
                job.run()

    async def granted(self) -> None:
        """Wait until the right is granted."""
        try:
            await asyncio.wrap_future(self._granted)
        except BaseException:
            self._granted.cancel()
            self.end()
            raise

    def begin(self) -> None:
        """Begin to use the connections.

        Raises:
            CancelledError: the turn was given up.
        """
        with self.transaction.lock:
            if self._ended:
                raise CancelledError
            self._begun = True

    def end_unless_begun(self) -> None:
        """Give the turn up, if the thread has not begun to use it."""
        with self.transaction.lock:
            if not self._begun:
                self.end()

    def end(self) -> None:
        """End the turn, and let the transaction go on."""
        with self.transaction.lock:
            if self._ended:
                return
            self._ended = True
            self._jobs.put(None)
        self.end_nested()


def waiting_executor() -> CurrentThreadExecutor | None:
    """What runs calls on the thread that waits in ``async_to_sync`` for the running code, if one does."""
    waiting: CurrentThreadExecutor | None = getattr(AsyncToSync.executors, "current", None)
    return waiting


def is_bound() -> bool:
    """Whether calls of the running code have their thread: a transaction's, or one that waits for it."""
    return asking_block() is not None or waiting_executor() is not None


def asking_block() -> Block | None:
    """The block to ask for calls: the current one, or the turn of the call that waits in async_to_sync."""
    block = current_block()
    waiting = waiting_executor()
    if block is None:
        return _request_block(waiting)
    if waiting is None:
        return block
    around: Block | None = block
    while around is not None:
        if waiting in around.turns:
            return block if around is not block else around.turns[waiting]
        around = around.parent
    return block.turns.setdefault(waiting, Turn(block, partial(_to_waiting_call, waiting)))


def _request_block(waiting: CurrentThreadExecutor | None) -> Block | None:
    """The block that serves the request because of what its calls have left on a connection."""
    request = current_request.get()
    block: Block | None = None if request is None else request.block
    # A thread that waits in async_to_sync runs its calls itself, and has connections of its own.
    return None if block is None or block.ended or waiting is not None else block


def _to_waiting_call(waiting: CurrentThreadExecutor, job: Job) -> bool:
    try:
        waiting.submit(job.run)
    except RuntimeError:  # it waits no more
        return False
    return True
