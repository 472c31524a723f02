"""A recording as one HTML page that works offline (needs bokeh: the extra `report`).

1. One file, with its scripts, styles and data inside. A Content-Security-Policy in it forbids the
   page to load or send anything.
2. It stays below 10 MB however big the recording is: what is not drawn is said on the page.
3. Names of files are data, never markup.
"""

from __future__ import annotations

import html
import os
import time
from typing import TYPE_CHECKING, Any

import numpy as np

try:
    from bokeh.embed import components
    from bokeh.layouts import column, gridplot
    from bokeh.models import ColumnDataSource, FixedTicker, HoverTool, PlainText, Range1d
    from bokeh.models.annotations import Span
    from bokeh.plotting import figure
    from bokeh.resources import Resources
except ImportError as error:
    raise ImportError(
        "a report as a page needs bokeh: pip install 'iolift[report]'", name="bokeh"
    ) from error

from . import _report_data as data
from .recording import KINDS, replacing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .recording import Recording

MAX_MARKS = 40_000  # in a panel: twice 40,000 x 5 columns of 8 bytes are 4.3 MB in base64
MAX_WORST = 50
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
LEFT_BORDER = 96
MAX_LABEL = 14

STYLE = """
body { margin: 0 auto; max-width: 1240px; padding: 20px 28px 48px; background: #fff; color: #222;
  font: 14px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h1 { font-size: 22px; margin: 0 0 2px; overflow-wrap: anywhere; }
h2 { font-size: 16px; margin: 30px 0 4px; }
p { margin: 2px 0 6px; color: #555; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 10px;
  margin: 16px 0 0; }
dl div { border: 1px solid #ddd; border-radius: 6px; padding: 7px 11px; }
dt { color: #666; font-size: 12px; }
dd { margin: 0; font-size: 18px; font-variant-numeric: tabular-nums; white-space: nowrap; }
i { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin: 0 5px 0 14px; }
table { border-collapse: collapse; width: 100%; font-size: 13px; }
th, td { text-align: left; padding: 4px 12px 4px 0; border-bottom: 1px solid #e5e5e5;
  vertical-align: top; overflow-wrap: anywhere; }
th { color: #666; font-weight: 600; white-space: nowrap; }
.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.wide td:nth-child(6) { min-width: 9em; }
.narrow { width: auto; }
"""


