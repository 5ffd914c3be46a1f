"""Fresh Python processes without the wait: one process imports the packages, and each run is a fork of it.

Nothing is set up in the one that is forked. Starting Python and importing FastAPI and Django anew would
take a second for each test.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Self

DEADLINE = 30  # seconds, after which a run is killed

_SERVER = """
import json, os, runpy, signal, sys
import fastapi_django_orm, uvicorn, django.db.models, psycopg  # noqa

for line in sys.stdin:
    order = json.loads(line)
    pid = os.fork()
    if pid:
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
        continue
    signal.alarm(order["deadline"])
    output = order["output"]
    for number, target in (0, os.open(os.devnull, os.O_RDONLY)), (1, output), (2, output):
        os.dup2(target, number)
    os.chdir(order["directory"])
    os.environ.clear()
    os.environ.update(order["environment"])
    kind, *sys.argv[1:] = order["arguments"]
    if kind == "-c":
        sys.argv[:2] = ["-c"]
        exec(compile(order["arguments"][1], "<code>", "exec"), {"__name__": "__main__"})
    elif kind == "-m":
        sys.argv[:2] = [""]
        runpy.run_module(order["arguments"][1], run_name="__main__", alter_sys=True)
    else:
        sys.argv[0] = kind
        sys.path[0] = order["directory"]
        runpy.run_path(kind, run_name="__main__")
    break
"""


class Interpreter:
    """Runs ``python -c CODE``, ``python -m MODULE …`` and ``python FILE …``, as often as wanted."""

    def __init__(self) -> None:
        self._output = TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[self._output.fileno()],
        )

    def run(
        self, arguments: Sequence[str], directory: Path, environment: Mapping[str, str]
    ) -> tuple[int, str]:
        """Run to the end; the exit code and the output, standard error included."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._output.seek(0)
        self._output.truncate()
        order = {
            "arguments": list(arguments),
            "directory": str(directory),
            "environment": dict(environment),
            "output": self._output.fileno(),
            "deadline": DEADLINE,
        }
        print(json.dumps(order), file=self._process.stdin, flush=True)
        code = int(self._process.stdout.readline())
        size = os.fstat(self._output.fileno()).st_size
        return code, os.pread(self._output.fileno(), size, 0).decode()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._process:  # closes its input, upon which it ends, and waits
            pass
        self._output.close()
