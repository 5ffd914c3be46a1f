"""The account that servers run under: PostgreSQL and MariaDB refuse to run as root."""

import os
import pwd
import tempfile
from pathlib import Path
from typing import TypedDict


class Identity(TypedDict, total=False):
    """The arguments of `subprocess.Popen` that choose an account; empty for the own one."""

    user: int
    group: int
    extra_groups: list[int]


def unprivileged() -> Identity:
    """Return the account `nobody` for tests that run as root, and the own one otherwise."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def make_directory(name: str, identity: Identity) -> Path:
    """Create a temporary directory that the account can use.

    `mkdtemp` gives mode 0700. Handing the directory over is enough, and keeps everybody else out;
    root, who runs the tests then, reads it in any case.
    """
    directory = Path(tempfile.mkdtemp(prefix=f"tests-{name}-"))
    if identity:
        os.chown(directory, identity["user"], identity["group"])
    return directory


def may_enter(directory: Path, identity: Identity) -> bool:
    """Tell whether the account can use programs in a directory.

    A virtual environment often lives below a home directory that only its owner may enter.
    """
    folders = [directory.resolve(), *directory.resolve().parents]
    return not identity or all(folder.stat().st_mode & 0o001 for folder in folders)
