"""Files that a write has stored, which are deleted if it is rolled back: storages have no transactions."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connections, transaction
from django.db.models import FileField, Model

from ..database.atomic import undo_after_rollback
from ..events import logger


class StoredFiles:
    """The files that instances store when they are saved."""

    def __init__(self) -> None:
        self._instances: dict[int, Model] = {}  # by identity
        self._before: set[tuple[str, str]] = set()

    def watch(self, instance: Model) -> None:
        """Take note of an instance that is about to be saved, and of the files that it has already."""
        if any(isinstance(each, FileField) for each in instance._meta.fields):
            self._instances[id(instance)] = instance
            self._before |= {(field, file.name) for field, file in _stored(instance)}

    def delete(self) -> None:
        """Delete the files that have been stored since."""
        for instance in self._instances.values():
            for field, file in _stored(instance):
                if (field, file.name) not in self._before:
                    _delete(file)


def _stored(instance: Model) -> Iterator[tuple[str, Any]]:
    for field in instance._meta.fields:
        if isinstance(field, FileField):
            file = getattr(instance, field.attname)
            if file and file._committed:
                yield field.name, file


def _delete(file: Any) -> None:
    try:
        file.storage.delete(file.name)
    except Exception as error:
        logger.warning("file_not_deleted", name=file.name, error=repr(error))


@contextmanager
def transaction_with_files(alias: str) -> Iterator[StoredFiles]:
    """Be in a transaction, or in a savepoint of one, and delete what was stored if it is rolled back.

    What it has joined may be rolled back later: ``atomic()`` deletes the files then.
    """
    files, has_run, is_joined = StoredFiles(), False, connections[alias].in_atomic_block
    try:
        with transaction.atomic(using=alias):
            yield files
            has_run = True
    except BaseException:
        # Whether a COMMIT that fails was carried out is not known, and what fails after one was.
        if not has_run:
            files.delete()
        raise
    if is_joined:
        undo_after_rollback(files.delete, alias)
