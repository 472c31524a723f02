"""Goal: run a few lines in a fresh interpreter, where limits, signals and forks harm nobody else.

`run(code, *arguments)` dedents `code` and gives it `sys.argv[1:]`. It runs with `-X dev -W error`
(but may leave files of iolift open: how they end then is what many look at), and must end with
status 0 and print nothing on standard error, unless `status` says otherwise; what it printed is the
answer. A child that hangs is killed and fails the test.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from typing import Any

UNCLOSED = "ignore:unclosed file <iolift.File:ResourceWarning"
HANG_S = 30  # not an expectation: a child that takes this long hangs


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without what would change the defaults of iolift."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("IOLIFT_", "PYTHON"))}
    return {**clean, **variables}


def run(code: str, *arguments: Any, status: int = 0, **variables: str) -> str:
    """The standard output of `code`; `variables` go to its environment."""
    with subprocess.Popen(
        [sys.executable, "-u", "-X", "dev", "-W", "error", "-W", UNCLOSED]
        + ["-c", textwrap.dedent(code)]
        + [str(argument) for argument in arguments],
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        hangs = ""
        try:
            out, trouble = process.communicate(timeout=HANG_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its own children too
            out, trouble = process.communicate()
            hangs = "hangs, "
    said = f"{hangs}status {process.returncode}\n--- stdout\n{out}\n--- stderr\n{trouble}"
    assert not hangs, said
    assert process.returncode == status, said
    assert status or not trouble, said
    return out