def write_html(recording: Recording, path: str | os.PathLike[str], title: str) -> None:
    """Write the page to `path`, whole or not at all."""
    recording = data.covered(recording)
    drawn = data.picture(recording, MAX_MARKS)
    script, div = components(_plots(drawn))
    library = Resources(mode="inline", components=["bokeh"]).render_js()
    title = html.escape(title.encode("utf-8", "backslashreplace").decode())
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} - iolift</title>
<style>{STYLE}</style>
{library}
</head>
<body>
<h1>{title}</h1>
{_paragraphs(_facts(recording))}
<dl>{"".join(_figure(*pair) for pair in data.figures(drawn.summary))}</dl>
<h2>Offset over time, and what was under way</h2>
<p>{_legend(drawn)}</p>
{_paragraphs(drawn.notes)}
{div}
<h2>What ended the holds</h2>
{_endings(recording)}
<h2>The slowest requests</h2>
<p>From submit to the end; of each batch, its slowest one.</p>
{_worst(recording)}
{script}
</body>
</html>
"""
    with replacing(path) as file:
        file.write(page.encode())


# ------------------------------------------------------------------------------------------- words


def _paragraphs(sentences: tuple[str, ...] | list[str]) -> str:
    return "".join(f"<p>{html.escape(sentence)}</p>" for sentence in sentences)


def _facts(recording: Recording) -> list[str]:
    began = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(recording.began_at))
    who = f"process {recording.pid}" if recording.pid else "several processes"
    facts = [f"Recorded from {began}, {who}, backend {recording.backend}."]
    if recording.lost_requests or recording.lost_ios:
        facts.append(
            f"Older ones were overwritten: {recording.lost_requests:,} requests and "
            f"{recording.lost_ios:,} I/Os are in none of these figures."
        )
    return facts


def _figure(name: str, value: str) -> str:
    return f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"


def _legend(drawn: data.Picture) -> str:
    kinds = sorted({data.READ, data.WRITE, *drawn.hold.counts})
    return "".join(f'<i style="background:{data.COLOURS[k]}"></i>{KINDS[k]}' for k in kinds)


def _table(
    heads: tuple[str, ...], rows: Sequence[tuple[str, ...]], text: set[int], style: str
) -> str:
    """heads and rows as markup; the columns in `text` are words, the others numbers."""

    def line(tag: str, cells: tuple[str, ...]) -> str:
        marked = ("" if i in text else ' class="n"' for i in range(len(cells)))
        pairs = zip(marked, cells, strict=True)
        return "<tr>" + "".join(f"<{tag}{m}>{html.escape(c)}</{tag}>" for m, c in pairs) + "</tr>"

    body = "".join(line("td", row) for row in rows)
    return f'<table class="{style}">{line("th", heads)}{body}</table>'


def _endings(recording: Recording) -> str:
    rows = [
        (ending.reason, f"{ending.requests:,}", data.show_us(ending.hold_p50_us))
        for ending in data.endings(recording)
    ]
    return _table(("ended by", "requests", "median hold"), rows, {0}, "narrow")


def _worst(recording: Recording) -> str:
    heads = ("at", "total", "held", "queued", "served", "file", "what became of it")
    rows = [
        (
            f"{one.seconds:.6f} s",
            *map(data.show_us, (one.total_us, one.held_us, one.queued_us, one.served_us)),
            one.file,
            one.sentence,
        )
        for one in data.worst(recording, MAX_WORST)
    ]
    return _table(heads, rows, {5, 6}, "wide")


# ------------------------------------------------------------------------------------------- plots


def _plots(drawn: data.Picture) -> Any:
    scale, unit = data.unit_of_time(drawn.seconds)
    margin = 0.01 * drawn.seconds * scale
    x_range = Range1d(start=-margin, end=drawn.seconds * scale + margin)
    size, size_unit = data.unit_of_size(drawn.stack.top)
    top = drawn.stack.top / size
    y_range = Range1d(start=-0.02 * top, end=1.02 * top)
    offsets: dict[str, Any] = {"x_range": x_range, "y_range": y_range, "height": 300}
    before = _figure_of("Before: the requests, when they were submitted", **offsets)
    after = _figure_of("After: the I/Os, when they were dispatched", **offsets)
    for panel, marks in ((before, drawn.before), (after, drawn.after)):
        _draw_marks(panel, marks, scale, size, unit)
        _label_files(panel, drawn.stack, size, size_unit)
    flying = _figure_of("I/Os in flight", x_range=x_range, height=170)
    waiting = _figure_of("Requests not yet answered", x_range=x_range, height=170)
    for panel, curve in ((flying, drawn.in_flight), (waiting, drawn.waiting)):
        _draw_curve(panel, curve, scale)
    for panel in (before, after, flying, waiting):
        panel.xaxis.axis_label = f"time ({unit})"
    over_time = gridplot(
        [[before], [after], [flying], [waiting]], merge_tools=True, sizing_mode="stretch_width"
    )
    bars = [
        _draw_bars("Hold: from submit to dispatch", drawn.hold),
        _draw_bars("Service: from dispatch to the end", drawn.service),
    ]
    aside = gridplot([bars], merge_tools=True, sizing_mode="stretch_width")
    return column(over_time, aside, sizing_mode="stretch_width")


def _figure_of(title: str, **options: Any) -> Any:
    panel: Any = figure(
        title=title,
        tools="xpan,xwheel_zoom,box_zoom,reset" if "y_range" in options else "xpan,reset",
        active_scroll=None,
        min_border_left=LEFT_BORDER,
        sizing_mode="stretch_width",
        **options,
    )
    panel.grid.grid_line_color = data.GRID
    panel.outline_line_color = panel.yaxis.minor_tick_line_color = None
    panel.title.text_color = panel.axis.axis_label_text_color = data.INK
    panel.axis.axis_label_text_font_style = "normal"
    return panel


def _draw_marks(panel: Any, marks: data.Marks, scale: float, size: float, unit: str) -> None:
    source = ColumnDataSource(
        {
            "x": marks.seconds * scale,
            "low": marks.low / size,
            "high": marks.high / size,
            "offset": marks.offset,
            "length": marks.length,
            "kind": [KINDS[kind] for kind in marks.kind.tolist()],
            "colour": [data.COLOURS[kind] for kind in marks.kind.tolist()],
        }
    )
    # Reads and writes in one go, in time's order: none hides all of the other.
    panel.segment(
        *("x", "low", "x", "high"),
        source=source,
        line_color="colour",
        line_width=3,
        line_cap="square",
        line_alpha=0.6,
    )
    about = [("@kind", "@length{0,0} bytes at @offset{0,0}"), ("time", f"@x{{0.000000}} {unit}")]
    panel.add_tools(HoverTool(tooltips=about))


def _label_files(panel: Any, stack: data.Stack, size: float, unit: str) -> None:
    """An offset axis, or where there are several files, a line and a name where each begins."""
    if len(stack.named) == 1:
        panel.yaxis.axis_label = f"offset ({unit})"
        return
    places = {base / size: _clipped(os.path.basename(name) or name) for base, name in stack.named}
    panel.yaxis.ticker = FixedTicker(ticks=list(places))
    # Plain: others are read as TeX where they look like it.
    panel.yaxis.major_label_overrides = {y: PlainText(text=name) for y, name in places.items()}
    panel.yaxis.axis_label = "file, offset upwards"
    panel.ygrid.grid_line_color = "#999999"


def _clipped(name: str) -> str:
    return name if len(name) <= MAX_LABEL else "..." + name[-(MAX_LABEL - 2) :]


def _draw_curve(panel: Any, curve: data.Curve, scale: float) -> None:
    panel.y_range.start = 0
    panel.yaxis.axis_label = "count"
    panel.yaxis.ticker.desired_num_ticks = 4
    # A step's area: each value stands until the next moment.
    x = np.repeat(curve.seconds * scale, 2)[1:]
    y = np.repeat(curve.count, 2)[:-1]
    panel.varea(x=x, y1=np.zeros(len(y)), y2=y, fill_color=data.COUNT_COLOUR, fill_alpha=0.25)
    panel.line(x=x, y=y, line_color=data.COUNT_COLOUR, line_width=1.2)


def _draw_bars(title: str, bars: data.Bars) -> Any:
    text = f"{title}: p50 {data.show_us(bars.p50_us)}, p99 {data.show_us(bars.p99_us)}"
    x_range = Range1d(start=bars.edges_us[0] / 1.2, end=bars.edges_us[-1] * 1.2)
    panel = _figure_of(text, x_axis_type="log", x_range=x_range, height=260)
    for kind, count in bars.counts.items():
        panel.quad(
            left=bars.edges_us[:-1],
            right=bars.edges_us[1:],
            bottom=0,
            top=count.astype(np.float64),
            fill_color=data.COLOURS[kind],
            line_color=data.COLOURS[kind],
            fill_alpha=0.4,
        )
    for value in (bars.p50_us, bars.p99_us):
        if value is not None:
            at = max(value, data.LOWEST_US)
            panel.add_layout(Span(location=at, dimension="height", line_dash="dashed"))
    panel.y_range.start = 0
    panel.xaxis.axis_label = f"us (less than {data.LOWEST_US} us is drawn as that)"
    panel.yaxis.axis_label = "requests"
    return panel
