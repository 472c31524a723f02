# The structs that a request becomes on its way to the disk. All offsets and lengths are bytes.
#
# Positions are int64 because off_t is; 0 <= offset <= end <= 2**63-1 is checked at the boundary
# (_arguments.pyx), so that no code below it needs to think about overflow.

from libc.stdint cimport int64_t, uint32_t


cdef struct Request:
    # One read or write as the plan sees it. Owned by the array that was sorted; lives as long as
    # its batch.
    int64_t offset          # first byte
    int64_t end             # one past the last byte
    int64_t index           # its place in the caller's order: which row is its buffer


cdef struct Extent:
    # One contiguous I/O that a plan asks for. Owned by the plan.
    int64_t offset
    int64_t end
    uint32_t lo             # the first request (place in the planned array) that it carries
    uint32_t hi             # one past the last request that may begin inside it


cdef inline int64_t align_down(int64_t position, int64_t alignment) noexcept nogil:
    # `alignment` is a power of two
    return position & ~(alignment - 1)


cdef inline int64_t align_up(int64_t position, int64_t alignment) noexcept nogil:
    # Saturates instead of passing 2**63-1: a block there can't be read anyway.
    if position > (<int64_t>0x7fffffffffffffff) - (alignment - 1):
        return <int64_t>0x7fffffffffffffff
    return (position + (alignment - 1)) & ~(alignment - 1)
