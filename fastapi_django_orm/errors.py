"""The exceptions that reach an application: what went wrong, and what to do next.

Each one is also an exception that callers catch already: ``LookupError``, ``TimeoutError``, Django's
``ImproperlyConfigured``. Those that can end a request are Starlette ``HTTPException``s too, so that a
handler may let them pass: the client gets the status, an application's own exception handler for the
class (or for ``HTTPException``) goes first, and mounted sub-applications behave alike.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Self

from django.core.exceptions import FieldError, ImproperlyConfigured
from django.db import DatabaseError, OperationalError
from django.db.transaction import TransactionManagementError
from starlette.exceptions import HTTPException


class DjangoORMError(Exception):
    """The base of every exception of this package."""


class ConfigurationError(DjangoORMError, ImproperlyConfigured):
    """Something that is written wrong and stays wrong until somebody edits it."""


class InvalidSettings(ConfigurationError):
    """A ``DJANGO_ORM_…`` variable has a value that cannot be used."""


class SettingsModuleMissing(ConfigurationError):
    """No Django settings module is named, or the named one does not exist."""


class SettingsModuleBroken(ConfigurationError):
    """The Django settings module exists, and importing it raises."""


class SetupFailed(ConfigurationError):
    """The settings are fine, and ``django.setup()`` raises: an app, a model or a ``ready()``."""


class UnknownFastAPI(ConfigurationError):
    """The installed FastAPI lacks what this package needs of it."""


class InvalidHandler(ConfigurationError):
    """A handler asks for what it would not get."""


class InvalidRepository(ConfigurationError):
    """A repository class declares something that cannot be served."""


class UnknownModel(InvalidRepository, LookupError):
    """A repository's ``model`` is the label of no model."""


class UnknownField(InvalidRepository, FieldError):
    """A repository names a field that its rows do not have."""


class FieldsNotNamed(InvalidRepository):
    """A repository would serve every column of a model that stores passwords."""


class NotIndexed(InvalidRepository, LookupError):
    """Rows were asked for by what they are not indexed by.

    By ``find()``: no field is in ``indexes``. By ``get()`` or ``response()``: the rows have no primary key.
    """


class NotUnique(DjangoORMError, LookupError):
    """``fetch()`` was asked for a row by a field whose values several rows may share."""


class PrivateDatabase(ConfigurationError):
    """A database of which each connection would have one of its own."""


class DatabaseUnreachable(DjangoORMError, OperationalError):
    """A database that the application needs does not answer."""


class TableMissing(DjangoORMError, DatabaseError):
    """The database answers, and the model's table is not there."""


class ColumnMissing(DjangoORMError, DatabaseError):
    """The model's table is there, and lacks a column that the model has."""


class InvalidRow(DjangoORMError, ValueError):
    """A row was read that the schema refuses or that JSON cannot carry."""


class LazyValue(DjangoORMError, TypeError):
    """A query, a model instance or a relation was about to leave the database threads.

    Each of them may run a query when it is touched, and on the event loop Django refuses that.
    """


class LazyAnswer(DjangoORMError, TypeError):
    """A handler returns a model instance or a query, and FastAPI is not told which fields to send."""


class NotStarted(DjangoORMError, RuntimeError):
    """A repository is used where no lifespan of ``DjangoORM`` runs."""


class TransactionLeftOpen(DjangoORMError, TransactionManagementError):
    """A call has ended and its transaction has not; it was rolled back."""


class DatabaseBusy(DjangoORMError, HTTPException, TimeoutError):
    """No thread or connection came free in time. Ends a request with 503."""

    def __init__(self, message: str) -> None:
        HTTPException.__init__(self, 503, message, {"Retry-After": "1"})


class NotFound(DjangoORMError, HTTPException, LookupError):
    """No row has this key. Ends a request with 404."""

    def __init__(self, message: str) -> None:
        HTTPException.__init__(self, 404, message)

    @classmethod
    def of(cls, name: str, key: object) -> Self:
        """The error of a repository with this name, and of this key."""
        return cls(f"{name} has no row with the key {key!r}.")


class NotLoaded(DjangoORMError, HTTPException, RuntimeError):
    """The repository has no data yet: its first load has not succeeded. Ends a request with 503."""

    def __init__(self, message: str) -> None:
        HTTPException.__init__(self, 503, message, {"Retry-After": "1"})

    @classmethod
    def of(cls, name: str) -> Self:
        """The error of a repository with this name."""
        return cls(f"{name} has not been loaded yet.")


class RefreshFailed(DjangoORMError, HTTPException, RuntimeError):
    """A load failed; ``__cause__`` says how. What was loaded before is still served. 503."""

    def __init__(self, message: str) -> None:
        HTTPException.__init__(self, 503, message, {"Retry-After": "1"})


class ReadFailed(DjangoORMError, HTTPException, RuntimeError):
    """What is published live could not be read; ``__cause__`` says why. Ends a request with 503."""

    def __init__(self, message: str) -> None:
        HTTPException.__init__(self, 503, message, {"Retry-After": "1"})


def nearest(name: str, known: Iterable[str], *, most: int = 10) -> str:
    """The end of an error message about an unknown name: a guess, or the names there are.

    Args:
        name: what was written.
        known: what could have been written.
        most: how many names to list when none is close.
    """
    names = sorted(known)
    folded = {known_as.casefold(): known_as for known_as in names}
    if close := get_close_matches(name.casefold(), folded, n=3):
        return "Did you mean " + " or ".join(repr(folded[found]) for found in close) + "?"
    if not names:
        return "There is none."
    return "There is: " + ", ".join(names[:most]) + (", …" if len(names) > most else ".")
