"""The plan of many blocks that lie close together, without sorting them.

Requests of one length at multiples of at least that length are blocks: two of them are the same or
have no byte in common. So a map with one bit a block says all that a sorted list would.

    1. mark     each request sets the bit of its block
    2. scan     the bits, ascending, are the blocks to be read: extents are made of them by the
                rules of _plan.pyx, and only the bits of blocks that begin an extent stay set
    3. look up  a request is carried by the last extent that begins at its block or before it: as
                many as there are bits up to there, less one

Requests and results are gone through in the caller's order. Only the map is accessed anywhere, and
it is small: 20 bits a block.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset

from ._system cimport iolift_allocate

cdef extern from *:
    int __builtin_ctzll(unsigned long long) noexcept nogil


cdef struct Map:
    # Blocks by their key (see Packing), 64 a word.
    uint64_t* memory            # owned
    uint64_t* bits
    uint64_t* lower             # byte b: how many bits are set in the bytes before b
    uint32_t* before            # how many are set in the words before
    Py_ssize_t words
    uint8_t[256] ones           # how many bits are set in a byte
    uint8_t[8] up_to            # the bits of a byte up to this one


cdef int make_map(Map* map, int key_bits) noexcept nogil:
    cdef int i
    map.words = (<Py_ssize_t>1 << max(key_bits, 6)) // 64
    map.memory = <uint64_t*>iolift_allocate(
        map.words * (2 * sizeof(uint64_t) + sizeof(uint32_t)))
    if map.memory == NULL:
        return -1
    map.bits = map.memory
    map.lower = map.bits + map.words
    map.before = <uint32_t*>(map.lower + map.words)
    memset(map.bits, 0, map.words * sizeof(uint64_t))
    map.ones[0] = 0
    for i in range(1, 256):
        map.ones[i] = map.ones[i >> 1] + (i & 1)
    for i in range(8):
        map.up_to[i] = <uint8_t>((2 << i) - 1)
    return 0


cdef inline uint64_t count_lower(uint64_t bits) noexcept nogil:
    # The bits of each byte are counted by halves (Warren, Hacker's Delight, 5-1), then summed up.
    bits -= bits >> 1 & 0x5555555555555555ULL
    bits = (bits & 0x3333333333333333ULL) + (bits >> 2 & 0x3333333333333333ULL)
    bits = bits + (bits >> 4) & 0x0f0f0f0f0f0f0f0fULL
    return bits * 0x0101010101010101ULL << 8


cdef void mark(Map* map, const int64_t* offsets, Py_ssize_t n,
               const Packing* packing) noexcept nogil:
    cdef int64_t base = packing.base
    cdef int shift = packing.shift
    cdef uint64_t* bits = map.bits
    cdef uint64_t key
    cdef Py_ssize_t i
    for i in range(n):
        key = <uint64_t>(offsets[i] - base) >> shift
        bits[key >> 6] |= <uint64_t>1 << (key & 63)


cdef void scan(Map* map, int64_t length, const Packing* packing, const Rule* rule, int64_t start,
               EvenPlan* plan) noexcept nogil:
    cdef int64_t gap = rule.gap, max_io = rule.max_io, offset = 0, end = 0, begin, moved = 0
    cdef int shift = packing.shift
    cdef Py_ssize_t i, current = -1, pivot = -1, blocks = 0
    cdef uint64_t left, lowest, starts
    for i in range(map.words):
        left = map.bits[i]
        starts = 0
        map.before[i] = <uint32_t>(current + 1)
        while left:
            lowest = left & (~left + 1)
            begin = packing.base + <int64_t>(
                <uint64_t>(64 * i + __builtin_ctzll(left)) << shift)
            left ^= lowest
            blocks += 1
            if current < 0 or begin - end > gap or begin + length - offset > max_io:
                if current >= 0:
                    plan.sizes[current] = end - offset
                moved += end - offset
                starts |= lowest
                current += 1
                plan.places[current] = offset = begin
                if pivot < 0 and begin >= start:
                    pivot = current
            end = begin + length
        map.bits[i] = starts
        map.lower[i] = count_lower(starts)
    plan.sizes[current] = end - offset
    plan.moved = moved + end - offset
    plan.size = current + 1
    plan.pivot = max(pivot, 0)
    plan.unique = blocks * length


cdef void look_up(const Map* map, const int64_t* offsets, Py_ssize_t n, const Packing* packing,
                  int64_t* first) noexcept nogil:
    cdef int64_t base = packing.base
    cdef int shift = packing.shift, byte
    cdef const uint64_t* bits = map.bits
    cdef const uint64_t* lower = map.lower
    cdef const uint32_t* before = map.before
    cdef uint64_t key, word
    cdef Py_ssize_t i
    for i in range(n):
        key = <uint64_t>(offsets[i] - base) >> shift
        word = key >> 6
        byte = key & 56
        first[i] = (<int64_t>before[word] + (lower[word] >> byte & 255)
                    + map.ones[bits[word] >> byte & map.up_to[key & 7]] - 1)


cdef int plan_dense(const int64_t* offsets, int64_t length, Py_ssize_t n, const Packing* packing,
                    const Rule* rule, int64_t start, EvenPlan* plan) noexcept nogil:
    cdef Map map
    if make_map(&map, packing.key_bits) < 0:
        return -1
    mark(&map, offsets, n, packing)
    scan(&map, length, packing, rule, start, plan)
    look_up(&map, offsets, n, packing, plan.first)
    plan.duplicates = n - plan.unique // length
    free(map.memory)
    return 0
