"""The picture of seek_disk.py: the arm's way, and what a read's time goes into (matplotlib).

A row for each side. On the left each read is a dot, its offset over the model's time, on shared
axes: the dashed line is where the last one was done. On the right the mean read, as a bar of
its parts. Colours that all eyes tell apart (Okabe and Ito).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import _drive
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from pathlib import Path

    from seek_disk import Outcome

INK = "#333333"
PARTS = (
    ("command", "#BBBBBB", lambda outcome: _drive.OVERHEAD_MS),
    ("seek", "#D55E00", lambda outcome: outcome.mean_ms("seek_ms")),
    ("rotation", "#0072B2", lambda outcome: outcome.mean_ms("rotation_ms")),
    ("transfer", "#009E73", lambda outcome: outcome.mean_ms("transfer_ms")),
)


def draw(outcomes: list[Outcome], title: str, path: Path) -> None:
    """Write the picture to `path`, in the format that its ending names."""
    rows = len(outcomes)
    figure = Figure(figsize=(11.5, 1.6 + 1.45 * rows), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, 2, sharex="col", sharey="col", width_ratios=(2.4, 1))
    peer = outcomes[0].seconds
    for (way, parts), outcome in zip(panels, outcomes, strict=True):
        _way(way, outcome, peer)
        _parts(parts, outcome)
    panels[0, 0].set_xlim(0, 1.01 * max(outcome.seconds for outcome in outcomes))
    panels[0, 0].set_ylim(0, _drive.SIZE / 1e9)
    panels[0, 1].set_xlim(0, 1.22e3 * max(o.seconds / len(o.served) for o in outcomes))
    panels[-1, 0].set_xlabel("time of the modelled disk (s)")
    panels[-1, 1].set_xlabel("time per read, mean (ms)")
    figure.supylabel("offset (GB)", fontsize=10, color=INK)
    figure.suptitle(title, fontsize=12.5, x=0.012, ha="left", color=INK)
    known = [axes.get_legend_handles_labels() for axes in panels[0]]
    figure.legend(
        *[left + right for left, right in zip(*known, strict=True)],
        loc="outside lower center",
        ncols=len(PARTS) + 2,
        frameon=False,
        handlelength=1.0,
        columnspacing=1.2,
    )
    figure.savefig(path, format=os.path.splitext(path)[1][1:].lower())


def formats() -> set[str]:
    """The endings that `draw` knows."""
    return set(FigureCanvasAgg.get_supported_filetypes())


def _way(axes: Any, outcome: Outcome, peer: float) -> None:
    """The arm's way: a dot where each read ended, a hair between one and the next."""
    at = [service.ended_ms / 1e3 for service in outcome.served]
    where = [service.offset / 1e9 for service in outcome.served]
    axes.plot(at, where, color=INK, linewidth=0.3, alpha=0.25)
    axes.scatter(at, where, s=4, color="#CC79A7", linewidths=0, zorder=3, label="a read")
    axes.axvline(outcome.seconds, color=INK, linewidth=1, linestyle="--", label="the last one done")
    axes.set_title(
        f"{outcome.side.name}: {outcome.seconds:.1f} s, {peer / outcome.seconds:.1f}x the speed",
        loc="left",
        fontsize=10,
        color=INK,
    )
    _plain(axes)


def _parts(axes: Any, outcome: Outcome) -> None:
    """The mean read as one bar; each part that has room for it is labelled with its size."""
    left = 0.0
    for name, colour, size in PARTS:
        width = size(outcome)
        axes.barh(0, width, 0.55, left=left, color=colour, label=name)
        if width >= 1.0:
            middle = left + width / 2
            axes.text(middle, 0, f"{width:.1f}", ha="center", va="center", color="w", fontsize=9)
        left += width
    axes.text(left + 0.15, 0, f"{left:.1f} ms", va="center", color=INK, fontsize=9.5)
    axes.set_ylim(-0.6, 0.6)
    axes.set_yticks([])
    _plain(axes)


def _plain(axes: Any) -> None:
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
