"""Goal: what the kernel or the C library seldom does, done on purpose, at a chosen call.

`build(source, directory)` compiles C into a library that a child loads before all others, by
LD_PRELOAD, so that its functions take the place of the system's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

COMPILER = (sysconfig.get_config_var("CC") or "cc").split()
OPTIONS = ("-O1", "-fPIC", "-shared", "-fno-builtin")

needed = [
    pytest.mark.skipif(not shutil.which(COMPILER[0]), reason="no C compiler"),
    pytest.mark.skipif("IOLIFT_SANITIZED" in os.environ, reason="the sanitizer's must come first"),
]


def build(source: str, directory: Path) -> Path:
    (directory / "preload.c").write_text(source)
    subprocess.run(
        [
            *COMPILER,
            *["-O1", "-fPIC", "-shared", "-fno-builtin", "-o", "preload.so", "preload.c", "-ldl"],
        ],
        cwd=directory,
        check=True,
    )
    return directory / "preload.so"
