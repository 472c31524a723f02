"""A recording as one picture (needs matplotlib: the extra `report`).

The panels of the page, without zoom: offset over time before and after, what was under way, and how
long holds and service took. Reads and writes in two colours that all eyes tell apart.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

try:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogFormatter
except ImportError as error:
    raise ImportError(
        "a report as a picture needs matplotlib: pip install 'iolift[report]'", name="matplotlib"
    ) from error

from . import _report_data as data
from .recording import KINDS, replacing

if TYPE_CHECKING:
    from .recording import Recording

MAX_MARKS = 200_000
MAX_LABEL = 18
LEAST_SEEN = 250  # marks above one another, each in sight, are as high as the panel


def write_png(recording: Recording, path: str | os.PathLike[str], title: str) -> None:
    """Write the picture to `path` as PNG, whole or not at all."""
    recording = data.covered(recording)
    drawn = data.picture(recording, MAX_MARKS)
    sheet = Figure(figsize=(12, 12.5), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(sheet)
    grid = sheet.add_gridspec(5, 2, height_ratios=[3, 3, 1.3, 1.3, 2.4])
    before = sheet.add_subplot(grid[0, :])
    after = sheet.add_subplot(grid[1, :], sharex=before, sharey=before)
    flying = sheet.add_subplot(grid[2, :], sharex=before)
    waiting = sheet.add_subplot(grid[3, :], sharex=before)
    bars = [sheet.add_subplot(grid[4, i]) for i in (0, 1)]
    scale, unit = data.unit_of_time(drawn.seconds)
    _draw_marks(before, drawn.before, drawn.stack, scale)
    _draw_marks(after, drawn.after, drawn.stack, scale)
    _draw_curve(flying, drawn.in_flight, scale)
    _draw_curve(waiting, drawn.waiting, scale)
    _draw_bars(bars[0], drawn.hold)
    _draw_bars(bars[1], drawn.service)
    before.set_xlim(-0.01 * drawn.seconds * scale, 1.01 * drawn.seconds * scale)
    waiting.set_xlabel(f"time ({unit})")
    titles = {
        before: "Before: the requests, when they were submitted",
        after: "After: the I/Os, when they were dispatched",
        flying: "I/Os in flight",
        waiting: "Requests not yet answered",
        bars[0]: f"Hold, from submit to dispatch: {_percentiles(drawn.hold)}",
        bars[1]: f"Service, from dispatch to the end: {_percentiles(drawn.service)}",
    }
    for axes, text in titles.items():
        axes.set_title(text, loc="left", fontsize=10.5, color=data.INK)
        axes.grid(color=data.GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (before, after, flying):
        axes.tick_params(labelbottom=False)
    _legend(before, drawn)
    name = title.encode("utf-8", "backslashreplace").decode().replace("$", r"\$")
    words = "\n".join([name, _headline(drawn.summary), *_left_out(recording, drawn)])
    sheet.suptitle(words, fontsize=12, x=0.012, ha="left", color=data.INK)
    with replacing(path) as file:
        sheet.savefig(file, format="png")


def _headline(summary: data.Summary) -> str:
    shown = dict(data.figures(summary))
    return (
        f"{shown['requests']} requests in {shown['I/Os']} I/Os (merge factor "
        f"{shown['merge factor']}), {shown['bytes asked']} asked, {shown['bytes moved']} moved, "
        f"{shown['wasted']} wasted, {shown['time']}"
    )


def _left_out(recording: Recording, drawn: data.Picture) -> list[str]:
    lost = recording.lost_requests or recording.lost_ios
    older = f"{recording.lost_requests:,} older requests and {recording.lost_ios:,} older I/Os"
    return [*([f"Left out: {older}, which were overwritten."] if lost else []), *drawn.notes]


def _percentiles(bars: data.Bars) -> str:
    return f"p50 {data.show_us(bars.p50_us)}, p99 {data.show_us(bars.p99_us)}"


def _legend(axes: Any, drawn: data.Picture) -> None:
    kinds = sorted({data.READ, data.WRITE, *drawn.hold.counts})
    dots = [
        Line2D(
            [], [], linestyle="", marker="s", markersize=6, color=data.COLOURS[k], label=KINDS[k]
        )
        for k in kinds
    ]
    axes.legend(
        handles=dots,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=len(dots),
        frameon=False,
        borderaxespad=0.1,
        handletextpad=0,
    )


def _draw_marks(axes: Any, marks: data.Marks, stack: data.Stack, scale: float) -> None:
    size, unit = data.unit_of_size(stack.top)
    colour = np.array([data.COLOURS[data.READ], data.COLOURS[data.WRITE]])[marks.kind]
    dense = len(marks.kind) > 5000
    # From its first byte to its last, and never too short to be seen.
    axes.vlines(
        marks.seconds * scale,
        marks.low / size,
        np.maximum(marks.high, marks.low + stack.top / LEAST_SEEN) / size,
        colors=colour,
        linewidth=1.4 if dense else 2.6,
        alpha=0.5 if dense else 0.8,
        rasterized=True,
    )
    axes.set_ylim(-0.02 * stack.top / size, 1.02 * stack.top / size)
    if len(stack.named) == 1:
        axes.set_ylabel(f"offset ({unit})")
        return
    names = [os.path.basename(name) or name for _, name in stack.named]
    shown = [n if len(n) <= MAX_LABEL else "..." + n[3 - MAX_LABEL :] for n in names]
    labels = [name.replace("$", r"\$") for name in shown]
    axes.set_yticks([base / size for base, _ in stack.named], labels)
    axes.set_ylabel("file, offset upwards")


def _draw_curve(axes: Any, curve: data.Curve, scale: float) -> None:
    axes.fill_between(
        curve.seconds * scale, curve.count, step="post", color=data.COUNT_COLOUR, alpha=0.25
    )
    axes.step(
        curve.seconds * scale, curve.count, where="post", color=data.COUNT_COLOUR, linewidth=0.9
    )
    axes.set_ylim(bottom=0)
    axes.set_ylabel("count")


def _draw_bars(axes: Any, bars: data.Bars) -> None:
    for kind, count in bars.counts.items():
        axes.stairs(count, bars.edges_us, fill=True, color=data.COLOURS[kind], alpha=0.35)
        axes.stairs(count, bars.edges_us, color=data.COLOURS[kind], linewidth=1)
    for value in (bars.p50_us, bars.p99_us):
        if value is not None:
            at = max(value, data.LOWEST_US)
            axes.axvline(at, color=data.INK, linewidth=0.9, linestyle="--")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.4)))
    axes.set_xlim(bars.edges_us[0] / 1.2, bars.edges_us[-1] * 1.2)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"us (less than {data.LOWEST_US} us is drawn as that)")
    axes.set_ylabel("requests")
