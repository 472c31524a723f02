from typing import Any

from typing_extensions import disjoint_base

from ._ticket import Desk

@disjoint_base
class FileDesk(Desk):
    @property
    def name(self) -> Any: ...
    def _check(self) -> None: ...

def check(self: FileDesk) -> None: ...
