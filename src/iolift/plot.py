"""The picture of a replay: where each I/O went, before and after (needs matplotlib).

Two panels on shared axes: the offsets of the trace over the requests, one by one above, coalesced
below, where the I/Os of a window are spread evenly over the window's requests. Reads and writes in
two colours that all eyes tell apart (Okabe and Ito), the legend outside of the data.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from ._replay_data import human
from .traces import READ, WRITE

if TYPE_CHECKING:
    from .replay import Result, Run

__all__ = ["draw"]

COLOURS = {READ: "#0072B2", WRITE: "#D55E00"}
NAMES = {READ: "read", WRITE: "write"}
INK = "#333333"


def draw(result: Result, path: str) -> None:
    """Write the picture to `path`; its ending, one of `formats()`, says in which format."""
    figure = Figure(figsize=(11, 7.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 1, sharex=True, sharey=True)
    unit, name = _unit(result.one_by_one, result.coalesced)
    dense = len(result.one_by_one.ios) > 5000
    for axes, run, title in (
        (panels[0], result.one_by_one, "One by one"),
        (panels[1], result.coalesced, "Coalesced"),
    ):
        _panel(axes, run, unit, dense)
        axes.set_title(f"{title}: {_figures(run)}", loc="left", fontsize=10.5, color=INK)
        axes.set_ylabel(f"offset ({name})")
    panels[1].set_xlabel("request (in order of arrival)")
    panels[1].xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    panels[0].set_xlim(0, max(result.one_by_one.requests, 1))
    panels[0].set_ylim(bottom=0)
    figure.suptitle(_title(result), fontsize=13, x=0.012, ha="left", color=INK)
    dots = [
        Line2D([], [], linestyle="", marker="o", markersize=6, color=COLOURS[k], label=NAMES[k])
        for k in (READ, WRITE)
    ]
    panels[0].legend(
        handles=dots,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=2,
        frameon=False,
        borderaxespad=0.1,
        handletextpad=0,
    )
    figure.savefig(path, format=os.path.splitext(path)[1][1:].lower())


def formats() -> set[str]:
    """The endings that `draw` knows."""
    return set(FigureCanvasAgg.get_supported_filetypes())


def _panel(axes: Any, run: Run, unit: int, dense: bool) -> None:
    """The I/Os of a run. Reads and writes are drawn in one go, in time's order: none hides all."""
    kind, offset, length = run.ios.T
    middle = (offset + length / 2) / unit
    axes.scatter(
        run.at,
        middle,
        s=3.0 if dense else 9.0,
        c=np.array([COLOURS[READ], COLOURS[WRITE]])[kind],
        linewidths=0,
        alpha=0.55 if dense else 0.85,
        rasterized=True,
    )
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _unit(*runs: Run) -> tuple[int, str]:
    top = max(int((run.ios[:, 1] + run.ios[:, 2]).max(initial=0)) for run in runs)
    for power, name in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if top >= 2 << power:
            return 1 << power, name
    return 1, "bytes"


def _figures(run: Run) -> str:
    return f"{len(run.ios):,} I/Os, {human(run.head_travel)} of head travel, {run.seconds:.2f} s"


def _title(result: Result) -> str:
    def ratio(a: float, b: float, less: str, more: str, what: str) -> str:
        if not a or not b:
            return f"no {what}"
        return f"{a / b:.1f}x {less} {what}" if a >= b else f"{b / a:.1f}x {more} {what}"

    one, two = result.one_by_one, result.coalesced
    name = os.path.basename(os.fsdecode(result.trace.name))
    parts = (
        ratio(len(one.ios), len(two.ios), "fewer", "more", "I/Os"),
        ratio(one.head_travel, two.head_travel, "less", "more", "head travel"),
        ratio(one.seconds, two.seconds, "less", "more", "time"),
    )
    return f"{name}: {', '.join(parts)}"
