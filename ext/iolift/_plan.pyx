"""Planning: which I/Os serve these requests, and in which order.

A plan is a pure function of its arguments. It does no I/O and reads no clock; the kernels below
take no lock and touch no Python object, so whoever owns the arrays may call them without the GIL.

1. Each request is carried by a run of neighbouring extents, which together cover all its bytes.
2. In elevator order extents never overlap: no byte is read twice.
3. No extent is longer than max_io, unless one single request is.
4. Extents ascend from `start`, wrapping once (C-SCAN); a run that carries one request stays whole.
5. A zero-length request is carried by no extent.

        requests, sorted        ====   ====            ====
                                  ======                   ==========
        extents                 ===========            ==============
                                                    ^ gap: joined when it is not wider than that

One pass after the sort (_sort.pyx): O(n). A large plan goes through in blocks, because memory that
is touched for the first time costs more than the work itself. Many requests of one length have a
shorter way (_even.pyx).
"""

import numpy as np

from libc.stdint cimport INT64_MAX, int64_t, uint32_t
from libc.stdlib cimport free, realloc
from libc.string cimport memmove, memset

from ._arguments cimport Ranges, parse_int, parse_ranges
from ._dense cimport is_dense, plan_dense
from ._even cimport EVEN_FROM, EvenPlan, are_disjoint, plan_even
from ._request cimport Extent, Request, align_down, align_up
from ._sort cimport (
    ORDER_ELEVATOR, ORDER_FIFO, Order, Packing, choose_packing, load_requests, parse_order,
)
from ._system cimport iolift_allocate, iolift_prefetch_write


cdef enum:
    PREFETCH = 24               # requests ahead
    BLOCK = 2048                # requests at a time: so many extents, at most, before they leave


# ---------------------------------------------------------------------------------------- merging

cdef void free_extents(ExtentArray* extents) noexcept nogil:
    free(extents.items)
    memset(extents, 0, sizeof(ExtentArray))


cdef int open_extent(ExtentArray* extents, int64_t offset, int64_t end,
                     Py_ssize_t lo) noexcept nogil:
    cdef Py_ssize_t room
    cdef Extent* items
    if extents.size == extents.room:
        room = max(64, 2 * extents.room)
        items = <Extent*>realloc(extents.items, room * sizeof(Extent))
        if items == NULL:
            return -1
        extents.items = items
        extents.room = room
    extents.items[extents.size] = Extent(offset, end, <uint32_t>lo, 0)
    extents.size += 1
    return 0


cdef int add_extent(Merger* merger, int64_t offset, int64_t end, Py_ssize_t lo,
                    bint continued) noexcept nogil:
    # continued: its first request is also carried by the extent before it. The elevator never
    # begins there, so that the extents of one request stay neighbours.
    if not merger.pivot_found and offset >= merger.start and not continued:
        merger.pivot_found = True
        merger.pivot = merger.drained + merger.extents.size
    return open_extent(&merger.extents, offset, end, lo)


cdef Py_ssize_t last_extent_before(const Extent* items, Py_ssize_t lo, Py_ssize_t hi,
                                   int64_t position) noexcept nogil:
    # The last of items[lo:hi], ascending, that begins before `position`; items[lo] does.
    cdef Py_ssize_t middle
    while hi - lo > 1:
        middle = (lo + hi) // 2
        if items[middle].offset < position:
            lo = middle
        else:
            hi = middle
    return lo


cdef void close_run(Merger* merger, Py_ssize_t hi) noexcept nogil:
    # No request from `hi` on has bytes in the extents of this run.
    cdef Py_ssize_t k
    for k in range(merger.run, merger.extents.size):
        merger.extents.items[k].hi = <uint32_t>hi
    merger.run = merger.extents.size


