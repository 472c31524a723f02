"""Records the I/O of SQLite at work: makes the trace that `iolift replay` uses when given none.

    python bench/record_sqlite.py [OUT.iolog.gz]        (needs strace; half a minute)

An order desk: customers, products, orders with their lines, and four indices; 44 MB that are built
first, without recording. Then one process works on it under strace: it looks up orders of a
customer, takes orders, changes stock, cancels, and now and then reports on a day. The page cache is
set small (PRAGMA cache_size = -256: 256 KiB instead of 2 MB), so that the program reads pages again
and again, as a program with less cache than data does. Journal: WAL with synchronous = NORMAL and
the default checkpoint at 1000 pages. mmap is off (the default), so every page read is a pread64.

What strace saw - pread64, pwrite64, fsync and fdatasync on the database and its WAL, with time,
offset and the length asked for - is written down unchanged as fio iolog v3: no request is left out,
added or moved. The queries are the same in every recording (a seed); the times are not.
"""

from __future__ import annotations

import argparse
import gzip
import os
import random
import re
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

OUT = Path(__file__).parents[1] / "src" / "iolift" / "data" / "sqlite-orders.iolog.gz"
CUSTOMERS, PRODUCTS, ORDERS, DAYS = 20_000, 5_000, 200_000, 365
TRANSACTIONS = 700

SCHEMA = """
CREATE TABLE customer (id INTEGER PRIMARY KEY, name TEXT, city TEXT, balance INTEGER);
CREATE TABLE product (id INTEGER PRIMARY KEY, name TEXT, price INTEGER, stock INTEGER);
CREATE TABLE orders (id INTEGER PRIMARY KEY, customer INTEGER, day INTEGER, state TEXT, note TEXT);
CREATE TABLE line (orders INTEGER, product INTEGER, quantity INTEGER, price INTEGER);
CREATE INDEX orders_customer ON orders (customer);
CREATE INDEX orders_day ON orders (day);
CREATE INDEX line_orders ON line (orders);
CREATE INDEX line_product ON line (product);
"""


def open_database(path: Path) -> sqlite3.Connection:
    base = sqlite3.connect(path, isolation_level=None)
    for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "mmap_size = 0"):
        base.execute(f"PRAGMA {pragma}")
    return base


