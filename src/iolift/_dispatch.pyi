from typing_extensions import disjoint_base

from ._landing import LandingDesk

@disjoint_base
class DispatchDesk(LandingDesk): ...
