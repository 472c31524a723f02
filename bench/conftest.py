"""Joins the benches to pytest: the working directory, and one test per question and side.

A bench module lists its QUESTIONS; its one test takes the fixture `side`. The group of a
measurement is its question, so that pytest-benchmark prints it beside its peers. `python
bench/table.py` takes the ratios of the same sides in turns.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from _measure import Question
from _work import UnavailableError, work

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _measure import Side
    from _work import Work

_open: list[Question] = []


@pytest.fixture(scope="session", name="work")
def _work() -> Iterator[Work]:
    """The temporary directory on a real disk; removed at the end, also on Ctrl-C."""
    with work() as place:
        yield place


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per (question, side) of the module."""
    if "side_name" in metafunc.fixturenames:
        asked = [q for q in metafunc.module.QUESTIONS if isinstance(q, Question)]
        pairs = [(q, name) for q in asked for name in q.names]
        ids = [f"{q.key}-{name}" for q, name in pairs]
        metafunc.parametrize(("question", "side_name"), pairs, ids=ids)


@pytest.fixture
def side(work: Work, question: Question, side_name: str, benchmark: Any) -> Side:
    """The side to measure. Only one question's files and buffers are held at a time."""
    benchmark.group = question.what
    while _open and _open[0] is not question:
        _open.pop().close()
    if not _open:
        _open.append(question)
    try:
        sides = question.sides(work)
    except UnavailableError as why:
        pytest.skip(str(why))
    if side_name not in sides:
        pytest.skip(f"{side_name} is not on this machine")
    return sides[side_name]
