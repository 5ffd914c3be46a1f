"""``Filter``: query parameters that are Django lookups, with the types and limits that ``/docs`` shows.

It is an ordinary pydantic model. Its class says once what a client may ask for, and is checked against the
Django model when it is declared.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from django.db.models import Model
from django.db.models.constants import LOOKUP_SEP
from django.db.models.lookups import Regex
from pydantic import BaseModel, BeforeValidator, Field

from ..errors import InvalidFilter
from ..schemas.declaring import model_named
from .lookups import SORTABLE, ResolvedLookup, check_fits, resolve_lookup

LONGEST_SEARCH = 200  # characters
DEEPEST = 2**53  # rows that may be left out where nothing else is said: a number that each database takes

# How Django's admin writes lookups in `search_fields`.
_PREFIXES = {"^": "istartswith", "=": "iexact", "@": "search"}

OF_PAGES = ("search", "ordering", "limit", "offset", "after")  # parameters that are not lookups

_INHERITED: Any = object()  # as what the base has


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a filter's class says.

    Attributes:
        model: whose rows are selected.
        search: the lookup that each word of ``?search`` is looked for with, in each of its fields.
        ordering: the names that ``?ordering`` takes.
        limit: how many rows a page has without ``?limit``.
        max_limit: the largest ``?limit``.
        max_offset: the largest ``?offset``; None for any.
        lookups: the pydantic fields that are lookups.
        is_many: whether a lookup may join one row to several.
        has_transform: whether a lookup makes something of a column's value, as ``__date`` does.
        patterns: those of them that are regular expressions; "search" if its words are.
        joined: the models that any of the names joins.
        own_code: what in the lookups is not Django's; None if all is.
    """

    model: type[Model]
    search: tuple[str, ...] = ()
    ordering: tuple[str, ...] = ()
    limit: int = 50
    max_limit: int = 500
    max_offset: int | None = 100_000
    lookups: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    is_many: bool = False
    has_transform: bool = False
    joined: frozenset[type[Model]] = frozenset()
    own_code: str | None = None


