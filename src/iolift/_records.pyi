from collections.abc import Iterable
from typing import Any, final

TYPES: dict[int, str]
LIMITS: dict[str, int]
FLAG_MORE: int
FLAG_END: int

@final
class Entry:
    @property
    def type(self) -> str: ...
    @property
    def sequence(self) -> int: ...
    @property
    def durable(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def target(self) -> int: ...
    @property
    def crc(self) -> int: ...
    @property
    def flags(self) -> int: ...
    @property
    def position(self) -> int: ...
    @property
    def key(self) -> bytes: ...
    @property
    def data_begin(self) -> int: ...
    @property
    def data_end(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def more(self) -> bool: ...

def encode(
    records: Iterable[tuple[str, int, int, bytes, bytes, bool]],
    *,
    sequence: int,
    salt: int,
    durable: int,
    previous: int,
) -> tuple[bytes, int]: ...
def scan(
    data: Any,
    begin: int,
    *,
    sequence: int,
    salt: int,
    durable: int,
    previous: int,
    check_payload: bool = True,
) -> tuple[list[Entry], int, bool]: ...
def voucher(data: Any, begin: int, *, salt: int, lost: int) -> int: ...
def all_zeros(data: Any) -> bool: ...
