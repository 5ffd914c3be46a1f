"""Programs that look at every model of a real project, each in a process with that project's settings."""

import json
import os
import subprocess
import sys
from typing import Any


def outcome(program: str, project: str, database: str, deadline: float, **environment: str) -> Any:
    """Run a program of this package for at most so many seconds; return its last line, which is JSON."""
    settings = {"DJANGO_SETTINGS_MODULE": f"tests.beside.real.{project}_settings", "REAL_DATABASE": database}
    process = subprocess.run(
        [sys.executable, "-m", f"tests.beside.real.{program}"],
        env={**os.environ, **settings, **environment},
        capture_output=True,
        text=True,
        timeout=deadline,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout.splitlines()[-1])