cdef int merge_block(Merger* merger, const Request* requests, Py_ssize_t n, int64_t* first,
                     int64_t* count) noexcept nogil:
    cdef Rule rule = merger.rule
    cdef ExtentArray* extents = &merger.extents
    cdef Py_ssize_t i, carrier, last, current = extents.size - 1
    cdef int64_t begin, end, previous = merger.previous
    cdef Extent extent = extents.items[current] if current >= 0 else Extent(0, 0, 0, 0)
    for i in range(n):
        if first != NULL:
            # Written in the order of offsets, so anywhere: begin to fetch it early.
            iolift_prefetch_write(&first[requests[min(i + PREFETCH, n - 1)].index])
        begin = align_down(requests[i].offset, rule.alignment)
        end = align_up(requests[i].end, rule.alignment)
        # Back to before the last one: only in fifo order.
        if (current < 0 or requests[i].offset < previous
                or (begin > extent.end and begin - extent.end > rule.gap)):
            close_run(merger, merger.seen + i)
            if add_extent(merger, begin, end, merger.seen + i, False) < 0:
                return -1
            current = extents.size - 1
            extent = extents.items[current]
        elif end > extent.end:
            if end - extent.offset <= rule.max_io:
                extents.items[current].end = extent.end = end
            else:
                if add_extent(merger, max(begin, extent.end), end, merger.seen + i,
                              begin < extent.end) < 0:
                    return -1
                current = extents.size - 1
                extent = extents.items[current]
        previous = requests[i].offset
        if first != NULL:
            carrier = current
            if begin < extent.offset:
                carrier = last_extent_before(extents.items, merger.run, current, begin + 1)
                last = current
                if end <= extent.offset:
                    last = last_extent_before(extents.items, carrier, current, end)
                count[requests[i].index] = last - carrier + 1
            first[requests[i].index] = merger.drained + carrier
    merger.previous = previous
    merger.seen += n
    return 0


cdef void end_merge(Merger* merger) noexcept nogil:
    close_run(merger, merger.seen)
    if not merger.pivot_found:
        merger.pivot = 0


# ------------------------------------------------------------------------------------ Python face

cdef class Plan:
    """The extents that serve a set of requests, and which of them carries which request.

    offsets, lengths: int64[m], the extents in dispatch order, bytes.
    first, count: int64[n]; request i is carried by extents first[i] .. first[i] + count[i] - 1.
    bytes_asked: the sum of the requests' lengths. bytes_unique: the size of their union.
    bytes_moved: the sum of the extents' lengths. duplicates: requests equal to an earlier one.
    """
    cdef readonly object offsets, lengths, first
    cdef object _count          # None: all ones, made when somebody asks
    cdef readonly int64_t bytes_asked, bytes_unique, bytes_moved, duplicates

    @property
    def count(self):
        if self._count is None:
            self._count = np.ones(self.first.shape[0], np.int64)
        return self._count

    def __len__(self):
        return self.offsets.shape[0]

    def __repr__(self):
        return (f"<Plan: {self.first.shape[0]} requests in {len(self)} extents, "
                f"{self.duplicates} duplicates, bytes asked {self.bytes_asked}, "
                f"unique {self.bytes_unique}, moved {self.bytes_moved}>")


cdef struct Tally:
    int64_t unique
    int64_t duplicates
    int64_t covered
    Request previous


cdef void tally_block(Tally* tally, const Request* requests, Py_ssize_t n) noexcept nogil:
    # Over requests in elevator order.
    cdef int64_t unique = 0, duplicates = 0, covered = tally.covered
    cdef int64_t offset = tally.previous.offset, end = tally.previous.end
    cdef Py_ssize_t i
    for i in range(n):
        duplicates += requests[i].offset == offset and requests[i].end == end
        offset = requests[i].offset
        end = requests[i].end
        unique += max(end, covered) - max(min(offset, end), covered)
        covered = max(covered, end)
    tally.unique += unique
    tally.duplicates += duplicates
    tally.covered = covered
    tally.previous = Request(offset, end, 0)


