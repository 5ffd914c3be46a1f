"""What Django's ORM writes in this process, told when it is committed.

A receiver of ``post_delete`` makes Django fetch the rows that it deletes, of any model, so one is connected
only while there is somebody to tell.
"""

from collections.abc import Collection
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.db.models import Model
from django.db.models.signals import m2m_changed, post_delete, post_save

from ..coherence import choice, process
from ..coherence.hints import Hint
from ..coherence.transport import Publisher
from ..events import django_logger as logger
from ..settings import read_settings
from .outbox import Outbox
from .tables import announced
from .waiting import Waiting

_outbox: Outbox | None = None
_UID = "fastapi_django_orm"


def connect() -> None:
    """Connect the signals, for as long as the process lives."""
    global _outbox
    if _outbox is None and _publishers():
        _outbox = Outbox(_publishers)
    post_save.connect(_saved, dispatch_uid=_UID)
    m2m_changed.connect(_related, dispatch_uid=_UID)
    if _outbox is not None:
        _hear_of_deletes(True)
    else:
        process.on_change.append(_hear_of_deletes)


def _hear_of_deletes(wanted: bool) -> None:
    if wanted:
        post_delete.connect(_deleted, dispatch_uid=_UID)
    else:
        post_delete.disconnect(dispatch_uid=_UID)


def _publishers() -> list[Publisher]:
    """The publishers that the settings name.

    ``connect()`` calls this before any writer does, since it imports client libraries, and a process that
    forks while a thread imports leaves half a module to its child.
    """
    try:
        return choice.publishers(read_settings())
    except ImproperlyConfigured as error:
        logger.error("FastAPI's workers cannot be told of writes: %s", error)
        return []


def _saved(sender: type[Model], instance: Model, using: str, **kwargs: Any) -> None:
    _announce(sender, [instance.pk], using)


def _deleted(sender: type[Model], instance: Model, using: str, **kwargs: Any) -> None:
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
    """Tell of these rows when the open transaction is committed; None: of all rows."""
    commit = _commit(using)
    for label, keyed in announced(model):
        commit.waiting.add(Hint(label, tuple(keys) if keyed and keys is not None else None))
    if not commit.is_registered:
        commit.is_registered = True
        _on_commit(commit, using)


def _on_commit(commit: "_Commit", using: str) -> None:
    try:
        transaction.on_commit(commit.tell, using=using, robust=True)
    except transaction.TransactionManagementError:
        # Autocommit is off without atomic(): nobody will tell of the commit, and the write must not fail.
        commit.tell()


class _Commit:
    """What a transaction, or one of its savepoints, has to tell."""

    def __init__(self) -> None:
        self.waiting = Waiting()
        self.is_registered = False

    def tell(self) -> None:
        """Publish the hints. Django calls this after the commit."""
        for hint in self.waiting.take():
            process.publish(hint)
            if _outbox is not None:
                _outbox.put(hint)


def _commit(using: str) -> _Commit:
    """Django's last commit hook, if it is ours and drops with the same savepoints; else a new one."""
    connection = transaction.get_connection(using)
    if connection.in_atomic_block and connection.run_on_commit:
        savepoints, function = connection.run_on_commit[-1][:2]
        last = getattr(function, "__self__", None)
        if isinstance(last, _Commit) and savepoints == set(connection.savepoint_ids):
            return last
    return _Commit()
