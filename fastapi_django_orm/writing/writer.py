"""One write of a repository: a transaction in which Django validates and saves. On a database thread.

Signals, a custom ``save()``, ``auto_now``, defaults, inheritance and constraints work as in Django, since it
cleans and saves an instance for each row.
"""

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import ObjectDoesNotExist, ValidationError
from django.core.validators import ProhibitNullCharactersValidator
from django.db import connections, router
from django.db.models import Model
from django.utils.translation import gettext as _

from ..coherence.hints import Hint
from ..errors import NotFound, PreconditionFailed
from ..reading.encoding import tag_of
from ..reading.keys import AnyQuerySet
from ..reading.live import LiveReads
from .constraints import mark_conflicts
from .files import StoredFiles, transaction_with_files
from .values import Values

# Tags without their coding. One that a proxy has made weak, since it compresses, still names these bytes.
# https://www.rfc-editor.org/rfc/rfc9110#name-if-match
_TAG = re.compile(r'"([^"]*?)(?:-(?:br|zstd|gzip))?"')

Work = Callable[[type[Model], str, StoredFiles], Sequence[Hashable] | None]


@dataclass(frozen=True, slots=True)
class Change:
    """A write that has succeeded, in its transaction.

    Attributes:
        alias: the database.
        model: whose rows were written.
        keys: of the rows; None: any row of the model may have changed.
        is_joined: whether a transaction around it has yet to commit.
        is_read_elsewhere: whether reads go to another database, which may have the row later.
    """

    alias: str
    model: type[Model]
    keys: Sequence[Hashable] | None
    is_joined: bool
    is_read_elsewhere: bool

    @property
    def hint(self) -> Hint:
        """The hint of it."""
        concrete: Any = self.model._meta.concrete_model
        return Hint(concrete._meta.label, None if self.keys is None else tuple(self.keys))


class Writer:
    """Writes one repository's rows."""

    def __init__(
        self, queryset: Callable[[], AnyQuerySet], live: LiveReads, *, name: str, label: str
    ) -> None:
        """Write what ``queryset`` reads; messages call the repository by its name, or by its label."""
        self._queryset = queryset
        self._live = live
        self._name = name
        self._label = label

    async def run(self, work: Work) -> Change:
        """Run work in a transaction that may join another.

        Args:
            work: gets the model, the database's alias, and what takes note of the files that are stored.
        """
        return await self._live.run(self._in_transaction, work)

    def _in_transaction(self, work: Work) -> Change:
        queryset: Any = self._queryset().all()
        read_from, queryset._for_write = queryset.db, True
        alias, model = queryset.db, queryset.model
        is_joined = connections[alias].in_atomic_block
        with transaction_with_files(alias) as files:
            keys = work(model, alias, files)
        return Change(alias, model, keys, is_joined, read_from != alias)

    # What to run

    def insert(self, items: Sequence[Mapping[str, Any]], *, where: str) -> Work:
        """Insert a row for each item, all or none. Of several, an error has the ``position`` of its item."""

        def work(model: type[Model], alias: str, files: StoredFiles) -> Sequence[Hashable]:
            keys = []
            for position, item in enumerate(items):
                values = Values.of(model, f"{self._label}.{where}()", item)
                try:
                    keys.append(self._insert(model, alias, values, files))
                except ValidationError as error:
                    if where == "create_many":
                        error.position = position  # type: ignore[attr-defined]
                    raise
            return keys

        return work

    def _insert(self, model: type[Model], alias: str, values: Values, files: StoredFiles) -> Hashable:
        instance = model(**values.of_row)
        instance._state.db = alias  # in which relations are looked up
        _clean(instance, values, alias)
        files.watch(instance)
        instance.save(force_insert=True, using=alias)  # as Model.objects.create() does
        _relate(instance, values)
        key: Hashable = instance.pk
        return key

    def update(self, pk: Any, named: Mapping[str, Any], if_match: str | None) -> Work:
        """Change the row with this key."""

        def work(model: type[Model], alias: str, files: StoredFiles) -> Sequence[Hashable]:
            values = Values.of(model, f"{self._label}.update()", named)
            instance = self._locked(model, alias, pk, if_match)
            keys = _keys(instance)
            files.watch(instance)
            for name, value in values.of_row.items():
                setattr(instance, name, value)
            if changed := [name for name, key in _keys(instance).items() if key != keys[name]]:
                # save() would write another row.
                message = ValidationError(_("The key of a row cannot be changed."), code="immutable")
                raise ValidationError(dict.fromkeys(changed, message))
            _clean(instance, values, alias)
            files.watch(instance)
            to: Any = _to(instance, alias)
            instance.save(**to)
            _relate(instance, values)
            return [instance.pk]

        return work

    def delete(self, pk: Any, if_match: str | None) -> Work:
        """Delete the row with this key, and what Django deletes with it."""

        def work(model: type[Model], alias: str, files: StoredFiles) -> Sequence[Hashable] | None:
            instance = self._locked(model, alias, pk, if_match)
            to: Any = _to(instance, alias)
            key, deleted = instance.pk, instance.delete(**to)
            return None if _reaches_others(model, deleted) else [key]

        return work

    def _locked(self, model: type[Model], alias: str, pk: Any, if_match: str | None) -> Model:
        """Return the row with this key, which no other transaction can change now.

        Raises:
            NotFound: there is none, or none in ``queryset()``.
            PreconditionFailed: the row is another than the one that ``if_match`` names.
        """
        key = self._live.key(pk)
        connection, rows = connections[alias], model._base_manager.using(alias)
        if connection.features.has_select_for_update:
            rows = rows.select_for_update()
        else:
            _lock_sqlite(connection, model)
        try:
            instance = rows.get(pk=key)  # which drops an ordering, whose joins could not be locked
        except ObjectDoesNotExist:
            raise NotFound.of(self._name, pk) from None
        if (found := self._live.read_here(key, alias)) is None:
            raise NotFound.of(self._name, pk)
        if if_match is not None and if_match.strip() != "*":
            if isinstance(found, Exception):
                raise found
            if tag_of(found.json).decode() not in (_TAG.findall(if_match) or [if_match.strip()]):
                raise PreconditionFailed(
                    f"The row of {self._name} has changed since you read it. Read it again, then repeat."
                )
        return instance