class Filter(BaseModel):
    """Query parameters that select rows of a model.

    Name the model, and annotate Django lookups::

        class TopicFilter(Filter, model="bbs.Topic", search=("comment",), ordering=("created_at",)):
            author: int | None = None
            created_at__gte: datetime | None = None
            author__name__in: list[str] | None = None

        @app.get("/search/")
        async def search(topics: TopicRepo, where: Annotated[TopicFilter, Query()]):
            return topics.response(where)

    A lookup whose value is None is not applied. Declaring a filter sets Django up. A subclass inherits the
    lookups and the arguments.

    Args:
        model: a label such as ``"bbs.Topic"``, or the model class.
        search: fields in which each word of ``?search`` is looked for, ignoring case; or lookups, as
            ``"comment__istartswith"``; as ``search_fields`` of Django's admin.
        ordering: names that ``?ordering`` takes, ``-`` before one for descending.
        limit: how many rows a page has without ``?limit``.
        max_limit: the largest ``?limit``.
        max_offset: the largest ``?offset``, since the database reads all rows that a page leaves out; None
            for no limit.

    Raises:
        UnknownModel: no installed app has the model.
        UnknownField: a name begins with, or leads to, a field that is not there.
        UnknownLookup: a field has no such lookup.
        InvalidFilter: an annotation does not fit its lookup, or an argument cannot be used.
    """

    if TYPE_CHECKING:  # made for each class, with its own limits
        search: str | None
        ordering: list[str]
        limit: int
        offset: int
        after: str | None

    _declared: ClassVar[Declaration]

    def __init_subclass__(
        cls,
        *,
        model: str | type[Model] = _INHERITED,
        search: Sequence[str] = _INHERITED,
        ordering: Sequence[str] = _INHERITED,
        limit: int = _INHERITED,
        max_limit: int = _INHERITED,
        max_offset: int | None = _INHERITED,
        **kwargs: Any,
    ) -> None:
        super().__init_subclass__(**kwargs)
        name, base = cls.__qualname__, getattr(cls, "_declared", None)
        if model is not _INHERITED:
            base = replace(base or Declaration(Model), model=model_named(model, name))
        elif base is None:
            raise InvalidFilter(f'{name} names no model. Write class {name}(Filter, model="app.Model").')
        given = {
            "search": search,
            "ordering": ordering,
            "limit": limit,
            "max_limit": max_limit,
            "max_offset": max_offset,
        }
        cls._declared = replace(base, **{key: each for key, each in given.items() if each is not _INHERITED})
        _check_arguments(cls)
        # Before pydantic reads them.
        cls.__annotations__ = {**cls.__annotations__, **_of_pages(cls._declared)}

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Check the lookups, now that pydantic has read the annotations of the class and of its bases."""
        if not cls.__pydantic_complete__:
            cls.model_rebuild()  # which says what annotation cannot be read
        declared, name = cls._declared, cls.__qualname__
        names = [each for each in cls.model_fields if each not in OF_PAGES]
        lookups = {each: resolve_lookup(f"{name}.{each}", declared.model, each) for each in names}
        _check_annotations(cls, lookups)
        search = tuple(_searched(cls, each) for each in declared.search)
        words = [resolve_lookup(name, declared.model, each) for each in search]
        order = [_resolve_ordering(cls, each) for each in declared.ordering]
        patterns = [each for each, resolved in lookups.items() if issubclass(resolved.lookup, Regex)]
        if any(issubclass(each.lookup, Regex) for each in words):
            patterns.append("search")
        every = [*lookups.values(), *words, *order]
        cls._declared = replace(
            declared,
            search=search,
            lookups=tuple(names),
            patterns=tuple(patterns),
            is_many=any(each.is_many for each in every),
            has_transform=any(each.has_transform for each in every),
            joined=frozenset[type[Model]]().union(*(each.joined for each in every)),
            own_code=next((each.own_code for each in every if each.own_code is not None), None),
        )


def declaration_of(where: Filter | type[Filter]) -> Declaration:
    """What the class of a filter says."""
    return where._declared


def joined_models(model: type[Model], classes: Iterable[type[Any]]) -> frozenset[type[Model]]:
    """The models that those of these classes join which are filters of a model's rows."""
    declared = [declaration_of(each) for each in classes if issubclass(each, Filter)]
    joined = (each.joined for each in declared if issubclass(model, _concrete(each.model)))
    return frozenset[type[Model]]().union(*joined)


def check_filter(cls: Any, model: type[Model], label: str) -> None:
    """Refuse a filter of other rows than those of the repository with this label.

    Raises:
        InvalidFilter: it is one, or is not a filter's class.
    """
    if not (isinstance(cls, type) and issubclass(cls, Filter)):
        raise InvalidFilter(f"{label}: {cls!r} is not a filter. Write a class that extends Filter.")
    declared, name = cls._declared, cls.__qualname__
    if not issubclass(model, _concrete(declared.model)):
        raise InvalidFilter(
            f"{name} is a filter of {declared.model._meta.label}, and {label} has rows of "
            f"{model._meta.label}. Declare a filter of that model."
        )


def _concrete(model: type[Model]) -> type[Model]:
    return model._meta.concrete_model or model


def frozen_values(where: Filter) -> Hashable:
    """The values of a filter in a form that equals that of another one only if both ask the same.

    Raises:
        TypeError: a value cannot be hashed.
    """
    values = type(where), tuple(map(_frozen, where.__dict__.values()))
    hash(values)
    return values


def _frozen(value: Any) -> Hashable:
    kind = type(value)  # True is not 1, and 1 is not 1.0, in a database
    return kind, (tuple(map(_frozen, value)) if kind in (list, tuple, set, frozenset) else value)


def _check_arguments(cls: type[Filter]) -> None:
    declared, name = cls._declared, cls.__qualname__
    for argument in ("search", "ordering"):
        names = getattr(declared, argument)
        if isinstance(names, str):
            raise InvalidFilter(f"{name}: write {argument}=({names!r},), a tuple of names.")
    if type(declared.limit) is not int or not 1 <= declared.limit <= declared.max_limit:
        raise InvalidFilter(
            f"{name}: limit={declared.limit!r} is not a number from 1 to max_limit={declared.max_limit!r}."
        )
    if taken := [each for each in OF_PAGES if each in cls.__annotations__]:
        raise InvalidFilter(
            f"{name}.{taken[0]}: every filter has a parameter {taken[0]!r} already. If "
            f"{declared.model._meta.label} has a field of this name, write {taken[0]}__exact."
        )


