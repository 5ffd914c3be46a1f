"""``ModelSchema``: a pydantic model whose fields are a Django model's.

It is an ordinary pydantic model in every use, since nothing remains to be done once the class is made. First,
``__init_subclass__`` adds annotations for the fields that the class names, before pydantic collects them.
Then ``__pydantic_init_subclass__`` completes the fields that the class annotates itself: only now are their
annotations evaluated.
"""

import inspect
import sys
from collections.abc import Collection
from typing import Any, ClassVar, Literal

from django.db.models import Model
from pydantic import BaseModel, ConfigDict, model_validator

from ..errors import FieldsNotNamed, InvalidSchema, UnknownField, nearest
from .completing import KEYS_OF_RELATIONS, complete_fields, is_parametrized, relation_with_key, with_keys
from .declaring import model_named
from .definition import define
from .merging import make_optional, new_field
from .relations import field_of_attribute, has_values
from .secrets import is_secret

Names = Collection[str] | Literal["__all__"]


class ModelSchema(BaseModel):
    """A pydantic model of a Django model.

    ::

        class TopicOut(ModelSchema, model="bbs.Topic", fields=("id", "comment")):
            author: AuthorOut

        class TopicPatch(TopicIn, partial=True): ...

    Declaring one sets Django up, as ``DjangoORM.setup()`` does.

    Class arguments:
        model: a label, or the model class. A subclass has its base's.
        fields: the names of model fields, or ``"__all__"``. A foreign key's name (``author``) is the key;
            that of a many-to-many relation is the list of keys.
        exclude: names of model fields; all others are taken.
        partial: whether every field may be left out. It is None then, and not in ``model_fields_set``.

    What the class annotates itself is a field as well, and gets from the model what the annotation leaves
    open: limits, default, documentation.

    Raises:
        UnknownModel, UnknownField: the model, or a field of it, does not exist.
        FieldsNotNamed: ``"__all__"`` or ``exclude`` would take a secret.
        InvalidSchema: a field cannot be taken as it is; the message says what to write.
        ModelsNotReady: Django is still importing the models.
    """

    model_config = ConfigDict(
        from_attributes=True, validate_by_name=True, json_schema_serialization_defaults_required=True
    )

    __django_model__: ClassVar[type[Model]]
    # Names of fields that Django or the database makes: what a request gives for them is not written.
    __read_only__: ClassVar[frozenset[str]] = frozenset()
    # Whether the class takes fields that it does not name.
    __takes_all__: ClassVar[bool] = False
    # Fields that have a relation's name and take its key, and the attributes that have the keys.
    __keys__: ClassVar[dict[str, str]] = {}
    __annotated__: ClassVar[frozenset[str]]
    # Fields that may be left out because of ``partial``.
    __optional__: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(
        cls,
        *,
        model: str | type[Model] | None = None,
        fields: Names | None = None,
        exclude: Names | None = None,
        partial: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init_subclass__(**kwargs)
        annotated = _annotations(cls)
        cls.__annotated__ = frozenset(annotated)
        if model is not None:
            cls.__django_model__ = model_named(model, cls.__qualname__)
        if not hasattr(cls, "__django_model__"):
            if fields is not None or exclude is not None:
                raise InvalidSchema(f'{cls.__qualname__}: give `model="app.Model"` beside its fields.')
            return  # a base class
        names = _names(cls, fields, exclude)
        if model is not None and not names and not annotated and not cls.model_fields:
            raise FieldsNotNamed(
                f"{cls.__qualname__}: name the fields to take, such as "
                f'fields={_examples(cls.__django_model__)}; fields="__all__" takes all there will ever be.'
            )
        generated: dict[str, Any] = {}
        for name in names:
            if name in annotated:
                generated[name] = annotated[name]
                continue
            definition = define(_field(cls, name), cls.__qualname__)
            generated[name] = definition.annotation
            setattr(cls, name, new_field(definition))
            if definition.read_only:
                cls.__read_only__ |= {name}
        cls.__annotations__ = {**generated, **annotated}
        if annotated or any(relation_with_key(cls.__django_model__, name) for name in names):
            # Removed again where no field takes a key: it costs a call of Python for each row.
            before: Any = classmethod(with_keys)
            setattr(cls, KEYS_OF_RELATIONS, model_validator(mode="before")(before))

    @classmethod
    def __pydantic_init_subclass__(
        cls,
        *,
        model: str | type[Model] | None = None,
        fields: Names | None = None,
        exclude: Names | None = None,
        partial: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        changed = hasattr(cls, "__django_model__") and complete_fields(cls)
        anew = cls.model_fields if partial else cls.__optional__ if is_parametrized(cls) else ()
        for name in anew:
            make_optional(cls.model_fields[name])
        cls.__optional__ = cls.__optional__.difference(cls.__annotations__).union(anew)
        if changed or anew:
            # With an empty namespace: pydantic keeps the one in which the class was written.
            cls.model_rebuild(force=True, raise_errors=False, _types_namespace={})


def _annotations(cls: type[Any]) -> dict[str, Any]:
    if sys.version_info >= (3, 14):
        import annotationlib

        return annotationlib.get_annotations(cls, format=annotationlib.Format.FORWARDREF)
    return inspect.get_annotations(cls)


# Which fields


def _names(cls: type[ModelSchema], fields: Names | None, exclude: Names | None) -> list[str]:
    if isinstance(fields, str) and fields != "__all__":
        raise InvalidSchema(f"{cls.__qualname__}: fields={fields!r} is a text. Write fields=({fields!r},).")
    if isinstance(exclude, str):
        raise InvalidSchema(
            f"{cls.__qualname__}: exclude={exclude!r} is a text. Write exclude=({exclude!r},)."
        )
    if fields is not None and exclude is not None and fields != "__all__":
        raise InvalidSchema(f"{cls.__qualname__}: give `fields` or `exclude`.")
    if fields is None and exclude is None:
        return []
    if fields is not None and fields != "__all__":
        return list(dict.fromkeys(fields))
    options = cls.__django_model__._meta
    left_out = {_field(cls, name).name for name in exclude or ()}
    every = [*options.concrete_fields, *options.many_to_many]
    taken = [field for field in every if field.name not in left_out and not field.name.startswith("_")]
    for field in taken:
        if is_secret(field) and field.name not in cls.__annotated__:
            raise FieldsNotNamed(
                f"{cls.__qualname__}: {options.label} has the field {field.name!r}. Name the fields to take, "
                f"such as fields={_examples(cls.__django_model__)}, or exclude it by name."
            )
    cls.__takes_all__ = True
    return [field.name for field in taken]


def _examples(model: type[Model]) -> tuple[str, ...]:
    return tuple(field.name for field in model._meta.concrete_fields if not is_secret(field))[:3]


def _field(cls: type[ModelSchema], name: str) -> Any:
    """Return the model field that a name means.

    Raises:
        UnknownField: the model has none.
        InvalidSchema: it is nothing that can be taken without an annotation.
    """
    options = cls.__django_model__._meta
    if name == "pk":
        return options.pk
    columns = {field.attname: field for field in options.concrete_fields}
    field = columns.get(name) or field_of_attribute(cls.__django_model__, name)
    if field is None:
        known = [*columns, *(each.name for each in options.get_fields() if not each.auto_created), "pk"]
        if hasattr(cls.__django_model__, name):
            raise InvalidSchema(
                f"{cls.__qualname__}: {options.label}.{name} is not a field. Annotate it in the class, as "
                f"`{name}: str`, instead of naming it in `fields`."
            )
        raise UnknownField(
            f"{cls.__qualname__}: {options.label} has no field {name!r}. {nearest(name, known)}"
        )
    if not has_values(field):
        raise InvalidSchema(
            f"{cls.__qualname__}: {options.label}.{name} leads to other rows. Say what to take of them: "
            f"annotate it in the class, as `{name}: list[OtherOut]`, instead of naming it in `fields`."
        )
    if name.startswith("_"):
        raise InvalidSchema(
            f"{cls.__qualname__}: pydantic has no fields with the name {name!r}. Annotate it under another "
            f'name in the class, as `{name.strip("_")}: int = Field(validation_alias="{name}")`.'
        )
    return field
