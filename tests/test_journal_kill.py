"""Goal: a writer that is killed loses nothing that it was told of, two hundred times in a row.

This proves the order of things between processes, not that syncs are made: kill -9 leaves the page
cache alone. That is what the model of a disk is for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import child

if TYPE_CHECKING:
    from pathlib import Path

CODE = """
    import os, random, signal, sys
    from iolift._journal import Journal
    from iolift._storage import DirectoryStorage

    folder, turns = sys.argv[1], int(sys.argv[2])
    chance = random.Random(int(sys.argv[3]))
    fd = os.open(folder + "/data", os.O_RDWR | os.O_CREAT)
    CELL = 512

    def write_back():
        written = journal.checkpointed
        while pending and pending[0][0].state == "received":
            receipt, offset, data = pending.pop(0)
            os.pwrite(fd, data, offset)
            written = receipt.sequence
        return written

    def opened():
        return Journal(DirectoryStorage(folder + "/j"), [fd], write_back=write_back,
                       segment_bytes=1 << 16, max_bytes=1 << 18, background=False)

    def work(number):
        while True:
            group = []
            for _ in range(chance.randint(1, 5)):
                number += 1
                cell = number % 16
                data = number.to_bytes(8, "little") * (CELL // 8)
                receipt = journal.write(0, cell * CELL, data)
                pending.append((receipt, cell * CELL, data))
                group.append((receipt, number))
            for receipt, number in group:
                receipt.wait()
                os.write(say, number.to_bytes(8, "little"))
            if chance.random() < 0.2:
                journal.checkpoint(write_back())

    last = 0
    for turn in range(turns):
        hear, say = os.pipe()
        wanted = chance.randint(1, 40)
        pid = os.fork()
        if pid == 0:
            os.close(hear)
            chance = random.Random(turn)
            pending = []
            journal = opened()
            work(last)
        os.close(say)
        told = b""
        while len(told) < 8 * wanted:
            told += os.read(hear, 8 * wanted)
        os.kill(pid, signal.SIGKILL)
        while part := os.read(hear, 4096):
            told += part
        os.waitpid(pid, 0)
        os.close(hear)
        received = int.from_bytes(told[len(told) // 8 * 8 - 8:len(told) // 8 * 8], "little")
        assert received > last
        pending = []
        journal = opened()
        cells = os.pread(fd, 16 * CELL, 0)
        numbers = [int.from_bytes(cells[i * CELL:][:8], "little") for i in range(16)]
        last = max(numbers)
        # All cells are whole, and as after request `last`, which is no older than the receipt.
        assert last >= received, (last, received)
        for cell in range(16):
            number = last - (last - cell) % 16
            whole = max(number, 0).to_bytes(8, "little") * (CELL // 8)
            assert cells[cell * CELL:(cell + 1) * CELL].ljust(CELL, b"\\0") == whole, cell
        journal.close()
    print(turns, "kills")
"""


def test_kills(tmp_path: Path) -> None:
    assert child.run(CODE, tmp_path, 200, 1) == "200 kills\n"
