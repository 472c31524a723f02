"""Goal: in a notebook Stats are one well-formed piece of markup with every counter in it.

It is parsed as XML, which is stricter than HTML. Nothing of it may need a script or a network.
"""

from __future__ import annotations

import re
from dataclasses import fields
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest

import iolift
from iolift._report import GROUPS, _binary, _duration

NAMES = [field.name for field in fields(iolift.Stats)]
HISTOGRAMS = ["hold_histogram_us", "service_histogram_us"]
SVG = "{http://www.w3.org/2000/svg}"


def stats(**given: Any) -> iolift.Stats:
    values: dict[str, Any] = dict.fromkeys(NAMES, 0)
    values |= dict.fromkeys(HISTOGRAMS, (0,) * 32)
    return iolift.Stats(**values | given)


def parse(made: iolift.Stats) -> ElementTree.Element:
    return ElementTree.fromstring(made._repr_html_())


def bars(svg: ElementTree.Element) -> list[tuple[float, str]]:
    """Height and tooltip of each."""
    return [
        (float(rect.attrib["height"]), rect.findtext(f"{SVG}title", ""))
        for rect in svg.iter(f"{SVG}rect")
    ]


def test_every_counter_has_its_row_once() -> None:
    shown = [name for _, counters in GROUPS for name, _ in counters]
    assert sorted(shown + HISTOGRAMS) == sorted(NAMES)
    numbers = {name: 100 + k for k, name in enumerate(shown)}
    rows = {
        cells[0].text: "".join(cells[1].itertext())
        for row in parse(stats(**numbers)).iter("tr")
        if len(cells := list(row.iter("td"))) == 2
    }
    assert set(rows) == {name.replace("_", " ") for name in shown}
    for name, value in numbers.items():
        assert rows[name.replace("_", " ")].removesuffix(" B") == str(value), name


@pytest.mark.parametrize(
    "made",
    [
        stats(),
        stats(**dict.fromkeys(HISTOGRAMS, (0,) * 31 + (1,))),
        stats(**dict.fromkeys(HISTOGRAMS, (2**63 - 1,) * 32)),
        stats(**dict.fromkeys([name for name in NAMES if name not in HISTOGRAMS], 2**80)),
    ],
    ids=["zeros", "the last place", "full", "huge"],
)
def test_it_is_well_formed_and_needs_nothing(made: iolift.Stats) -> None:
    text = made._repr_html_()
    ElementTree.fromstring(text)
    HTMLParser().feed(text)
    addresses = set(re.findall(r"\w+://[^\"'<> ]*", text))
    assert addresses <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<script|<style|<link|<img|\bon\w+=|url\(|href|nan|inf", text, re.I)
    assert not re.search(r"#[0-9a-f]{3,6}\b", text, re.I), "a fixed colour is lost in some theme"


def test_histograms_without_tickets_have_no_picture() -> None:
    tree = parse(stats())
    assert not list(tree.iter(f"{SVG}svg"))
    assert "held: 0 tickets" in "".join(tree.itertext())


def test_bars_are_as_high_as_their_counts() -> None:
    held = (0, 0, 50, 0, 100, 1) + (0,) * 26
    served = (0,) * 31 + (7,)
    hold, service = parse(stats(hold_histogram_us=held, service_histogram_us=served)).iter(
        f"{SVG}svg"
    )
    assert bars(hold) == [
        (30.0, "2 us to 4 us: 50"),
        (0.0, "4 us to 8 us: 0"),
        (60.0, "8 us to 16 us: 100"),
        (1.0, "16 us to 32 us: 1"),
    ]
    assert bars(service) == [(60.0, "1073 s and more: 7")]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1,023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        ((1 << 20) - 1, "1,024.0 KiB"),
        (1 << 20, "1.0 MiB"),
        (1 << 63, "8.0 EiB"),
        (1 << 80, "1,048,576.0 EiB"),
    ],
)
def test_units_of_bytes(size: int, text: str) -> None:
    assert _binary(size) == text


@pytest.mark.parametrize(
    ("us", "text"),
    [(0, "0 us"), (512, "512 us"), (1024, "1.02 ms"), (1 << 19, "524 ms"), (1 << 20, "1.05 s")],
)
def test_units_of_time(us: int, text: str) -> None:
    assert _duration(us) == text


def test_the_plain_text_is_what_it_was() -> None:
    made = stats(requests=3)
    assert repr(made) == str(made)
    assert repr(made).startswith("Stats(held_requests=0, ")
    assert eval(repr(made), {"Stats": iolift.Stats}) == made


def test_of_a_real_coalescer(backend: Any, make_file: Any) -> None:
    path, _ = make_file(1 << 16)
    with backend.open(path) as f:
        for ticket in [f.submit_pread(100, k * 100) for k in range(50)]:
            ticket.result()
        made = f._coalescer.stats()
    tree = parse(made)
    tickets = sum(made.hold_histogram_us)
    assert f"held: {tickets:,} tickets" in "".join(tree.itertext())
