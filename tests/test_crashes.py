"""Goal: after a crash at any point no acknowledged byte is lost or wrong.

`python tests/test_crashes.py --states 1000000 --seed 1` goes on for longer than CI has time for.
The negative controls break one rule each, and must be caught by the same search: a search that
finds nothing proves something only where it would have.
"""

from __future__ import annotations

import argparse
import itertools
from typing import TYPE_CHECKING, Any

import pytest
from crashing import Explorer, LostError
from modeldisk import Recorder

from iolift import _journal, _recovery, _survey

if TYPE_CHECKING:
    from collections.abc import Callable

SEEDS = 16
STATES = 1300  # of each seed, at least: more than 20,000 in all


def explore(seed: int, states: int, **options: Any) -> int:
    explorer = Explorer(seed, **options)
    for turn in itertools.count():
        if explorer.states >= states:
            return explorer.states
        explorer.run(12 + turn % 3 * 8, targets=1 + turn % 2)
    raise AssertionError


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_crash_loses_what_was_received(seed: int) -> None:
    assert explore(seed, STATES, per_point=4, deep=3, keep_segments=seed % 4 == 3) >= STATES


# ------------------------------------------------------------------------------ negative controls


def assert_caught(run: Callable[[int], None]) -> None:
    def search() -> None:
        for seed in range(60):
            run(seed)

    with pytest.raises(LostError):
        search()


class NoSync(Recorder):
    """No fdatasync before the receipt."""

    def sync(self, handle: int) -> None:
        if handle < 1000:
            super().sync(handle)


class ReceiptFirst(Recorder):
    """The receipt comes before the sync, which is made up for with the next write."""

    late: int | None = None

    def sync(self, handle: int) -> None:
        if handle < 1000:
            super().sync(handle)
        else:
            self.late = handle

    def write(self, handle: int, data: Any, offset: int) -> int:
        if self.late in self.handles:
            super().sync(self.late)
        self.late = None
        return super().write(handle, data, offset)


class SlotFirst(Recorder):
    """The checkpoint is made before the targets are synced."""

    late: set[int]

    def sync(self, handle: int) -> None:
        self.late = getattr(self, "late", set())
        if handle < 1000:
            self.late.add(handle)
            return
        super().sync(handle)
        if self.handles[handle] is self.names_now.get("checkpoint"):
            for target in self.late:
                super().sync(target)
            self.late = set()


class NoDirectorySync(Recorder):
    """Names are never synced."""

    def sync_directory(self) -> None:
        pass


@pytest.mark.parametrize("disk", [NoSync, ReceiptFirst, SlotFirst, NoDirectorySync])
def test_a_broken_rule_is_caught(disk: Callable[[int], Recorder]) -> None:
    assert_caught(lambda seed: Explorer(seed, per_point=4, deep=0).run(20, 1, disk(1)))


def test_ignored_payload_crcs_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(storage: Any) -> Any:
        return _survey.survey(storage, check_payload=False)

    monkeypatch.setattr(_journal, "survey", careless)
    assert_caught(lambda seed: Explorer(seed, per_point=4, deep=0).run(20, 1))


class Careless:
    """A storage that forgets to sync, for a part of a recovery."""

    def __init__(self, storage: Any, forgets: Callable[[int], bool]) -> None:
        self.storage, self.forgets = storage, forgets

    def __getattr__(self, name: str) -> Any:
        return getattr(self.storage, name)

    def sync(self, handle: int) -> None:
        if not self.forgets(handle):
            self.storage.sync(handle)


RULES_OF_RECOVERY: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "what was found is synced": (_recovery, "_sync_found", lambda storage, found: None),
    "the tail is cut": (_recovery, "_cut_tails", lambda storage, found: iter(())),
    "the cut is synced": (
        _recovery,
        "_zero",
        lambda storage, segment, zero=_recovery._zero: zero(
            Careless(storage, lambda handle: True), segment
        ),
    ),
    "replayed targets are synced": (
        _journal,
        "recover",
        lambda storage, *found, recover=_recovery.recover, **options: recover(
            Careless(storage, lambda handle: handle < 1000), *found, **options
        ),
    ),
}


@pytest.mark.parametrize("rule", RULES_OF_RECOVERY)
def test_a_broken_rule_of_recovery_is_caught(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, name, broken = RULES_OF_RECOVERY[rule]
    monkeypatch.setattr(module, name, broken)
    assert_caught(lambda seed: Explorer(seed, per_point=3, deep=2).run(20, 1))


@pytest.mark.parametrize("name", ["checkpoint", ".seg"])
def test_all_that_was_found_must_be_synced(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint alone is not enough, nor are the segments."""

    def half(storage: Any, found: Any, sync: Any = _recovery._sync_found) -> None:
        handles: set[int] = set()

        class Half(Careless):
            def open(self, opened: str) -> int:
                handle: int = storage.open(opened)
                if name in opened:
                    handles.add(handle)
                return handle

        sync(Half(storage, handles.__contains__), found)

    monkeypatch.setattr(_recovery, "_sync_found", half)
    assert_caught(lambda seed: Explorer(seed, per_point=3, deep=2, kills=0.9).run(20, 1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--states", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}")
    print(explore(arguments.seed, arguments.states, per_point=4, deep=3), "states, all well")
