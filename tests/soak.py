"""Goal: as many operations as one likes, of every kind and in any order, and no answer is wrong.

    python -m tests.soak --operations 20_000_000 --backend hosted --seed 7

A run is many rounds, each from its own seed: most from one thread (soak_single), held against a
model that executes one request after the other; some from threads and event loops at once
(soak_shared), whose answers must be explained by some order of all that overlapped in time.
A failure names its round; --round plays just that one again.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from conftest import unavailable
from soak_shared import SharedRound
from soak_single import SingleRound

BACKENDS = ["uring", "posix", "hosted"]
MODES = {"single": SingleRound, "shared": SharedRound}
REPORT_EVERY = 1_000_000
HANG_S = 100  # not an expectation: a round that takes this long hangs, and says where


def play(backend: str, seed: int, number: int, directory: Path, mode: str | None = None) -> int:
    """One round; the number of operations it took."""
    chance = random.Random(f"{seed}/{number}")
    count = chance.choice([100, 400, 1000, 3000])
    chosen = chance.choice(["single", "single", "single", "shared"])
    try:
        return MODES[mode or chosen](backend, f"{seed}/{number}", count, directory).play()
    except BaseException as error:
        error.add_note(f"again: python -m tests.soak --backend {backend} --seed {seed} "
                       f"--round {number}{f' --mode {mode}' if mode else ''}")  # fmt: skip
        raise


def where(backend: str, otherwise: Path) -> Path:
    """A directory: the simulated disk needs no real one behind it."""
    memory = Path("/dev/shm")
    return memory if backend == "hosted" and os.access(memory, os.W_OK) else otherwise


def soak(backend: str, seed: int, operations: int, directory: Path, mode: str | None = None) -> int:
    """Rounds until there were so many operations; how many there were."""
    done = number = 0
    while done < operations:
        done += play(backend, seed, number, directory, mode)
        number += 1
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--operations", type=int, default=200_000, help="a backend")
    parser.add_argument("--backend", choices=BACKENDS, action="append")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--mode", choices=MODES, help="from one thread, or from many")
    parser.add_argument("--round", type=int, help="only this one")
    parser.add_argument("--keep-going", action="store_true", help="report failures and go on")
    chosen = parser.parse_args()
    failures = 0
    for backend in chosen.backend or BACKENDS:
        place = where(backend, Path(tempfile.gettempdir()))
        with tempfile.TemporaryDirectory(dir=place) as directory:
            if reason := unavailable(backend):
                sys.stdout.write(f"{backend}: {reason}\n")
                continue
            sys.stdout.write(f"{backend}: seed {chosen.seed}\n")
            sys.stdout.flush()
            begin, done, number = time.monotonic(), 0, chosen.round or 0
            while done < chosen.operations:
                before = done
                faulthandler.dump_traceback_later(HANG_S, exit=True)
                try:
                    done += play(backend, chosen.seed, number, Path(directory), chosen.mode)
                except Exception as error:
                    if not chosen.keep_going:
                        raise
                    failures += 1
                    sys.stdout.write(f"{type(error).__name__}: {str(error)[:2000]}\n")
                    sys.stdout.write("".join(f"  {note}\n" for note in error.__notes__))
                    done += 100
                number += 1
                if done // REPORT_EVERY > before // REPORT_EVERY:
                    sys.stdout.write(f"{backend}: {done} operations\n")
                    sys.stdout.flush()
                if chosen.round is not None:
                    break
            faulthandler.cancel_dump_traceback_later()
            took = time.monotonic() - begin
            sys.stdout.write(f"{backend}: {done} operations in {number} rounds, seed "
                             f"{chosen.seed}, {took:.1f} s, {done / took:.0f}/s\n")  # fmt: skip
            sys.stdout.flush()
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