def _lock_sqlite(connection: Any, model: type[Model]) -> None:
    """Begin to write, before the row is read: SQLite has one lock, for the whole database.

    A transaction that reads first, and writes when another has written, is refused by SQLite.
    """
    concrete: Any = model._meta.concrete_model  # a proxy has no columns of its own
    columns = [each.column for each in concrete._meta.local_concrete_fields if not each.generated]
    table, column = map(connection.ops.quote_name, (concrete._meta.db_table, columns[0]))
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE {table} SET {column} = {column} WHERE 1 = 0")


def _clean(instance: Model, values: Values, alias: str) -> None:
    """Validate a row and the keys that it is related to, with the errors of both.

    Raises:
        ValidationError: as Django's ``full_clean()``.
    """
    _check_texts(values, alias)
    errors: dict[str, Any] = {}
    try:
        instance.full_clean(exclude=_left_empty(instance, values))
    except ValidationError as error:
        mark_conflicts(error, instance)
        errors = error.update_error_dict(errors)
    for name, unknown in values.check_keys(type(instance), alias).items():
        errors.setdefault(name, []).extend(unknown.error_list)
    if errors:
        raise ValidationError(errors)


def _check_texts(values: Values, alias: str) -> None:
    """Refuse texts that the database cannot store, before they are part of a query.

    Django's forms refuse them, and its models do not.
    """
    if not connections[alias].features.prohibits_null_characters_in_text_exception:
        return
    refuse, errors = ProhibitNullCharactersValidator(), {}
    for name, value in values.of_row.items():
        try:
            refuse(value)
        except ValidationError as error:
            errors[name] = error
    if errors:
        raise ValidationError(errors)


def _left_empty(instance: Model, values: Values) -> set[str]:
    """Fields whose empty value is no mistake: null where the column allows it, the default, what is there.

    ``blank=False`` is meant for what a form sends, where an empty text stands for all of them. Django's own
    ``create()`` takes them as well.
    """
    return {each.name for each in instance._meta.fields if _may_be_empty(each, instance, values)}


def _may_be_empty(field: Any, instance: Model, values: Values) -> bool:
    if field.generated:  # has no value before the row is saved, and Django does not validate it
        return False
    value = getattr(instance, field.attname)
    if value not in field.empty_values:
        return False
    is_given = bool(values.of_row.keys() & {field.name, field.attname})
    if field.null and (value is None or not is_given):
        return True
    is_default = field.has_default() and value == field.get_default()
    return is_default or not (is_given or instance._state.adding)


def _to(instance: Model, alias: str) -> dict[str, str]:
    """Where to write, if a router would not choose the database that ``queryset()`` has."""
    chosen = router.db_for_write(type(instance), instance=instance)
    return {} if chosen == alias else {"using": alias}  # which some methods of projects do not take


def _relate(instance: Model, values: Values) -> None:
    for name, keys in values.many.items():
        getattr(instance, name).set(keys)


def _keys(instance: Model) -> dict[str, Any]:
    """What identifies a row, and its rows in parents' tables."""
    meta: Any = instance._meta
    fields = [each for each in meta.concrete_fields if each.primary_key or each in meta.pk_fields]
    return {each.name: each.to_python(getattr(instance, each.attname)) for each in fields}


def _reaches_others(model: type[Model], deleted: Any) -> bool:
    """Whether more rows of the model may have gone or changed: by a cascade, by a relation to itself."""
    labels = {each._meta.label for each in (model._meta.concrete_model, model) if each is not None}
    if not isinstance(deleted, tuple) or any(deleted[1].get(label, 0) > 1 for label in labels):
        return True
    return any(
        each.related_model in (model, model._meta.concrete_model) for each in model._meta.related_objects
    )
