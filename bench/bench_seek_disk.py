"""What is elevator order worth where there is an arm? Reads of a modelled disk, through FUSE.

`seek_disk.py` says how the disk is made and what its time is. Here its sides are rows of the table:
once with a drive that serves in order of arrival, once with one that has a queue of its own (NCQ).
The model's time is counted: no figure depends on this machine, but for the order of threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from _measure import Ask, Row
from _work import UnavailableError
from seek_disk import ELEVATOR, IDEAL, PEER, POOL, SIDES, measure, scattered

if TYPE_CHECKING:
    from _work import Work

READS = 1000


@dataclass
class Seek:
    """A drive, and who is compared on it."""

    key: str
    what: str
    asks: tuple[Ask, ...]
    ncq: int = 1

    def times(self) -> dict[str, float]:
        """The model's seconds per read, by side."""
        offsets = scattered(READS)
        names = {name for ask in self.asks for name in (ask.us, ask.peer)}
        sides = [side for side in SIDES if side.name in names]
        outcomes = [measure(side, offsets, None, self.ncq) for side in sides]
        return {outcome.side.name: outcome.seconds / READS for outcome in outcomes}

    def rows(self, _work: Work, _rounds: int) -> list[Row]:
        """A line per ask; once is enough, as a model does not swing."""
        try:
            times = self.times()
        except UnavailableError as why:
            return [Row(self.what, self.asks[0].asked(), "not measured", str(why))]
        return [ask.row(self.what, [(times[ask.peer], times[ask.us])]) for ask in self.asks]


WHAT = f"{READS} scattered 4 KiB reads of a modelled 7200 rpm disk"
ASKS = (
    Ask(PEER, at_least=3, us=ELEVATOR),
    Ask(POOL, us=ELEVATOR),
    Ask(IDEAL, us=ELEVATOR),
)
QUESTIONS = [
    Seek("seek_arrival", WHAT, ASKS),
    Seek("seek_ncq", f"{WHAT} with NCQ 32", ASKS, ncq=32),
]


@pytest.mark.parametrize("seek", QUESTIONS, ids=lambda q: q.key)
def test_seek(benchmark, seek) -> None:
    """Timed as a whole, which means little; the model's times are in extra_info."""
    try:
        times = benchmark.pedantic(seek.times, rounds=1)
    except UnavailableError as why:
        pytest.skip(str(why))
    benchmark.extra_info.update(times)
