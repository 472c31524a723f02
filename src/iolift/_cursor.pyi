from typing_extensions import disjoint_base

from ._filecore import FileCore

@disjoint_base
class Cursor:
    def __init__(
        self, core: FileCore, position: int, *, appends: bool, is_write_behind: bool
    ) -> None: ...
    def flush(self) -> None: ...
