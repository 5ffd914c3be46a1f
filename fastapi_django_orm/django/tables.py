"""Which models to announce when a table changes, and which tables a model is read from.

A model that inherits from another has its row in two tables, and several models may share one. A hint names a
model, so a write to a table announces every model that has something in it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from django.apps import apps
from django.db.models import Model

# Keys of these types look the same in JSON, whatever writes them, and `to_python` gives the key back. Others
# have several forms (a decimal's zeros, a moment's time zone, an address's mask) or none.
PLAIN_KEYS = frozenset(
    {"AutoField", "BigAutoField", "SmallAutoField"}
    | {"IntegerField", "BigIntegerField", "SmallIntegerField"}
    | {"PositiveIntegerField", "PositiveBigIntegerField", "PositiveSmallIntegerField"}
    | {"CharField", "SlugField", "TextField", "UUIDField"}
)


@dataclass(frozen=True)
class AnnouncedTable:
    """A model's own table, and what to announce when it changes.

    Attributes:
        model: the model that Django makes the table for.
        keyed: the labels of the models whose rows have the table's primary key.
        unkeyed: the labels of the other models with something in this table: all their rows may have changed.
    """

    model: type[Model]
    keyed: tuple[str, ...]
    unkeyed: tuple[str, ...]

    @property
    def label(self) -> str:
        """The model's label."""
        return self.model._meta.label

    @property
    def key(self) -> str:
        """The column of the primary key."""
        return str(self.model._meta.pk.column)


def table_of(model: type[Model]) -> AnnouncedTable:
    """What to announce when this model's own table changes."""
    own = _concrete(model)
    sharing = _by_table(tuple(apps.get_models(include_auto_created=True))).get(own._meta.db_table, ())
    concerned = dict.fromkeys([*lineage(own), *sharing])  # parents have their part of a row elsewhere
    keyed = [each for each in concerned if _has_plain_key(own) and _shares_key(own, each)]
    return AnnouncedTable(
        own,
        tuple(each._meta.label for each in keyed),
        tuple(each._meta.label for each in concerned if each not in keyed),
    )


def tables_of(models: Iterable[type[Model]]) -> list[AnnouncedTable]:
    """The tables that the rows of these models are read from, parents' included, each once."""
    found: dict[str, AnnouncedTable] = {}
    for model in models:
        for part in lineage(model):
            if part._meta.db_table not in found:
                found[part._meta.db_table] = table_of(part)
    return list(found.values())


def lineage(model: type[Model]) -> list[type[Model]]:
    """The models with a table that a row of this model lies in: its own, and its parents'."""
    own = _concrete(model)
    return list(dict.fromkeys([own, *(_concrete(parent) for parent in own._meta.get_parent_list())]))


@cache
def announced(model: type[Model]) -> tuple[tuple[str, bool], ...]:
    """What to announce when a row of this model was written, in all its tables.

    Returns:
        The labels, and whether a row of that model has the same primary key.
    """
    found: dict[str, bool] = {}
    own = _concrete(model)
    for part in lineage(own):
        table = table_of(part)
        same = part is own or _shares_key(own, part)
        for label in table.keyed + table.unkeyed:
            found[label] = found.get(label, True) and same and label in table.keyed
    return tuple(found.items())


def _concrete(model: type[Model]) -> type[Model]:
    return model._meta.concrete_model or model


@lru_cache(maxsize=1)
def _by_table(models: tuple[type[Model], ...]) -> dict[str, list[type[Model]]]:
    """The models with something in each table. To ask every model for each table costs their square."""
    found: dict[str, list[type[Model]]] = {}
    for model in models:
        if not model._meta.proxy:
            for table in dict.fromkeys(part._meta.db_table for part in lineage(model)):
                found.setdefault(table, []).append(model)
    return found


def _has_plain_key(model: type[Model]) -> bool:
    field: Any = model._meta.pk
    while field.remote_field is not None:
        field = field.target_field
    converted = hasattr(field, "from_db_value")  # what the column holds is not what Python sees
    return field.column is not None and not converted and field.get_internal_type() in PLAIN_KEYS


def _shares_key(own: type[Model], other: type[Model]) -> bool:
    """Whether the same row has the same primary key in both."""
    if other._meta.db_table == own._meta.db_table:
        return bool(other._meta.pk.column == own._meta.pk.column)
    child, parent = (other, own) if own in other._meta.get_parent_list() else (own, other)
    link: Any = child._meta.pk
    while link.remote_field is not None and link.remote_field.parent_link:
        if link.related_model is parent:
            return True
        link = link.related_model._meta.pk
    return False
