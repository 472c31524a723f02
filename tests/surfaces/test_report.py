"""Goal: a report's figures are those of a naive count, its pictures show all that happened, and its
page works in a browser without asking anybody for anything."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import child
import numpy as np
import pytest
import synthetic

import iolift
from iolift import _report_data as data
from iolift.cli import main
from iolift.recording import IO, REASONS, REQUEST, Recording

if TYPE_CHECKING:
    from pathlib import Path

PAGE_LIMIT = 10_000_000
BLUE, ORANGE, GREEN = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)


def of_rows(requests: Any = (), ios: Any = (), files: tuple[str, ...] = ("f",)) -> Recording:
    """From rows as dicts; what is left out is 0."""
    arrays = []
    for dtype, given in ((REQUEST, requests), (IO, ios)):
        array = np.zeros(len(given), dtype)
        for row, wanted in zip(array, given, strict=True):
            for name, value in wanted.items():
                row[name] = value
        arrays.append(array)
    return Recording(*arrays, files, 0, 0, "posix", 1, 1, 1.0)


EMPTY = of_rows()
DRAWN = ("empty", "of no length", "absurd sizes", "times that go back", "usual")
RECORDINGS = {
    "empty": EMPTY,
    "one": synthetic.make(1, 1),
    "only cancelled": of_rows([{"state": 2, "length": 9, "submitted_ns": 5, "ended_ns": 6}]),
    "only an I/O": of_rows((), [{"length": 5, "result": 5, "submitted_ns": 5, "done_ns": 7}]),
    "of no length": of_rows([{"submitted_ns": 5, "dispatched_ns": 5, "ended_ns": 5, "batch": 1}]),
    "absurd sizes": of_rows(
        [{"offset": 0, "length": 2**63 - 1, "submitted_ns": 1, "ended_ns": 2}] * 3,
        [{"length": 2**63 - 1, "result": 2**63 - 1, "submitted_ns": 1, "done_ns": 2}] * 3,
    ),
    "times that go back": of_rows(
        [{"length": 1, "submitted_ns": 9, "dispatched_ns": 5, "started_ns": 4, "ended_ns": 3}],
        [{"length": 1, "submitted_ns": 9, "done_ns": 3}],
    ),
    "usual": synthetic.make(900, 2, files=("a", "b")),
    "strange": synthetic.make(900, 3, files=("a", "b", "c"), strange=0.5),
}


# ----------------------------------------------------------------------------------- the figures


def naive(recording: Recording) -> dict[str, Any]:
    """The figures by loops over plain numbers."""
    requests = [dict(zip(REQUEST.names, r.item(), strict=True)) for r in recording.requests]
    ios = [dict(zip(IO.names, r.item(), strict=True)) for r in recording.ios]
    kept = [r for r in requests if r["state"] != 2]
    moves = [r for r in kept if r["kind"] < 2]
    move_ios = [i for i in ios if i["kind"] < 2]
    reading = [i for i in ios if i["kind"] == 0]
    wasted = sum(max(i["length"] - i["asked"], 0) for i in reading)
    asked = sum(i["asked"] for i in reading)
    held, served = [], []
    for r in kept:
        if r["dispatched_ns"]:
            end = max(r["ended_ns"], r["submitted_ns"])
            went = min(max(r["dispatched_ns"], r["submitted_ns"]), end)
            held.append((went - r["submitted_ns"]) / 1000)
            served.append((end - went) / 1000)

    def rank(values: list[float], percent: int) -> float | None:
        place = math.ceil(len(values) * percent / 100)
        return sorted(values)[place - 1] if values else None

    # Depth: of each I/O's beginning, who is under way then; ends come before begins.
    depth = [sum(j["submitted_ns"] <= i["submitted_ns"] < j["done_ns"] for j in ios) for i in ios]
    span = 0
    if requests:
        span = max(r["ended_ns"] for r in requests) - min(r["submitted_ns"] for r in requests)
    return {
        "requests": len(requests),
        "reads": sum(r["kind"] == 0 for r in kept),
        "writes": sum(r["kind"] == 1 for r in kept),
        "syncs": sum(r["kind"] == 2 for r in kept),
        "failed": sum(r["state"] == 1 for r in requests),
        "cancelled": len(requests) - len(kept),
        "ios": len(move_ios),
        "syncs_issued": len(ios) - len(move_ios),
        "merge_factor": len(moves) / len(move_ios) if move_ios else None,
        "bytes_asked": sum(r["length"] for r in moves),
        "bytes_moved": sum(max(i["result"], 0) for i in move_ios),
        "bytes_wasted": wasted,
        "waste_share": wasted / asked if asked else None,
        "hold_p50_us": rank(held, 50),
        "hold_p99_us": rank(held, 99),
        "service_p50_us": rank(served, 50),
        "service_p99_us": rank(served, 99),
        "most_in_flight": max(depth, default=0),
        "seconds": max(span, 0) / 1e9,
    }


@pytest.mark.parametrize("case", RECORDINGS)
def test_figures_are_those_of_a_naive_count(case: str) -> None:
    assert data.summarize(RECORDINGS[case]).to_dict() == naive(RECORDINGS[case])


@pytest.mark.parametrize("n", [1, 2, 3, 99, 100, 101, 1000])
def test_percentiles_are_by_nearest_rank(n: int) -> None:
    values = np.random.default_rng(n).permutation(n).astype(float)
    for percent in (1, 7, 50, 99, 100):
        assert data.percentile(values, percent) == math.ceil(n * percent / 100) - 1


def test_a_failed_io_moved_nothing() -> None:
    assert data.summarize(of_rows((), [{"result": -5, "length": 9}])).bytes_moved == 0


@pytest.mark.parametrize("seed", range(5))
def test_in_flight_is_a_naive_count(seed: int) -> None:
    rng = np.random.default_rng(seed)
    begin = rng.integers(0, 30, 40)
    end = begin + rng.integers(0, 10, 40)
    moments, count = data.in_flight(begin, end)
    assert (np.diff(moments) > 0).all()
    assert (np.diff(count) != 0).all()
    for at in range(-1, 45):
        place = int(np.searchsorted(moments, at, "right")) - 1
        wanted = int(((begin <= at) & (at < end)).sum())
        assert (int(count[place]) if place >= 0 else 0) == wanted


@pytest.mark.parametrize("steps", [1, 2, 7, 50, 5000])
def test_no_peak_is_hidden(steps: int) -> None:
    rng = np.random.default_rng(steps)
    begin = np.sort(rng.integers(0, 10**6, 800))
    end = begin + rng.integers(1, 10**5, 800)
    moments, count = data.in_flight(begin, end)
    at, highest = data.envelope(moments, count, steps)
    assert len(at) == len(highest) <= max(steps, 1) or steps >= len(moments)
    assert (np.diff(at) > 0).all()
    assert highest.max() == count.max()
    for i, low in enumerate(at):
        high = at[i + 1] if i + 1 < len(at) else np.inf
        inside = (moments >= low) & (moments < high)
        before = count[moments <= low][-1:]
        assert highest[i] == max([*count[inside], *before])


@pytest.mark.parametrize("limit", [2, 10, 100, 1000])
@pytest.mark.parametrize("spread", [0.0, 1.0, 1e18])
def test_thinning_keeps_one_of_each_place(limit: int, spread: float) -> None:
    rng = np.random.default_rng(limit)
    x, y = rng.random(3000) * spread, rng.random(3000) * spread
    kind = rng.integers(0, 2, 3000)
    kept = data.thinned(x, y, kind, limit)
    assert len(kept) <= limit
    assert (np.diff(kept) > 0).all()
    assert set(kind[kept].tolist()) == {0, 1}
    if spread and limit >= 100:
        # Every sixteenth of the picture still has a mark.
        sixteenth = (x[kept] / spread * 4).astype(int) * 4 + (y[kept] / spread * 4).astype(int)
        assert len(set(sixteenth.tolist())) == 16


def test_thinning_leaves_few_alone() -> None:
    x = np.zeros(10)
    assert data.thinned(x, x, np.zeros(10, int), 10).tolist() == list(range(10))
    assert len(data.thinned(x[:0], x[:0], np.zeros(0, int), 2)) == 0


@pytest.mark.parametrize("case", RECORDINGS)
def test_bars_count_everybody(case: str) -> None:
    drawn = data.picture(RECORDINGS[case], 100)
    for bars, values in (
        (drawn.hold, data.hold_us(RECORDINGS[case])),
        (drawn.service, data.service_us(RECORDINGS[case])),
    ):
        assert (np.diff(bars.edges_us) > 0).all()
        assert bars.edges_us[0] >= data.LOWEST_US
        assert sum(int(count.sum()) for count in bars.counts.values()) == len(values)


def test_bars_are_where_the_values_are() -> None:
    values = np.array([0.0, 0.05, 0.1, 1.0, 30.0, 30.0, 1000.0])
    edges = data.edges_us(values)
    count = data.histogram(values, edges)
    for i, (low, high) in enumerate(itertools.pairwise(edges)):
        clipped = np.clip(values, edges[0], None)
        inside = (clipped >= low) & ((clipped < high) | (i == len(count) - 1))
        assert count[i] == inside.sum()


def test_endings_are_counted() -> None:
    made = RECORDINGS["strange"]
    served = [r for r in made.requests if r["dispatched_ns"] and r["state"] != 2]
    wanted = Counter(REASONS[r["reason"]] for r in served)
    found = data.endings(made)
    assert {ending.reason: ending.requests for ending in found} == dict(wanted)
    assert [e.requests for e in found] == sorted(wanted.values(), reverse=True)


def test_the_slowest_come_first_one_of_each_batch() -> None:
    made = RECORDINGS["strange"]
    found = data.worst(made, 20)
    took: dict[Any, int] = {}
    for i, row in enumerate(made.requests):
        if row["state"] != 2:
            key = int(row["batch"]) or f"alone {i}"
            took[key] = max(took.get(key, 0), int(row["ended_ns"] - row["submitted_ns"]))
    assert [one.total_us for one in found] == [t / 1000 for t in sorted(took.values())[:-21:-1]]
    for one in found:
        assert one.held_us + one.queued_us + one.served_us == pytest.approx(one.total_us)
        assert f"served {one.served_us:.1f} us" in one.sentence


def test_the_slowest_say_why_they_failed() -> None:
    row = {"state": 1, "errno": 28, "submitted_ns": 1, "dispatched_ns": 2, "ended_ns": 9}
    (one,) = data.worst(of_rows([row, {"state": 2, "ended_ns": 99}]), 5)
    assert one.sentence.endswith(f"; ENOSPC: {os.strerror(28)}")


def test_those_without_a_batch_stand_for_themselves() -> None:
    rows = [{"batch": b, "submitted_ns": 1, "ended_ns": 2 + b + i} for i in (1, 2) for b in (0, 7)]
    assert [one.total_us for one in data.worst(of_rows(rows), 9)] == [0.01, 0.003, 0.002]


def test_files_lie_apart() -> None:
    made = RECORDINGS["strange"]
    place = data.stack(made)
    ranges: dict[int, list[float]] = {}
    for row in made.requests:
        base = place.base[row["file"] + 1]
        reach = ranges.setdefault(int(row["file"]), [math.inf, 0.0])
        reach[0] = min(reach[0], base)
        reach[1] = max(reach[1], base + row["offset"] + row["length"])
    apart = sorted(ranges.values())
    assert all(one[1] <= two[0] for one, two in itertools.pairwise(apart))
    assert place.top >= apart[-1][1]
    assert [name for _, name in place.named] == ["unknown file", "a", "b", "c"]


def test_only_the_busiest_of_many_files_are_named() -> None:
    rows = [{"file": i, "length": 10} for i in range(50) for _ in range(1 + (i % 7 == 0) * 3)]
    place = data.stack(of_rows(rows, files=tuple(f"f{i}" for i in range(50))))
    names = [name for _, name in place.named]
    assert len(names) == data.NAMED_FILES
    assert set(names) >= {f"f{i}" for i in range(0, 50, 7)}


# -------------------------------------------------------------------------------- the command line


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.npz"
    RECORDINGS["usual"].save(path)
    return path


def test_report_prints_the_figures(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(trace)]) == 0
    told = capsys.readouterr().out
    for name, value in data.figures(data.summarize(RECORDINGS["usual"])):
        assert re.search(rf"^{re.escape(name)} +{re.escape(value)}$", told, re.MULTILINE)


def test_report_as_json_of_several(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(trace), str(trace), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    one = naive(RECORDINGS["usual"])
    assert told["requests"] == 2 * one["requests"]
    assert told["hold_p99_us"] == one["hold_p99_us"]
    assert told["lost_requests"] == 0


def test_report_writes_a_chrome_trace(trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert main(["report", str(trace), "--chrome", str(out)]) == 0
    written = io.StringIO()
    RECORDINGS["usual"].to_chrome(written)
    assert out.read_text() == written.getvalue()


def test_report_refuses(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = str(tmp_path / "nowhere" / "out")
    for arguments, why in (
        ([str(tmp_path / "none")], "none: No such file"),
        ([__file__], "is no recording"),
        ([str(trace), "--chrome", nowhere], f"{nowhere}: No such file"),
    ):
        assert main(["report", *arguments]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("iolift: error: ")
        assert why in said.err
        assert said.err.count("\n") == 1


@pytest.mark.parametrize(("option", "package"), [("-o", "bokeh"), ("--png", "matplotlib")])
def test_a_missing_package_is_named_with_its_extra(
    option: str, package: str, trace: Path, tmp_path: Path
) -> None:
    told = subprocess.run(
        [
            *(sys.executable, "-c"),
            "import sys; sys.modules[sys.argv.pop(1)] = None\n"
            "from iolift.cli import main; sys.exit(main(sys.argv[1:]))",
            *(package, "report", str(trace), option, str(tmp_path / "out")),
        ],
        env=child.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 2
    assert told.stderr.startswith("iolift: error: a report as a ")
    assert f"needs {package}: pip install 'iolift[report]'" in told.stderr
    assert told.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_nothing_is_imported_that_is_not_asked_for() -> None:
    child.run(
        """
        import sys, iolift
        assert "iolift.recording" not in sys.modules
        import iolift.cli
        assert not {"bokeh", "matplotlib", "iolift._report_data"} & set(sys.modules)
        """
    )


# ------------------------------------------------------------------------------------- the picture


def near(picture: Any, colour: tuple[int, int, int], within: float = 0.28) -> int:
    """How many pixels have about the colour, also where it is mixed with white."""
    rgb = picture[..., :3].astype(float)
    rgb = rgb / 255 if rgb.max() > 1 else rgb
    white = np.ones(3)
    target = np.array(colour) / 255
    share = ((white - rgb) @ (white - target)) / ((white - target) @ (white - target))
    mixed = white - share[..., None] * (white - target)
    return int(((np.abs(mixed - rgb).max(axis=-1) < within / 4) & (share > 0.2)).sum())


@pytest.mark.parametrize("case", DRAWN)
def test_a_picture_of_anything(case: str, tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    RECORDINGS[case].to_png(tmp_path / "out.png", "with $signs_$ and \udcff")
    picture = image.imread(tmp_path / "out.png")
    assert picture.shape[0] > 1000
    assert os.listdir(tmp_path) == ["out.png"]
    if case == "usual":
        top = picture[: len(picture) // 2]
        assert near(top, BLUE) > 300
        assert near(top, ORANGE) > 300
        assert near(picture, GREEN) > 1000


# ---------------------------------------------------------------------------------------- the page


def page_of(made: Recording, path: Path, title: str = "title") -> str:
    pytest.importorskip("bokeh")
    made.to_html(path, title)
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("case", DRAWN)
def test_a_page_of_anything(case: str, tmp_path: Path) -> None:
    text = page_of(RECORDINGS[case], tmp_path / "out.html")
    for name, value in data.figures(data.summarize(RECORDINGS[case])):
        assert f"<dt>{name}</dt><dd>{value}</dd>" in text
    assert os.listdir(tmp_path) == ["out.html"]


def test_a_page_loads_nothing(tmp_path: Path) -> None:
    text = page_of(RECORDINGS["usual"], tmp_path / "out.html")
    head = text[: text.index("<script>")]
    assert "default-src 'none'" in head
    assert "connect-src" not in head
    assert not re.search(r"<(script|img|iframe|link)[^>]+(src|href)=", text)
    assert "@import" not in head


def test_names_are_data(tmp_path: Path) -> None:
    evil = "</script><script>document.title='evil'</script><b>&amp;"
    made = synthetic.make(400, 1, files=(evil, "'\"`${1}", os.fsdecode(b"\xff")))
    text = page_of(made, tmp_path / "out.html", evil)
    _, written = text.split("<body>\n<h1>")  # the library before it is not ours
    assert "<script>document" not in text
    assert "<b>" not in written
    assert written.count("</script>") == 1
    assert "\\udcff" in written  # escaped: half of a surrogate pair is no text


def test_what_was_lost_or_not_drawn_is_said(tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("bokeh")
    from iolift import _report_html as html

    monkeypatch.setattr(html, "MAX_MARKS", 100)
    made = synthetic.make(900, 2, lost_requests=1234, lost_ios=5)
    text = page_of(made, tmp_path / "out.html")
    both = data.covered(made)
    drawn = data.picture(both, 100)
    assert len(drawn.before.seconds) <= 100
    moves = int((both.requests["kind"] != 2).sum())
    assert f"Of {moves:,} requests, {len(drawn.before.seconds)} are drawn" in text
    lost = f"{both.lost_requests:,} requests and {both.lost_ios:,} I/Os"
    assert f"{lost} are in none of these figures" in text


@pytest.mark.parametrize("capacity", [500, 2000, 9000])
def test_what_was_overwritten_in_one_ring_is_compared_with_nothing(
    tmp_path: Path, capacity: int
) -> None:
    """Five requests are one I/O, however many of either are still there."""
    (tmp_path / "data").write_bytes(bytes(1 << 20))
    with iolift.open(tmp_path / "data", trace=capacity, gap=0) as f:
        for i in range(400):
            f.read_ranges([k * 1000 + i for k in range(5) for _ in range(5)], 10)
        whole = f.coalescer.recording()
    both = data.covered(whole)
    assert data.summarize(both).merge_factor == pytest.approx(5, rel=0.03)
    assert both.lost_requests + len(both.requests) == whole.lost_requests + len(whole.requests)
    assert both.lost_ios + len(both.ios) == whole.lost_ios + len(whole.ios)
    if capacity == 9000:
        assert len(both.ios) == 1800


def big(n: int) -> Recording:
    """Requests and I/Os all over: the worst case for what can be left out."""
    rng = np.random.default_rng(1)
    requests, ios = np.zeros(n, REQUEST), np.zeros(n, IO)
    at = np.sort(rng.integers(1, 10**12, n))
    for rows in (requests, ios):
        rows["kind"] = rng.integers(0, 2, n)
        rows["offset"], rows["length"] = rng.integers(0, 1 << 50, n), rng.integers(1, 1 << 20, n)
        rows["submitted_ns"], rows["batch"] = at, np.arange(1, n + 1)
    requests["dispatched_ns"] = at + rng.integers(0, 10**6, n)
    requests["started_ns"] = requests["dispatched_ns"]
    requests["ended_ns"] = ios["done_ns"] = requests["started_ns"] + rng.integers(1, 10**7, n)
    names = tuple(f"/a/long/path/to/some/file/{i}" for i in range(1000))
    requests["file"] = ios["file"] = rng.integers(0, 1000, n)
    return Recording(requests, ios, names, 0, 0, "uring", 1, 1, 1.0)


def test_a_page_of_many_requests_stays_small(tmp_path: Path) -> None:
    text = page_of(big(200_000), tmp_path / "out.html")
    assert len(text.encode()) < PAGE_LIMIT


@pytest.fixture(scope="module")
def browser() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("no chromium")
    return found


def browse(browser: str, page: Path, folder: Path) -> tuple[Any, list[str], str]:
    """(its picture, the addresses that it asked for, what its console said)."""
    image = pytest.importorskip("matplotlib.image")
    done = subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
            *("--disable-sync", f"--user-data-dir={folder / 'profile'}", "--hide-scrollbars"),
            *("--host-resolver-rules=MAP * ~NOTFOUND", f"--log-net-log={folder / 'net.json'}"),
            *("--window-size=1280,1900", "--virtual-time-budget=20000"),
            *("--enable-logging=stderr", f"--screenshot={folder / 'page.png'}", page.as_uri()),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=80,
    )
    net = (folder / "net.json").read_text(errors="replace")
    asked = re.findall(r'"url":"([^"]+)"', net)
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return image.imread(folder / "page.png"), asked, console


def test_a_browser_draws_every_panel_and_asks_nobody(browser: str, tmp_path: Path) -> None:
    page = tmp_path / "out.html"
    page_of(synthetic.make(4000, 3, files=("a", "b")), page)
    picture, asked, console = browse(browser, page, tmp_path)
    assert "rror" not in console, console
    assert "Refused" not in console, console
    outside = [url for url in asked if not url.startswith(("file:", "data:", "chrome"))]
    own = [url for url in outside if "google" not in url and "gvt1" not in url]
    assert own == []
    for band, colours in zip(panels(picture), COLOURS_OF_PANELS, strict=True):
        for colour in colours:
            assert near(band, colour) > 250
    hold, service = np.array_split(panels(picture)[-1], 2, axis=1)
    for half in (hold, service):
        assert near(half, BLUE) > 1000
        assert near(half, ORANGE) > 250


COLOURS_OF_PANELS = ((BLUE, ORANGE), (BLUE, ORANGE), (GREEN,), (GREEN,), (BLUE, ORANGE))


def panels(picture: Any) -> list[Any]:
    """The rows of panels of a page, each down to its axis, a dark line from side to side."""
    dark = (picture[..., :3].max(axis=-1) < 0.4).sum(axis=1) > 0.6 * picture.shape[1]
    axes = [y for y in np.flatnonzero(dark).tolist() if not dark[y - 1]]
    edges = [axes[0] - 250, *axes]
    return [picture[a + 1 : b - 1] for a, b in itertools.pairwise(edges)]
