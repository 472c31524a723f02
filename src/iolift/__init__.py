"""iolift: ask for any bytes, in any order; they are merged, sorted and moved in a few large I/Os.

>>> import iolift
>>> iolift.plan([2, 3, 4, 1], 1)
<Plan: 4 requests in 1 extents, 0 duplicates, bytes asked 4, unique 4, moved 4>
"""

import os as _os

if _os.environ.get("IOLIFT_RECORD"):
    # Before the core: what it still does at exit is saved only by who registered before it.
    from . import recording as recording

from ._coalescer import Coalescer
from ._file import File, open
from ._log import Receipt
from ._plan import Plan, plan
from ._report import Explanation, Stats
from ._ticket import Ticket
from ._together import Files, open_together
from ._version import __version__
from .errors import (
    ForeignJournalError,
    ForkedError,
    JournalDamagedError,
    JournalError,
    OutcomeUnknownError,
    PoisonedError,
    RangeError,
    ShortReadError,
)

__all__ = [
    "Coalescer",
    "Explanation",
    "File",
    "Files",
    "ForeignJournalError",
    "ForkedError",
    "JournalDamagedError",
    "JournalError",
    "OutcomeUnknownError",
    "Plan",
    "PoisonedError",
    "RangeError",
    "Receipt",
    "ShortReadError",
    "Stats",
    "Ticket",
    "__version__",
    "open",
    "open_together",
    "plan",
]
