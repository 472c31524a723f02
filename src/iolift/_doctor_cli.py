"""The console script's ``iolift doctor``: what this machine and a device give iolift.

Exit codes: 0 done, 2 bad input or a system that says no.
"""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING, Any

from ._replay_data import human

if TYPE_CHECKING:
    import argparse

    from ._doctor import Cost, Diagnosis


def add_doctor(commands: Any) -> None:
    """Adds `doctor` to the parser of the console script."""
    parser = commands.add_parser(
        "doctor",
        help="say what this machine gives iolift, and measure a device",
        description="Says which backend is in use and why, and measures what an I/O and a byte "
        "cost on the device under PATH: one at a time, and many at once. Takes a few seconds. "
        "A file is only read; in a directory a temporary file of 256 MiB is made.",
    )
    parser.add_argument("path", nargs="?", default=".", metavar="PATH", help="(default: here)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from ._doctor import diagnose
    from .cli import UsageError, make_progress

    with closing(make_progress()) as progress:
        try:
            diagnosis = diagnose(arguments.path, progress)
        except ValueError as error:
            raise UsageError(str(error)) from None
    if arguments.json:
        print(json.dumps(diagnosis.to_dict()))
    else:
        print(*lines(diagnosis), sep="\n")
    return 0


def lines(found: Diagnosis) -> list[str]:
    """The diagnosis in words, a line a fact."""
    width = 12

    def line(name: str, text: str) -> str:
        return f"{name:{width}}{text}"

    def cost(one: Cost) -> str:
        return (
            f"{one.io_us:,.1f} us an I/O, {one.byte_ns:.2f} ns a byte: "
            f"an I/O costs as much as {human(one.gap)}"
        )

    alignment = "{} B of memory, {} B of the file".format(*found.alignment)
    direct = f"no: {found.direct_reason}" if found.direct_reason else f"yes, aligned to {alignment}"
    arm = {None: "", True: ", rotating by its own word", False: ", not rotating"}[found.rotational]
    scheduler = f", scheduler {found.scheduler}" if found.scheduler else ""
    rates = ", ".join(f"{depth}: {rate:,.0f}" for depth, rate in found.reads_per_s.items())
    return [
        line("iolift", f"{found.iolift}, Python {found.python}, {found.cpus} CPUs"),
        line("kernel", found.kernel),
        line("backend", f"{found.backend} ({found.backend_reason})"),
        line("path", found.path),
        line("file system", found.filesystem),
        line("device", f"{found.device}{arm}{scheduler}"),
        line("O_DIRECT", direct),
        line("measured", found.measured),
        line("alone", cost(found.alone)),
        line("together", cost(found.together)),
        line("reads a s", f"by depth: {rates}"),
        line(
            "gap",
            f'"auto" goes to about {human(found.together.gap)} here, for many reads at once; '
            f"it is 0 for what is in memory",
        ),
        line("depth", f'"auto" is {found.auto_depth}; {found.depth} would do here'),
    ]