cdef void drain(Merger* merger, bint everything, int64_t* offsets,
                int64_t* lengths) noexcept nogil:
    # Takes the extents that no request to come can share to where the plan wants them.
    cdef Py_ssize_t k, n = merger.extents.size if everything else merger.run
    cdef Extent* items = merger.extents.items
    for k in range(n):
        offsets[merger.drained + k] = items[k].offset
        lengths[merger.drained + k] = items[k].end - items[k].offset
    merger.drained += n
    merger.extents.size -= n
    merger.run -= n if not everything else merger.run
    if n:
        memmove(items, items + n, merger.extents.size * sizeof(Extent))


cdef Request* load_all(Ranges ranges, Order order, Py_ssize_t* n) noexcept nogil:
    # To be freed by the caller; NULL when out of memory.
    cdef Request* requests = <Request*>iolift_allocate(ranges.n * sizeof(Request))
    if requests == NULL:
        return NULL
    n[0] = load_requests(ranges.offsets, ranges.lengths, ranges.length, ranges.n, order, requests)
    if n[0] < 0:
        free(requests)
        return NULL
    return requests


cdef int merge_all(Ranges ranges, Order order, Merger* merger, Tally* tally, int64_t* offsets,
                   int64_t* lengths, int64_t* first, int64_t* count) noexcept nogil:
    cdef Py_ssize_t n = 0, i = 0, size
    cdef int status = 0
    cdef Request* requests = load_all(ranges, order, &n)
    if requests == NULL:
        return -1
    while i < n and status == 0:
        size = min(BLOCK, n - i)
        status = merge_block(merger, requests + i, size, first, count)
        if order == ORDER_ELEVATOR:
            tally_block(tally, requests + i, size)
        drain(merger, False, offsets, lengths)
        i += size
    free(requests)
    end_merge(merger)
    drain(merger, True, offsets, lengths)
    if status == 0 and order == ORDER_FIFO:
        requests = load_all(ranges, ORDER_ELEVATOR, &n)
        if requests == NULL:
            return -1
        tally_block(tally, requests, n)
        free(requests)
    return status


cdef void wrap(Plan result, Py_ssize_t pivot, const int64_t* count) except *:
    # From the pivot to the end, then from the beginning to the pivot. count may be NULL: no zeros.
    cdef Py_ssize_t i, m = len(result)
    cdef int64_t[::1] first = result.first
    if pivot == 0:
        return
    result.offsets = np.roll(result.offsets, -pivot)
    result.lengths = np.roll(result.lengths, -pivot)
    for i in range(first.shape[0]):
        if count == NULL or count[i]:
            first[i] -= pivot if first[i] >= pivot else pivot - m


cdef object trim(object array, Py_ssize_t size):
    # A short array must not hold the memory of a long one.
    return array[:size] if 2 * size > array.shape[0] else array[:size].copy()


cdef object make_extents(Py_ssize_t n):
    # Room for the offsets and lengths of n + 1 extents, of which only what is used is ever touched.
    # One allocation, because the C library gives back to the system what is larger than twice the
    # largest so far: taken one by one, the arrays of a plan would be new pages for each plan.
    return np.empty((2, n + 1), np.int64)


cdef void conclude(Plan result, object places, object sizes, Py_ssize_t size, Py_ssize_t pivot,
                   const int64_t* count) except *:
    result.offsets = trim(places, size)
    result.lengths = trim(sizes, size)
    wrap(result, pivot, count)


