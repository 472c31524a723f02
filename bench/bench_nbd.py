"""Does nbdkit with iolift's plugin, which is Python, serve a disk as fast as its own file plugin?

fio's nbd engine at depth 32 over a Unix socket, by its own clock. Reads: 20k random 4 KiB blocks of
a 2 GiB file, the page cache emptied before each turn. Writes: 4k random 4 KiB blocks, each followed
by a flush, into a 256 MiB file that is all data. nbdkit has 32 threads for the connection where
nothing else is said; 16 is what it has by itself. A turn starts nbdkit anew, before fio's clock.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from _cold import BLOCK, REQUESTS, SIZE
from _measure import Ask, Question, Side, benchmark_side
from _work import MIB, UnavailableError

import iolift

if TYPE_CHECKING:
    from collections.abc import Callable

    from _work import Work

PLUGIN = ("python", str(Path(iolift.__file__).with_name("nbdkit.py")))
WRITES, WRITE_SIZE = 4000, 256 * MIB
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(np.__file__).parents[1])}


def check_programs() -> None:
    """Raises UnavailableError where the plugin can't be run, or nobody can ask it."""
    if not shutil.which("nbdkit") or not shutil.which("fio"):
        raise UnavailableError("needs nbdkit, nbdkit-plugin-python and fio")
    engines = subprocess.run(["fio", "--enghelp"], capture_output=True, text=True, check=True)
    if "\tnbd\n" not in engines.stdout:
        raise UnavailableError("this fio has no nbd engine")
    tried = subprocess.run(
        ["nbdkit", *PLUGIN, "--dump-plugin"], capture_output=True, text=True, env=ENVIRONMENT
    )
    if "iolift_version=" not in tried.stdout:
        raise UnavailableError((tried.stderr or "no nbdkit-plugin-python").strip())


def served(n: int, plugin: list[str], fio: dict[str, object], before: Callable[[], object]) -> Side:
    """fio, started by an nbdkit that ends with it."""
    options = {
        "name": "nbd", "ioengine": "nbd", "bs": BLOCK, "iodepth": 32, "number_ios": n,
        "randrepeat": 0, "output-format": "json", **fio,
    }  # fmt: skip
    client = shlex.join(["fio", *(f"--{key}={value}" for key, value in options.items())])
    command = ["nbdkit", "-U", "-", *plugin, "--run", f'{client} --uri="$uri"']

    def run() -> float:
        done = subprocess.run(command, check=True, capture_output=True, env=ENVIRONMENT)
        report = done.stdout[done.stdout.index(b"{") :]  # after what fio remarks
        job = json.loads(report)["jobs"][0]
        kind = job["read"] if fio["rw"] == "randread" else job["write"]
        assert abs(kind["total_ios"] - n) < n / 10  # with flushes, fio takes some for the others
        return n / float(kind["iops"])

    return Side(n, run, before)


def build_reads(work: Work) -> dict[str, Side]:
    """The page cache is emptied before nbdkit starts: neither plugin reads before it is asked."""
    check_programs()
    path = work.file(SIZE)
    side = partial(
        served, REQUESTS, fio={"rw": "randread", "size": SIZE}, before=lambda: work.drop(path)
    )
    ours, file = [*PLUGIN, f"file={path}"], ["file", str(path)]
    return {
        "iolift": side(["-t", "32", *ours]),
        "direct": side(["-t", "32", *ours, "direct=true"]),
        "16 threads": side(ours),
        "nbdkit file": side(["-t", "32", *file]),
        "nbdkit file, cache=none": side(["-t", "32", *file, "cache=none"]),
        "nbdkit file, 16 threads": side(file),
    }


def build_writes(work: Work) -> dict[str, Side]:
    """Each plugin has a file of its own; the journal lies beside the file."""
    check_programs()

    def side(name: str, plugin: tuple[str, ...], *more: str) -> Side:
        path = work.file(WRITE_SIZE, name)
        fio = {"rw": "randwrite", "size": WRITE_SIZE, "fsync": 1}
        return served(WRITES, ["-t", "32", *plugin, f"file={path}", *more], fio, path.stat)

    return {
        "iolift": side("nbd-plain", PLUGIN),
        "journal": side("nbd-journalled", PLUGIN, f"journal={work.root / 'nbd-journal'}"),
        "nbdkit file": side("nbd-file", ("file",)),
    }


QUESTIONS = [
    Question(
        "nbd_read",
        "nbdkit, 4 KiB random reads at depth 32, cold",
        build_reads,
        (
            Ask("nbdkit file", at_least=1),
            Ask("nbdkit file, 16 threads", us="16 threads"),
            Ask("nbdkit file", us="direct"),
            Ask("nbdkit file, cache=none", us="direct"),
        ),
    ),
    Question(
        "nbd_write",
        "nbdkit, 4 KiB random writes at depth 32, each with a flush",
        build_writes,
        (Ask("nbdkit file"), Ask("nbdkit file", us="journal")),
    ),
]


def test_nbd(benchmark, side) -> None:
    """One side of one question."""
    benchmark_side(benchmark, side, rounds=3)
