"""Goal: whatever bytes a journal is made of, the parser neither crashes nor believes nonsense.

    python tests/fuzz_journal.py unpack DIRECTORY   the seeds and the corpus, a file each
    python tests/fuzz_journal.py OPTIONS DIRECTORY  search: libFuzzer's options, guided by coverage
    python tests/fuzz_journal.py pack DIRECTORY     the corpus: as few of them as cover as much

Needs atheris and a build with IOLIFT_BUILD=fuzz (CONTRIBUTING.md says how): Python and the core
then tell libFuzzer where they have been, and the sanitizers watch. What it looks for is in
journal_rules.py. An input that crashes or breaks a rule is left in a file, crash-...; with that
file in place of the directory it is looked at once.
"""

from __future__ import annotations

import hashlib
import os
import random
import shlex
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path


def name_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def unpack(directory: str) -> None:
    from journal_rules import kept, seeds

    Path(directory).mkdir(exist_ok=True)
    for data in seeds() + kept():
        Path(directory, name_of(data)).write_bytes(data)


def pack(directory: str) -> None:
    from journal_rules import CORPUS

    with tempfile.TemporaryDirectory() as few:
        subprocess.run([sys.executable, __file__, "-merge=1", few, directory], check=True)
        inputs = {name_of(data): data for data in map(Path.read_bytes, Path(few).iterdir())}
    with zipfile.ZipFile(CORPUS, "w") as archive:
        for name in sorted(inputs):
            # Without a date: the same inputs are the same archive.
            archive.writestr(zipfile.ZipInfo(name), inputs[name], zipfile.ZIP_DEFLATED)


def search(arguments: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=["iolift"]):
        from journal_rules import MAX_INPUT, forge, look

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        if seed % 2:
            return forge(data, random.Random(seed))[:most]
        return atheris.Mutate(data, most)

    # The first is the command by which libFuzzer runs itself again, in a merge.
    program = f"{shlex.quote(sys.executable)} {shlex.quote(__file__)}"
    options = [program, f"-max_len={MAX_INPUT}", *arguments]
    atheris.Setup(options, look, custom_mutator=mutate)
    atheris.Fuzz()


def begin_again() -> None:
    """The sanitizers, libFuzzer and its way to `mutate` must be in a process before Python is."""
    import atheris
    from atheris import custom_mutator

    libraries = f"{atheris.path()}/asan_with_fuzzer.so {custom_mutator.__file__}"
    if os.environ.get("LD_PRELOAD") == libraries:
        del os.environ["LD_PRELOAD"]  # a merge has a shell as its child, which can't load them
        return
    options = {"PYTHONMALLOC": "malloc", "ASAN_OPTIONS": "detect_leaks=0"}
    environment = {**os.environ, **options, "LD_PRELOAD": libraries}
    os.execve(sys.executable, [sys.executable, *sys.argv], environment)


if __name__ == "__main__":
    begin_again()
    commands = {"unpack": unpack, "pack": pack}
    if len(sys.argv) == 3 and sys.argv[1] in commands:
        commands[sys.argv[1]](sys.argv[2])
    else:
        search(sys.argv[1:])