def _of_pages(declared: Declaration) -> dict[str, Any]:
    """The annotations of a page's parameters."""
    names = [sign + name for name in declared.ordering for sign in ("", "-")]
    deepest = DEEPEST if declared.max_offset is None else declared.max_offset
    search = Annotated[
        str | None,
        Field(default=None, max_length=LONGEST_SEARCH, description="Words that a row must contain."),
    ]
    choice: Any = Literal[tuple(names)]
    ordering = Annotated[
        list[choice],
        BeforeValidator(_split),
        Field(
            default_factory=list,
            max_length=max(1, len(declared.ordering)),
            description="What to order by, most important first; with - before it, descending.",
        ),
    ]
    return {
        "search": search if declared.search else ClassVar[None],
        "ordering": ordering if names else ClassVar[None],
        "limit": Annotated[
            int,
            Field(
                default=declared.limit,
                ge=1,
                le=declared.max_limit,
                description="How many rows to give at most.",
            ),
        ],
        "offset": Annotated[
            int,
            Field(default=0, ge=0, le=deepest, description="How many rows to leave out."),
        ],
        "after": Annotated[
            str | None,
            Field(default=None, description="Give the rows after those of a page: the page's `next`."),
        ],
    }


def _split(given: Any) -> Any:
    """Take ``?ordering=a,b`` as ``?ordering=a&ordering=b``."""
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, list | tuple):
        return given
    return [part for each in given for part in (each.split(",") if isinstance(each, str) else [each])]


def _check_annotations(cls: type[Filter], lookups: dict[str, ResolvedLookup]) -> None:
    schema = cls.model_json_schema(by_alias=False)
    for name, resolved in lookups.items():
        owner = f"{cls.__qualname__}.{name}"
        check_fits(owner, resolved, schema["properties"][name], schema.get("$defs", {}))
        default = cls.model_fields[name].get_default(call_default_factory=True, validated_data={})
        if isinstance(default, list | tuple | set | frozenset) and not default:
            raise InvalidFilter(
                f"{owner}: no row is in an empty list. Let the default be None: no condition."
            )


def _searched(cls: type[Filter], name: str) -> str:
    """The lookup that a name in ``search`` means."""
    owner, model = f"{cls.__qualname__}, search", cls._declared.model
    if name[:1] in _PREFIXES:
        name = f"{name[1:]}{LOOKUP_SEP}{_PREFIXES[name[0]]}"
    resolved = resolve_lookup(owner, model, name)
    if resolved.lookup.lookup_name == "exact" and not name.endswith(f"{LOOKUP_SEP}exact"):
        name = f"{name}{LOOKUP_SEP}icontains"
        resolved = resolve_lookup(owner, model, name)
    check_fits(f"{owner}, {name!r}", resolved, {"type": "string"}, {})
    return name


def _resolve_ordering(cls: type[Filter], name: str) -> ResolvedLookup:
    owner, model = f"{cls.__qualname__}, ordering", cls._declared.model
    if name.startswith("-"):
        raise InvalidFilter(f"{owner}: write {name[1:]!r}, which allows both directions.")
    resolved = resolve_lookup(owner, model, name)
    if resolved.is_many:
        raise InvalidFilter(
            f"{owner}: {name!r} has several values for one row, which has one place in a list."
        )
    if resolved.has_transform or resolved.lookup.lookup_name != "exact":
        raise InvalidFilter(f"{owner}: {name!r} is not a field. Name fields, also of related models.")
    if resolved.field.get_internal_type() not in SORTABLE:
        raise InvalidFilter(
            f"{owner}: values of {name!r}, a {type(resolved.field).__qualname__}, have no order that all "
            "databases share."
        )
    return resolved
