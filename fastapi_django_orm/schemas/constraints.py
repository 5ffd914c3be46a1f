r"""What a model field's validators allow, in pydantic's terms where these mean exactly the same.

A validator of another kind is run itself, after pydantic's. So is a regular expression whose meaning might
differ: pydantic's engine is Rust's, where ``\w`` matches more than in Python, and ``[[`` means a set.
"""

import re
from typing import Any

from django.core import validators as django
from django.db.models.fields.files import FileField

from .values import Check

# By class: the name of pydantic's constraint.
_LIMITS = {
    django.MaxLengthValidator: "max_length",
    django.MinLengthValidator: "min_length",
    django.MaxValueValidator: "le",
    django.MinValueValidator: "ge",
}
# Characters, escaped punctuation, \d, plain sets, groups, repetition and anchors are the same in both.
_SAME_IN_RUST = re.compile(
    r"""\^?(?: [\w\s@%&=:;,'"/<>~!#-] | \\[-.+*?^$()\[\]{}|/@] | \\d | \.
      | \[\^?(?: \\[-.\]\[\\^+*/@] | \\d | [^\]\[\\&~-] | - (?![-]) )+\]
      | \( (?:\?:)? | \) | \| | [*+?] | \{\d+(?:,\d*)?\} )*(?: \$ | \\Z )?""",
    re.ASCII | re.VERBOSE,
)


def constraints_of(field: Any, kind: Any) -> tuple[dict[str, Any], list[Any]]:
    """Return what limits the values of a field.

    Args:
        field: the model field.
        kind: the type of its values.

    Returns:
        Arguments of ``pydantic.Field``, and what stands beside them in ``Annotated``.
    """
    constraints: dict[str, Any] = {}
    checks: list[Any] = []
    for validator in field.validators:
        found = _constraint(validator, field)
        is_new = found is not None and not constraints.keys() & found.keys()
        if found is not None and is_new:
            constraints |= found
        # Pydantic does not count zeros at the end of a decimal, and Django does. Validators of files look at
        # an upload, and here is its name.
        needed = not is_new or type(validator) is django.DecimalValidator
        if needed and not isinstance(field, FileField):
            checks.append(Check(validator, tuple(field.empty_values)))
    if kind in (str, bytes):
        if not field.blank and field.default not in ("", b""):
            constraints["min_length"] = max(1, constraints.get("min_length", 1))
        elif least := constraints.pop("min_length", 0):  # Django does not ask validators about an empty text
            checks.append(Check(django.MinLengthValidator(least), tuple(field.empty_values)))
    if isinstance(field, FileField):
        constraints["max_length"] = field.max_length
    return constraints, checks


def _constraint(validator: Any, field: Any) -> dict[str, Any] | None:
    """Return a validator as pydantic's constraint; None if there is none that means exactly the same."""
    for kind, name in _LIMITS.items():
        if isinstance(validator, kind) and _acts_as(validator, kind) and not callable(validator.limit_value):
            return {name: validator.limit_value}
    if type(validator) is django.DecimalValidator:
        if validator.max_digits is None or validator.decimal_places is None:
            return None
        return {"max_digits": validator.max_digits, "decimal_places": validator.decimal_places}
    if isinstance(validator, django.RegexValidator) and _acts_as(validator, django.RegexValidator):
        pattern = same_in_rust(validator)
        return pattern and {"pattern": f"^$|{pattern}" if field.blank else pattern}  # type: ignore[return-value]
    return None


def _acts_as(validator: Any, kind: type[Any]) -> bool:
    names = ("__call__", "compare", "clean")
    return all(getattr(type(validator), name, None) is getattr(kind, name, None) for name in names)


def same_in_rust(validator: Any) -> str | None:
    """Return the regular expression for pydantic and for JSON Schema, if it has the same meaning there."""
    flags = validator.regex.flags & ~re.UNICODE
    pattern: str = validator.regex.pattern
    if flags or validator.inverse_match or not _SAME_IN_RUST.fullmatch(pattern):
        return None
    return re.sub(r"\\Z$", "$", pattern)
