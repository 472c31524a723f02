from typing import Any

from typing_extensions import disjoint_base

from ._ticket import Desk

@disjoint_base
class LandingDesk(Desk):
    @property
    def name(self) -> Any: ...
