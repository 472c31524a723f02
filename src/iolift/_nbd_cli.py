"""The console script's ``iolift nbd-plugin``: where the plugin for nbdkit is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse


def add_nbd_plugin(commands: Any) -> None:
    """Adds `nbd-plugin` to the parser of the console script."""
    text = "print the path of the plugin for nbdkit: nbdkit python $(iolift nbd-plugin) file=PATH"
    parser = commands.add_parser("nbd-plugin", help=text, description=text)
    parser.set_defaults(run=_run)


def _run(_arguments: argparse.Namespace) -> int:
    print(Path(__file__).resolve().with_name("nbdkit.py"))
    return 0
