"""Who may take whose rows: workers that would read the same of the same database, with the same code.

Everything that decides what a load gives is made into one fingerprint, under which rows are shared. Where
two workers differ, as they do while a release is rolled out, each finds only its own kind. What goes into
it may be too much, which costs a load, and must not be too little, which would serve other rows.
"""

import inspect
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import django
from django.conf import settings
from django.db import connections
from django.db.models.query import ValuesIterable

from ..reading.declaration import Declared
from ..reading.key_columns import AnyQuerySet
from .format import FORMAT

PACKAGES = ("fastapi-django-orm", "pydantic-core")
_NOT_THE_DATABASE = ("PASSWORD", "TEST")  # the first may be changed while workers run


def secret() -> bytes:
    """What the workers of one deployment know and others do not, made of Django's ``SECRET_KEY``."""
    return blake2b(str(settings.SECRET_KEY).encode(), digest_size=32, person=b"shared snapshot").digest()


class Identity:
    """What a repository's rows are called among all that share a server."""

    def __init__(self, repository: Declared, names: Sequence[str]) -> None:
        """Take in what stays as long as this process runs.

        Args:
            repository: an instance of its class.
            names: its rows' fields.
        """
        model = repository.model_class
        fields = {type(field) for field in model._meta.get_fields()}
        classes = [*type(repository).__mro__, *model.__mro__, *sorted(fields, key=str)]
        self._names = tuple(names)
        self._fixed = repr(
            [
                FORMAT,
                sys.byteorder,
                sys.version_info[:2],
                django.VERSION,
                [_version(package) for package in PACKAGES],
                (settings.USE_TZ, settings.TIME_ZONE),
                (type(repository).__module__, repository.label, repository.name, self._names),
                list(_sources(classes)),
            ]
        )

    def of(self, queryset: AnyQuerySet) -> str:
        """The fingerprint for what this query reads.

        Args:
            queryset: the repository's, whose parameters may be others at each load.

        Raises:
            EmptyResultSet: it can have no rows.
        """
        model_rows = not issubclass(queryset._iterable_class, ValuesIterable)
        query = (queryset.values_list(*self._names, "pk") if model_rows else queryset).query
        statement, params = query.get_compiler(queryset.db).as_sql()
        database = connections.settings[queryset.db]
        where = sorted(
            (name, repr(value)) for name, value in database.items() if name not in _NOT_THE_DATABASE
        )
        what = repr([self._fixed, where, type(queryset), statement, [(type(one), one) for one in params]])
        return blake2b(what.encode(errors="backslashreplace"), digest_size=16, key=secret()).hexdigest()


def _version(package: str) -> str:
    with suppress(PackageNotFoundError):
        return version(package)
    return ""


def _sources(classes: Sequence[type[Any]]) -> Iterator[tuple[str, str, bytes]]:
    """The project's own code among these: a field may make something else of a column in the next release."""
    for cls in classes:
        content = b""
        if not cls.__module__.startswith(("builtins", "typing", "django.", "fastapi_django_orm.")):
            with suppress(TypeError, OSError):  # made in a shell
                content = blake2b(Path(inspect.getfile(cls)).read_bytes(), digest_size=16).digest()
        yield cls.__module__, cls.__qualname__, content
