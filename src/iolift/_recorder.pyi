from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import disjoint_base

@disjoint_base
class Recorder:
    @property
    def capacity(self) -> int: ...
    @property
    def began_ns(self) -> int: ...
    @property
    def began_at(self) -> float: ...
    def rows(
        self, request: np.dtype[Any], io: np.dtype[Any]
    ) -> tuple[NDArray[Any], NDArray[Any], tuple[str, ...], int, int]: ...