cdef int plan_any(Plan result, Ranges ranges, object lengths, Order order, const Rule* rule,
                  int64_t start) except -1:
    cdef Merger merger
    cdef Tally tally
    cdef int64_t[::1] places, sizes, first, count
    cdef int status
    memset(&merger, 0, sizeof(merger))
    memset(&tally, 0, sizeof(tally))
    merger.rule = rule[0]
    merger.start = start if order == ORDER_ELEVATOR else 0
    # Most requests have one extent, those of no bytes none.
    result.first, result._count = np.empty(ranges.n, np.int64), np.ones(ranges.n, np.int64)
    if ranges.lengths != NULL or ranges.length == 0:
        result.first[:] = 0
        result._count[np.broadcast_to(np.asarray(lengths) == 0, ranges.n)] = 0
    first, count = result.first, result._count
    places, sizes = make_extents(ranges.n)
    with nogil:
        status = merge_all(ranges, order, &merger, &tally, &places[0], &sizes[0],
                           &first[0] if ranges.n else NULL, &count[0] if ranges.n else NULL)
    free_extents(&merger.extents)
    if status < 0:
        raise MemoryError(f"plan of {ranges.n} requests")
    conclude(result, np.asarray(places), np.asarray(sizes), merger.drained, merger.pivot,
             &count[0] if ranges.n else NULL)
    result.bytes_unique = tally.unique
    result.duplicates = tally.duplicates
    # In the order of arrival extents may overlap, so that no int64 counts what they move.
    if order == ORDER_FIFO and result.lengths.sum(dtype=np.float64) >= <double>INT64_MAX:
        raise ValueError(f"in this order the extents would move 2**63 bytes or more "
                         f"(gap = {rule.gap})")
    result.bytes_moved = int(result.lengths.sum())
    return 0


cdef int plan_many_even(Plan result, Ranges ranges, const Packing* packing, const Rule* rule,
                        int64_t start) except -1:
    # As plan_any, for what plan_even takes.
    cdef EvenPlan plan
    cdef int64_t[::1] places, sizes, first, count
    cdef int status
    first = result.first = np.empty(ranges.n, np.int64)
    places, sizes = make_extents(ranges.n)
    plan.places, plan.sizes, plan.first, plan.count = &places[0], &sizes[0], &first[0], NULL
    cdef bint disjoint = are_disjoint(packing, ranges.length)
    if not disjoint:
        count = result._count = np.ones(ranges.n, np.int64)
        plan.count = &count[0]
    with nogil:
        if disjoint and is_dense(packing, ranges.n):
            status = plan_dense(ranges.offsets, ranges.length, ranges.n, packing, rule, start,
                                &plan)
        else:
            status = plan_even(ranges.offsets, ranges.length, ranges.n, packing, rule, start,
                               &plan)
    if status < 0:
        raise MemoryError(f"plan of {ranges.n} requests")
    conclude(result, np.asarray(places), np.asarray(sizes), plan.size, plan.pivot, plan.count)
    result.bytes_unique = plan.unique
    result.duplicates = plan.duplicates
    result.bytes_moved = plan.moved
    return 0


def plan(offsets, lengths, *, gap=0, max_io=1 << 20, order="elevator", start=0):
    """Plan the I/Os that serve requests for `lengths` bytes at `offsets`.

    offsets: int64[n], bytes, >= 0. lengths: int64[n], or one int for all, bytes, >= 0.
    gap: the widest hole, in bytes, that an extent reads through.
    max_io: no extent is longer, in bytes, unless a single request is.
    order: "elevator" sorts by offset, ascending from `start` and wrapping once; each byte is then
    moved once. "fifo" keeps the order of arrival and joins a request only to the one before it.

    Returns a Plan. Raises TypeError or ValueError, naming argument, index and value, for anything
    that is no integer, is negative, or ends past 2**63-1.

    O(n) time; next to no scratch memory for requests of one length, else 64 bytes a request.
    """
    cdef Ranges ranges = parse_ranges(offsets, lengths, False)
    cdef Order parsed = parse_order(order)
    cdef Rule rule = Rule(parse_int(gap, "gap", 0, INT64_MAX),
                          parse_int(max_io, "max_io", 1, INT64_MAX), 1)
    cdef int64_t begin = parse_int(start, "start", 0, INT64_MAX)
    cdef Plan result = Plan.__new__(Plan)
    cdef Packing packing
    cdef bint is_even = (parsed == ORDER_ELEVATOR and ranges.n >= EVEN_FROM
                         and ranges.lengths == NULL and 0 < ranges.length <= rule.max_io)
    if is_even:
        with nogil:
            packing = choose_packing(ranges.offsets, ranges.n)
        is_even = packing.exact
    if is_even:
        plan_many_even(result, ranges, &packing, &rule, begin)
    else:
        plan_any(result, ranges, lengths, parsed, &rule, begin)
    result.bytes_asked = ranges.total
    return result
