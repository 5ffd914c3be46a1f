"""What Django's ORM writes in this process, announced when it is committed.

A receiver of ``post_delete`` makes Django fetch the rows that it deletes, of any model, so one is connected
only while something receives the hints.
"""

from collections.abc import Collection
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.db.models import Model
from django.db.models.signals import m2m_changed, post_delete, post_save

from ..coherence import choice, process
from ..coherence.hints import Hint, PendingHints
from ..coherence.transport import Publisher
from ..events import django_logger as logger
from ..settings import read_settings
from .hint_sender import HintSender
from .tables import announced

_sender: HintSender | None = None
_UID = "fastapi_django_orm"


def connect() -> None:
    """Connect the signals, for as long as the process lives."""
    global _sender
    if _sender is None and _publishers():
        _sender = HintSender(_publishers)
    post_save.connect(_written, dispatch_uid=_UID)
    m2m_changed.connect(_related, dispatch_uid=_UID)
    if _sender is not None:
        _watch_deletes(True)
    else:
        process.on_change.append(_watch_deletes)


def _watch_deletes(wanted: bool) -> None:
    if wanted:
        post_delete.connect(_written, dispatch_uid=_UID)
    else:
        post_delete.disconnect(dispatch_uid=_UID)


def _publishers() -> list[Publisher]:
    # connect() calls this before any writer does: it imports client libraries, and a process that forks while
    # a thread imports leaves half a module to its child.
    try:
        return choice.publishers(read_settings())
    except ImproperlyConfigured as error:
        logger.error("FastAPI's workers cannot be told of writes: %s", error)
        return []


def _written(sender: type[Model], instance: Model, using: str, **kwargs: Any) -> None:
    _announce(sender, [instance.pk], using)


def _related(
    sender: type[Model],
    instance: Model,
    action: str,
    model: type[Model],
    pk_set: Collection[Any] | None,
    using: str,
    **kwargs: Any,
) -> None:
    if action.startswith("post_"):
        _announce(sender, None, using)
        _announce(type(instance), [instance.pk], using)
        _announce(model, pk_set, using)


def _announce(model: type[Model], keys: Collection[Any] | None, using: str) -> None:
    """Send a hint of these rows when the open transaction is committed; None: of all rows."""
    commit, is_new = _last_commit(using), False
    if commit is None:
        commit, is_new = _Commit(), True
    for label, keyed in announced(model):
        commit.pending.add(Hint(label, tuple(keys) if keyed and keys is not None else None))
    if is_new:
        try:
            transaction.on_commit(commit.announce, using=using, robust=True)
        except transaction.TransactionManagementError:
            # Autocommit is off without atomic(): Django sees no commit, and the write must not fail.
            commit.announce()


class _Commit:
    """The hints of a transaction, or of one of its savepoints."""

    def __init__(self) -> None:
        self.pending = PendingHints()

    def announce(self) -> None:
        """Publish the hints. Django calls this after the commit."""
        for hint in self.pending.take():
            process.publish(hint)
            if _sender is not None:
                _sender.put(hint)


def _last_commit(using: str) -> _Commit | None:
    """Django's last commit hook, if it is ours and drops with the same savepoints."""
    connection = transaction.get_connection(using)
    if connection.in_atomic_block and connection.run_on_commit:
        savepoints, function = connection.run_on_commit[-1][:2]
        last = getattr(function, "__self__", None)
        if isinstance(last, _Commit) and savepoints == set(connection.savepoint_ids):
            return last
    return None
