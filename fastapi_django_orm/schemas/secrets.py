"""Columns that must be named before they are served: passwords, tokens and the like."""

import re
from typing import Any

SECRET = re.compile(
    r"passw(or)?d|passphrase|credential|secret(?!ar)|api_?key|private_?key|session_?(key|data)|"
    r"(access|auth|refresh)_?token",
    re.IGNORECASE,
)


def is_secret(field: Any) -> bool:
    """Whether a model field holds a secret, by its name or by the name of its class."""
    kind = type(field).__name__  # which may say as much: EncryptedTextField, PasswordField
    return "Encrypted" in kind or SECRET.search(f"{field.attname} {kind}") is not None
