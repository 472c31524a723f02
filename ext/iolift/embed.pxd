# For other Cython modules: requests into extents, in C, without the GIL and without Python objects.
#
# 1. These names are the C interface; what else the .pxd files say may change with any release.
# 2. It is what iolift.plan does: same options, same extents, same order.
# 3. Nothing is kept: who made a plan frees it. Safe from any thread, with or without the GIL.
# 4. O(n) time, at most 64 bytes a request while it plans, 48 an extent afterwards.

from libc.stdint cimport INT64_MAX, UINT32_MAX, int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from ._plan cimport Merger, Rule, end_merge, free_extents, merge_block
from ._request cimport Extent, Request
from ._sort cimport ORDER_ELEVATOR, ORDER_FIFO, Order, load_requests


cdef enum PlanStatus:
    PLANNED = 0
    PLAN_NO_MEMORY = -1
    PLAN_BAD_RANGE = -2     # an offset or length is negative, or ends past 2**63-1
    PLAN_BAD_OPTION = -3    # gap or start < 0, max_io < 1, n < 0 or over 2**32-1


cdef struct PlanOptions:
    int64_t gap             # the widest hole, in bytes, that an extent reads through
    int64_t max_io          # no extent is longer, in bytes, unless a single request is
    int64_t start           # where the elevator begins; it wraps once
    bint fifo               # keep the order of arrival, join a request only to the one before it


cdef struct ExtentPlan:
    Extent* extents         # size of them, in dispatch order: .offset and .end, bytes. free_plan
    Py_ssize_t size


cdef inline PlanOptions plan_defaults() noexcept nogil:
    # Those of iolift.plan.
    return PlanOptions(0, 1 << 20, 0, False)


cdef inline void free_plan(ExtentPlan* plan) noexcept nogil:
    free(plan.extents)
    memset(plan, 0, sizeof(ExtentPlan))


# offsets: n of them, bytes. lengths: as many, or NULL, and then `length` is that of all.
# first, count: room for n each, or both NULL; request i is carried by the extents first[i] ..
# first[i] + count[i] - 1, by none if it has no bytes.
# PLANNED, and the plan is to be freed; or what was wrong, and it is empty.
cdef inline PlanStatus plan_requests(const int64_t* offsets, const int64_t* lengths,
                                     int64_t length, Py_ssize_t n, PlanOptions options,
                                     int64_t* first, int64_t* count,
                                     ExtentPlan* plan) noexcept nogil:
    cdef Merger merger
    cdef Request* requests
    cdef Py_ssize_t i, live, pivot
    cdef int64_t size
    memset(plan, 0, sizeof(ExtentPlan))
    if n < 0 or n > <Py_ssize_t>UINT32_MAX or options.gap < 0 or options.max_io < 1:
        return PLAN_BAD_OPTION
    if options.start < 0 or (first == NULL) != (count == NULL):
        return PLAN_BAD_OPTION
    for i in range(n):
        size = length if lengths == NULL else lengths[i]
        if offsets[i] < 0 or size < 0 or offsets[i] > INT64_MAX - size:
            return PLAN_BAD_RANGE
        if first != NULL:
            first[i] = 0
            count[i] = size > 0
    requests = <Request*>malloc(max(n, 1) * sizeof(Request))
    if requests == NULL:
        return PLAN_NO_MEMORY
    memset(&merger, 0, sizeof(Merger))
    merger.rule = Rule(options.gap, options.max_io, 1)
    merger.start = 0 if options.fifo else options.start
    live = load_requests(offsets, lengths, length, n,
                         ORDER_FIFO if options.fifo else ORDER_ELEVATOR, requests)
    if live < 0 or merge_block(&merger, requests, live, first, count) < 0:
        free(requests)
        free_extents(&merger.extents)
        return PLAN_NO_MEMORY
    free(requests)
    end_merge(&merger)
    pivot = merger.pivot
    if pivot:
        return _from_pivot(&merger, pivot, n, first, count, plan)
    plan.extents, plan.size = merger.extents.items, merger.extents.size
    return PLANNED


cdef inline PlanStatus _from_pivot(Merger* merger, Py_ssize_t pivot, Py_ssize_t n,
                                   int64_t* first, const int64_t* count,
                                   ExtentPlan* plan) noexcept nogil:
    # From where the elevator is to the end, then from the beginning to there.
    cdef Py_ssize_t i, size = merger.extents.size
    cdef Extent* items = merger.extents.items
    cdef Extent* turned = <Extent*>malloc(size * sizeof(Extent))
    if turned == NULL:
        free_extents(&merger.extents)
        return PLAN_NO_MEMORY
    memcpy(turned, items + pivot, (size - pivot) * sizeof(Extent))
    memcpy(turned + size - pivot, items, pivot * sizeof(Extent))
    free_extents(&merger.extents)
    if first != NULL:
        for i in range(n):
            if count[i]:
                first[i] += size - pivot if first[i] < pivot else -pivot
    plan.extents, plan.size = turned, size
    return PLANNED
