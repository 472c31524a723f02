"""Many callers at once: threads that start together, and tasks of one event loop.

Starting the callers is not what a bench asks about: threads are started beforehand, wait at a
barrier, and the clock runs from there to the last one's end. A caller's exception is the bench's.
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


def threads(n: int, caller: Callable[[int], object]) -> float:
    """Seconds that `caller(0)` .. `caller(n - 1)` take, each in a thread of its own."""
    barrier = threading.Barrier(n + 1)
    failures: list[BaseException] = []

    def body(i: int) -> None:
        barrier.wait()
        try:
            caller(i)
        except BaseException as error:
            failures.append(error)

    crowd = [threading.Thread(target=body, args=(i,)) for i in range(n)]
    for thread in crowd:
        thread.start()
    barrier.wait()
    began = time.perf_counter()
    for thread in crowd:
        thread.join()
    seconds = time.perf_counter() - began
    if failures:
        raise failures[0]
    return seconds


def tasks(make: Callable[[], list[Coroutine[None, None, object]]], rounds: int = 1) -> float:
    """Seconds that `rounds` gatherings of the coroutines made take, on one fresh event loop."""

    async def main() -> float:
        began = time.perf_counter()
        for _ in range(rounds):
            await asyncio.gather(*make())
        return time.perf_counter() - began

    return asyncio.run(main())
