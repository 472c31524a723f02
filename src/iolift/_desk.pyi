from typing_extensions import disjoint_base

from ._dispatch import DispatchDesk

@disjoint_base
class FileDesk(DispatchDesk):
    def _check(self) -> None: ...
