"""The exceptions that reach an application: ``from fastapi_django_orm.errors import NotFound``.

Each one is also an exception that callers catch already: ``LookupError``, ``TimeoutError``, Django's
``ImproperlyConfigured``. Those that can end a request are Starlette ``HTTPException``s too. So a handler need
not catch them: the client gets the status, unless the application has an exception handler for the class.
"""

from collections.abc import Hashable, Iterable
from difflib import get_close_matches
from traceback import extract_tb
from typing import Any, Self

from django.core.exceptions import FieldError, ImproperlyConfigured, ValidationError
from django.db import DatabaseError, DataError, IntegrityError, OperationalError
from django.db.transaction import TransactionManagementError
from starlette.exceptions import HTTPException


class DjangoORMError(Exception):
    """The base of every exception of this package."""


class ConfigurationError(DjangoORMError, ImproperlyConfigured):
    """Something is written wrong, and stays wrong until it is edited."""


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


class AsyncioNeeded(ConfigurationError):
    """The application runs on an event loop that is not asyncio's."""


class InvalidHandler(ConfigurationError):
    """A handler asks for what it would not get."""


class ModelsNotReady(ConfigurationError):
    """A class that needs a model is declared while Django imports the models."""


class InvalidSchema(ConfigurationError):
    """A ``ModelSchema`` declares something that its model does not have or that cannot be a field."""


class InvalidRepository(ConfigurationError):
    """A repository class declares something that cannot be served."""


class UnknownModel(InvalidRepository, LookupError):
    """A repository, schema or filter names a model that no installed app has."""


class InvalidFilter(ConfigurationError):
    """A ``Filter`` declares something that its model's lookups do not take."""


class UnknownLookup(InvalidFilter, FieldError):
    """A ``Filter`` names a lookup that the field does not have."""


class UnknownField(InvalidRepository, FieldError):
    """A repository, schema or filter names a field that its rows do not have."""


class FieldsNotNamed(InvalidRepository):
    """A repository would serve what is not named: a secret, or to everybody every column there will be."""


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
    """A row was read that the schema refuses or that JSON cannot carry.

    The message is logged, so it has no value of the row: it names the repository, the column and the kind of
    the value. A key stands in it only if it is a number; a text may be an address or a secret.

    Attributes:
        repository: the name of the repository that was read.
        key: the row's primary key, where it is known.
    """

    def __init__(self, message: str, *, key: Hashable = None) -> None:
        super().__init__(message)
        self.repository: str | None = None
        self.key = key

    def __str__(self) -> str:
        message = super().__str__()
        return message if self.repository is None else f"{self.repository}: {message}"


class LazyValue(DjangoORMError, TypeError):
    """A query, a model instance or a relation was about to leave the database threads.

    Each of them may run a query when it is touched, and on the event loop Django refuses that.
    """


class LazyAnswer(DjangoORMError, TypeError):
    """A handler returns what cannot be sent.

    That is a model instance or a query where FastAPI is not told which fields to send; or a snapshot, a
    method, a class or a nested response, of which FastAPI would send whatever attributes they have.
    """


class NotStarted(DjangoORMError, RuntimeError):
    """The ORM or a repository is used outside of a lifespan of ``DjangoORM``."""


class TransactionLeftOpen(DjangoORMError, TransactionManagementError):
    """A call has ended and its transaction has not; it was rolled back."""


class _Unavailable(DjangoORMError, HTTPException):
    """Ends a request with 503."""

    def __init__(self, message: str) -> None:
        HTTPException.__init__(self, 503, message, {"Retry-After": "1"})


class DatabaseBusy(_Unavailable, TimeoutError):
    """No thread or connection became available in time. Ends a request with 503."""


class NotFound(DjangoORMError, HTTPException, LookupError):
    """No row has this key. Ends a request with 404."""

    def __init__(self, message: str) -> None:
        HTTPException.__init__(self, 404, message)

    @classmethod
    def of(cls, name: str, key: object) -> Self:
        """The error of a repository with this name, and of this key."""
        return cls(f"{name} has no row with the key {key!r}.")


class InvalidKey(NotFound, ValueError):
    """No row can have this key: the model's field does not accept it. Ends a request with 404."""


class PreconditionFailed(DjangoORMError, HTTPException):
    """The row in the database is another than the one that ``If-Match`` names. Ends a request with 412."""

    def __init__(self, message: str) -> None:
        HTTPException.__init__(self, 412, message)


class InvalidWindow(DjangoORMError, HTTPException, ValueError):
    """``offset`` or ``limit`` select no part of a list. Ends a request with 422."""

    def __init__(self, message: str) -> None:
        HTTPException.__init__(self, 422, message)


class InvalidParameter(DjangoORMError, HTTPException, ValueError):
    """A filter's value cannot be used: a cursor of another list, say. Ends a request with 422."""

    def __init__(self, name: str | None, message: str) -> None:
        """Describe it as FastAPI does. The name is the parameter's, if one is to blame."""
        loc = ["query"] if name is None else ["query", name]
        detail: Any = [{"type": "value_error", "loc": loc, "msg": message}]
        HTTPException.__init__(self, 422, detail)


class NotLoaded(_Unavailable, RuntimeError):
    """The repository has no data yet: its first load has not succeeded. Ends a request with 503."""

    @classmethod
    def of(cls, name: str) -> Self:
        """The error of a repository with this name."""
        return cls(f"{name} has not been loaded yet.")


class RefreshFailed(_Unavailable, RuntimeError):
    """A load failed; ``__cause__`` says how. What was loaded before is still served. 503."""


class ReadFailed(_Unavailable, RuntimeError):
    """What is published live could not be read; ``__cause__`` says why. Ends a request with 503."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name: a guess, or ten of the names that there are."""
    names = sorted({*known})
    folded = {known_as.casefold(): known_as for known_as in names}
    if close := get_close_matches(name.casefold(), folded, n=3):
        return "Did you mean " + " or ".join(repr(folded[found]) for found in close) + "?"
    if not names:
        return "There is none."
    return "There is: " + ", ".join(names[:10]) + (", …" if len(names) > 10 else ".")


# Of these the text may quote what was read: a value that is no number, a key that is there twice.
_QUOTING = (DataError, IntegrityError, ValidationError, ValueError, TypeError, LookupError)


def may_quote(error: BaseException) -> bool:
    """Whether the text of an error may have values of rows in it, which a log must not get."""
    return isinstance(error, _QUOTING) and not isinstance(error, DjangoORMError)


def text_of(error: BaseException) -> str:
    """What an error says; the name of its class if its text cannot be made."""
    try:
        return str(error).strip()
    except Exception:  # of an error of the application's own
        return type(error).__name__


def without_values(error: BaseException) -> str:
    """What a log may say of an error: its text, or where it was raised if the text may quote a row."""
    if not may_quote(error):
        # PostgreSQL quotes rows in the lines that follow.
        return text_of(error).partition("\nDETAIL:")[0].partition("\nCONTEXT:")[0]
    places = [f"{place.filename}:{place.lineno} in {place.name}" for place in extract_tb(error.__traceback__)]
    raised = f", raised at {places[-1]}" if places else ""
    return f"{type(error).__name__}{raised} (its text is left out: it may quote a row)"