def build(path: Path) -> None:
    """The database as it stands when the day begins."""
    rng = random.Random(1)
    base = open_database(path)
    base.executescript("BEGIN;" + SCHEMA)
    base.executemany(
        "INSERT INTO customer VALUES (?, ?, ?, 0)",
        ((i, f"customer {i} {rng.random()}", f"city {i % 300}") for i in range(CUSTOMERS)),
    )
    base.executemany(
        "INSERT INTO product VALUES (?, ?, ?, 1000)",
        ((i, f"product {i} {rng.random()}", rng.randrange(100, 9999)) for i in range(PRODUCTS)),
    )
    for i in range(ORDERS):
        insert_order(base, rng, i, i * DAYS // ORDERS)
    base.execute("COMMIT")
    base.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    base.close()


def insert_order(base: sqlite3.Connection, rng: random.Random, order: int, day: int) -> None:
    customer = int(rng.paretovariate(0.6) * 10) % CUSTOMERS
    base.execute(
        "INSERT INTO orders VALUES (?, ?, ?, 'open', ?)",
        (order, customer, day, "x" * rng.randrange(120)),
    )
    base.executemany(
        "INSERT INTO line VALUES (?, ?, ?, ?)",
        (
            (order, rng.randrange(PRODUCTS), rng.randrange(1, 9), rng.randrange(100, 9999))
            for _ in range(rng.randrange(1, 5))
        ),
    )


def work(path: Path) -> None:
    """The recorded part: a day at the order desk."""
    rng = random.Random(2)
    base = open_database(path)
    base.execute("PRAGMA cache_size = -256")
    order = ORDERS
    for _ in range(TRANSACTIONS):
        dice = rng.random()
        if dice < 0.45:
            look_up(base, rng.randrange(CUSTOMERS))
        elif dice < 0.75:
            base.execute("BEGIN IMMEDIATE")
            insert_order(base, rng, order, DAYS)
            base.execute(
                "UPDATE product SET stock = stock - quantity FROM line "
                "WHERE line.product = product.id AND line.orders = ?",
                (order,),
            )
            base.execute("COMMIT")
            order += 1
        elif dice < 0.9:
            base.execute(
                "UPDATE orders SET state = 'sent' WHERE id BETWEEN ?1 AND ?1 + 20",
                (rng.randrange(ORDERS),),
            )
        elif dice < 0.98:
            gone = rng.randrange(ORDERS)
            base.execute("BEGIN IMMEDIATE")
            base.execute("DELETE FROM line WHERE orders = ?", (gone,))
            base.execute("UPDATE orders SET state = 'cancelled' WHERE id = ?", (gone,))
            base.execute("COMMIT")
        else:
            report(base, rng.randrange(DAYS))
    base.close()


def look_up(base: sqlite3.Connection, customer: int) -> None:
    base.execute(
        "SELECT orders.id, day, name, quantity FROM orders JOIN line ON line.orders = orders.id "
        "JOIN product ON product.id = line.product WHERE customer = ?",
        (customer,),
    ).fetchall()


def report(base: sqlite3.Connection, day: int) -> None:
    base.execute(
        "SELECT product, SUM(quantity * price) FROM orders JOIN line ON line.orders = orders.id "
        "WHERE day = ? GROUP BY product",
        (day,),
    ).fetchall()


def record(folder: Path, log: Path) -> None:
    calls = "trace=pread64,pwrite64,fsync,fdatasync"
    strace = ["strace", "-f", "-y", "-ttt", "-s", "0", "-qq", "-e", calls, "-e", "signal=none"]
    me = [sys.executable, __file__, "--work", os.fspath(folder / "orders.db")]
    subprocess.run([*strace, "-o", os.fspath(log), *me], check=True)


CALL = re.compile(
    r"\d+ +(?P<time>\d+\.\d{6}) (?P<call>\w+)\(\d+<(?P<file>[^>]*)>"
    r"(?:, \"\"(?:\.\.\.)?, (?P<length>\d+), (?P<offset>\d+))?\) += (?P<result>-?\d+)"
)
ACTIONS = {"pread64": "read", "pwrite64": "write", "fsync": "sync", "fdatasync": "datasync"}


def convert(log: Path, folder: Path) -> list[str]:
    """The lines of strace that are about files in `folder`, as fio iolog v3."""
    lines = ["fio version 3 iolog"]
    added: set[str] = set()
    begin: int | None = None
    for text in log.read_text(errors="replace").splitlines():
        call = CALL.match(text)
        if call is None:
            if "exited with" in text:
                continue
            raise SystemExit(f"can't convert this line of strace: {text}")
        if os.path.dirname(call["file"]) != os.fspath(folder):
            continue
        if int(call["result"]) < 0:
            raise SystemExit(f"a call failed while recording: {text}")
        now = int(call["time"].replace(".", ""))
        begin = now if begin is None else begin
        stamp, name = now - begin, os.path.basename(call["file"])
        if name not in added:
            added.add(name)
            lines += [f"{stamp} {name} add", f"{stamp} {name} open"]
        place = f"{call['offset'] or 0} {call['length'] or 0}"
        lines.append(f"{stamp} {name} {ACTIONS[call['call']]} {place}")
    lines += [f"{stamp} {name} close" for name in sorted(added)]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path, default=OUT)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work)
        return
    with tempfile.TemporaryDirectory(prefix="iolift-record-") as name:
        folder = Path(name).resolve() / "database"
        folder.mkdir()
        build(folder / "orders.db")
        print(f"database: {(folder / 'orders.db').stat().st_size / 1e6:.1f} MB")
        record(folder, Path(name) / "strace.log")
        lines = convert(Path(name) / "strace.log", folder)
    packed = gzip.compress("\n".join([*lines, ""]).encode(), 9, mtime=0)
    arguments.out.write_bytes(packed)
    print(f"{arguments.out}: {len(lines)} lines, {len(packed)} bytes")


if __name__ == "__main__":
    main()
