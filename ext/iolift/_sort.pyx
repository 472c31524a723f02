"""Sorting: requests into planning order.

1. Elevator order is by offset, then the longest first, then by index; fifo is by index.
2. Requests of no bytes are left out.
3. Nothing is ever quadratic.

For many, a least-significant-digit radix sort on words that hold offset and index together
(Knuth, TAOCP 3, 5.2.5), O(n) as long as offsets vary in fewer than 64 - log2(n) bits, which is
every file below 2**44 bytes at a million requests. What does not fit in a word, and requests of
different lengths at one offset, are put right by a comparison sort of the run of equal words,
O(n log n). For few, an insertion sort.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset

from ._request cimport Request
from ._system cimport iolift_allocate


cdef enum:
    FEW = 64                    # up to here insertion sort beats everything
    DIGIT_BITS_SMALL = 8        # 256 counters a pass stay in the first-level cache
    DIGIT_BITS = 12             # 4096: fewer passes, worth it when there is much to sort
    DIGIT_THRESHOLD = 1 << 13
    SPARSE_BITS = 8             # keys so much wider than indices cost more passes than a look


cdef inline bint is_before(const Request* a, const Request* b) noexcept nogil:
    # The longest of those that begin together comes first: it carries the others.
    if a.offset != b.offset:
        return a.offset < b.offset
    if a.end != b.end:
        return a.end > b.end
    return a.index < b.index


cdef inline bint is_older(const Request* a, const Request* b) noexcept nogil:
    return a.index < b.index or (a.index == b.index and a.offset < b.offset)


ctypedef bint (*Comparison)(const Request*, const Request*) noexcept nogil


cdef void insertion_sort(Request* requests, Py_ssize_t n, Comparison before) noexcept nogil:
    cdef Py_ssize_t i, j
    cdef Request current
    for i in range(1, n):
        current = requests[i]
        j = i
        while j > 0 and before(&current, &requests[j - 1]):
            requests[j] = requests[j - 1]
            j -= 1
        requests[j] = current


cdef void sift_down(Request* heap, Py_ssize_t root, Py_ssize_t n,
                    Comparison before) noexcept nogil:
    cdef Request moving = heap[root]
    cdef Py_ssize_t child = 2 * root + 1
    while child < n:
        if child + 1 < n and before(&heap[child], &heap[child + 1]):
            child += 1
        if not before(&moving, &heap[child]):
            break
        heap[root] = heap[child]
        root = child
        child = 2 * root + 1
    heap[root] = moving


cdef void comparison_sort(Request* requests, Py_ssize_t n, Comparison before) noexcept nogil:
    # Heapsort: in place and never quadratic, whatever somebody sends.
    cdef Py_ssize_t i
    cdef Request top
    if n <= FEW:
        insertion_sort(requests, n, before)
        return
    for i in range(n // 2 - 1, -1, -1):
        sift_down(requests, i, n, before)
    for i in range(n - 1, 0, -1):
        top = requests[0]
        requests[0] = requests[i]
        requests[i] = top
        sift_down(requests, 0, i, before)


cdef void sort_by_index(Request* requests, Py_ssize_t n) noexcept nogil:
    comparison_sort(requests, n, is_older)


cdef int choose_digit(Py_ssize_t n) noexcept nogil:
    return DIGIT_BITS if n >= DIGIT_THRESHOLD else DIGIT_BITS_SMALL


cdef int radix_sort(uint64_t** words, uint64_t** spare, uint32_t* counts, Py_ssize_t n,
                    int low_bit, int high_bit) noexcept nogil:
    # Sorts by bits [low_bit, high_bit), stable. The result is in *words; both may be swapped.
    # counts: room for MAX_PASSES << choose_digit(n) or more, not on the stack, which may be small.
    cdef int digit_bits = choose_digit(n), row_bits = digit_bits
    cdef int passes = (high_bit - low_bit + digit_bits - 1) // digit_bits
    cdef uint32_t total, here
    cdef uint32_t* places
    cdef uint64_t mask, word
    cdef uint64_t* source = words[0]
    cdef uint64_t* target = spare[0]
    cdef Py_ssize_t i
    cdef int p, shift
    if passes == 0:
        return 0
    digit_bits = (high_bit - low_bit + passes - 1) // passes
    mask = (<uint64_t>1 << digit_bits) - 1
    memset(counts, 0, (sizeof(uint32_t) * passes) << row_bits)
    for i in range(n):
        word = source[i] >> low_bit
        for p in range(passes):
            counts[(<uint64_t>p << row_bits) + (word & mask)] += 1
            word >>= digit_bits
    for p in range(passes):
        total = 0
        places = counts + (<Py_ssize_t>p << row_bits)
        for i in range(<Py_ssize_t>mask + 1):
            here = places[i]
            places[i] = total
            total += here
        shift = low_bit + p * digit_bits
        for i in range(n):
            word = source[i]
            here = <uint32_t>((word >> shift) & mask)
            target[places[here]] = word
            places[here] += 1
        source, target = target, source
    words[0] = source
    spare[0] = target
    return 0


cdef inline int bit_length(uint64_t value) noexcept nogil:
    cdef int bits = 0
    while value:
        value >>= 1
        bits += 1
    return bits


cdef struct Words:
    Packing packing
    uint64_t* memory            # owned
    uint64_t* items             # in memory: the sorted half
    Py_ssize_t size


cdef Packing choose_packing(const int64_t* offsets, Py_ssize_t n) noexcept nogil:
    # Ands and ors, because a compiler makes vectors of them, unlike of 64-bit comparisons.
    cdef Packing packing
    cdef int64_t lowest = offsets[0], highest = offsets[0]
    cdef uint64_t all_ones = <uint64_t>offsets[0], any_ones = 0, varying
    cdef Py_ssize_t i
    for i in range(n):
        all_ones &= <uint64_t>offsets[i]
        any_ones |= <uint64_t>offsets[i]
    varying = all_ones ^ any_ones
    packing.base = <int64_t>all_ones
    packing.shift = 0
    while varying and not varying & 1:
        varying >>= 1
        packing.shift += 1
    packing.index_bits = bit_length(<uint64_t>(n - 1))
    packing.key_bits = bit_length(varying)
    if packing.key_bits > packing.index_bits + SPARSE_BITS:
        # Perhaps only because a power of two lies between them: offsets that agree in their low
        # bits differ from the lowest one by multiples as well.
        for i in range(n):
            lowest = min(lowest, offsets[i])
            highest = max(highest, offsets[i])
        packing.base = lowest
        packing.key_bits = bit_length(<uint64_t>(highest - lowest) >> packing.shift)
    packing.exact = packing.key_bits + packing.index_bits <= 64
    if not packing.exact:
        packing.shift += packing.key_bits + packing.index_bits - 64
        packing.key_bits = 64 - packing.index_bits
    return packing


cdef int sort_words(Words* words, const int64_t* offsets, const int64_t* lengths,
                    Py_ssize_t n) noexcept nogil:
    # The words of all requests that ask for bytes, sorted. 0, or -1: out of memory.
    cdef Packing packing = choose_packing(offsets, n)
    cdef uint64_t* spare
    cdef Py_ssize_t i, live = 0
    words.packing = packing
    words.memory = <uint64_t*>iolift_allocate(
        2 * n * sizeof(uint64_t) + ((sizeof(uint32_t) * MAX_PASSES) << choose_digit(n)))
    if words.memory == NULL:
        return -1
    words.items = words.memory
    spare = words.memory + n
    for i in range(n):
        words.items[live] = <uint64_t>i | (
            <uint64_t>(offsets[i] - packing.base) >> packing.shift << packing.index_bits)
        live += lengths == NULL or lengths[i] != 0
    words.size = live
    radix_sort(&words.items, &spare, <uint32_t*>(words.memory + 2 * n), live, packing.index_bits,
               packing.index_bits + packing.key_bits)
    return 0


cdef void unpack_exact(const Words* words, Py_ssize_t position, Py_ssize_t n, int64_t length,
                       Request* requests) noexcept nogil:
    cdef Packing packing = words.packing
    cdef uint64_t mask = (<uint64_t>1 << packing.index_bits) - 1
    cdef const uint64_t* items = words.items + position
    cdef Py_ssize_t i
    for i in range(n):
        requests[i].offset = packing.base + <int64_t>(
            items[i] >> packing.index_bits << packing.shift)
        requests[i].end = requests[i].offset + length
        requests[i].index = <int64_t>(items[i] & mask)


cdef Py_ssize_t load_sorted(const int64_t* offsets, const int64_t* lengths, int64_t length,
                            Py_ssize_t n, Request* requests) noexcept nogil:
    cdef Words words
    cdef uint64_t mask
    cdef Py_ssize_t i
    cdef int64_t index
    if sort_words(&words, offsets, lengths, n) < 0:
        return -1
    if lengths == NULL and words.packing.exact:
        unpack_exact(&words, 0, words.size, length, requests)
    else:
        mask = (<uint64_t>1 << words.packing.index_bits) - 1
        for i in range(words.size):
            index = <int64_t>(words.items[i] & mask)
            requests[i] = Request(offsets[index], offsets[index] + (
                length if lengths == NULL else lengths[index]), index)
        sort_ties(requests, words.size, words.packing.base, words.packing.shift)
    free(words.memory)
    return words.size


cdef void sort_ties(Request* requests, Py_ssize_t n, int64_t base, int shift) noexcept nogil:
    # Words know no lengths, and sometimes not all of the offset: order each run of equal words.
    # The low `shift` bits are what the words left out.
    cdef Py_ssize_t i = 0, j
    cdef int64_t key
    cdef bint ordered
    while i < n:
        key = (requests[i].offset - base) >> shift
        j = i + 1
        ordered = True
        while j < n and (requests[j].offset - base) >> shift == key:
            ordered = ordered and is_before(&requests[j - 1], &requests[j])
            j += 1
        if not ordered:
            comparison_sort(requests + i, j - i, is_before)
        i = j


cdef Py_ssize_t load_requests(const int64_t* offsets, const int64_t* lengths, int64_t length,
                              Py_ssize_t n, Order order, Request* requests) noexcept nogil:
    # Fills `requests` (room for n) with those that ask for bytes, in planning order.
    # lengths may be NULL: `length` serves all. Returns how many, or -1: out of memory.
    cdef Py_ssize_t i, live = 0
    cdef int64_t size = length
    if n == 0 or (lengths == NULL and length == 0):
        return 0
    if order == ORDER_ELEVATOR and n > FEW:
        return load_sorted(offsets, lengths, length, n, requests)
    for i in range(n):
        if lengths != NULL:
            size = lengths[i]
        if size:
            requests[live].offset = offsets[i]
            requests[live].end = offsets[i] + size
            requests[live].index = i
            live += 1
    if order == ORDER_ELEVATOR:
        insertion_sort(requests, live, is_before)
    return live


cdef Order parse_order(object name) except *:
    if name == "elevator":
        return ORDER_ELEVATOR
    if name == "fifo":
        return ORDER_FIFO
    raise ValueError(f"order must be 'elevator' or 'fifo', not {name!r}")
