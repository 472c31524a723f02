"""The plan of many requests of one length: pages, records, rows.

The rules are those of a merge of the sorted requests (_plan.pyx), and so is the result. What is
different is the way, because most of what a large plan costs is memory that is far away:

    offsets --partition--> buckets of words --sort a bucket--> --merge it--> extents
             highest bits                     in the cache      still there

1. Requests of one length that ascend by offset ascend by end: a request is carried by the extent
   that is being made, or by that and the one before it, never by an older one.
2. Each word is moved through far memory once. Equal words keep their order, which is that of the
   indices, since an index is the low end of its word.
3. The words lie where the lengths of the extents will: the extents before word i are at most i, so
   a length is written only over words that have been read. There is no other scratch memory than
   that of one bucket.
4. Nothing is quadratic: a bucket that holds everything is sorted as _sort.pyx does it.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from ._sort cimport MAX_PASSES, Packing, choose_digit, radix_sort
from ._system cimport iolift_allocate, iolift_prefetch_write


cdef enum:
    BUCKET_BITS = 10            # 1024 words, and as many to sort them into: the first-level cache
    MAX_PARTITION_BITS = 11     # more places to write to at once than that are slow
    MAX_DIGIT_BITS = 10         # in a bucket
    FEW = 32                    # words: insertion sort
    AHEAD = 32                  # words: what they will write to is fetched meanwhile


cdef struct Merge:
    # A merge under way.
    EvenPlan* plan
    int64_t base
    int shift
    int index_bits
    int64_t length
    int64_t gap
    int64_t max_io
    int64_t start
    int64_t offset              # of the extent that is being made
    int64_t end
    int64_t previous            # where the last request began


cdef int choose_partition(const Packing* packing) noexcept nogil:
    # How many of the highest bits of the key choose the bucket.
    return max(0, min(min(packing.key_bits, packing.index_bits - BUCKET_BITS), MAX_PARTITION_BITS))


cdef void partition(const int64_t* offsets, Py_ssize_t n, const Packing* packing, int bits,
                    uint32_t* ends, uint64_t* words) noexcept nogil:
    # ends: room for 1 << bits; on return the place after each bucket's last word.
    cdef int64_t base = packing.base
    cdef int shift = packing.shift, index_bits = packing.index_bits
    cdef int low_bits = packing.key_bits - bits
    cdef uint32_t total = 0, here
    cdef uint64_t key, bucket
    cdef Py_ssize_t i
    memset(ends, 0, sizeof(uint32_t) << bits)
    for i in range(n):
        ends[<uint64_t>(offsets[i] - base) >> shift >> low_bits] += 1
    for i in range(<Py_ssize_t>1 << bits):
        here = ends[i]
        ends[i] = total
        total += here
    for i in range(n):
        key = <uint64_t>(offsets[i] - base) >> shift
        bucket = key >> low_bits
        words[ends[bucket]] = <uint64_t>i | key << index_bits
        ends[bucket] += 1


cdef void sort_few(uint64_t* words, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i, j
    cdef uint64_t word
    for i in range(1, n):
        word = words[i]
        j = i
        while j > 0 and word < words[j - 1]:
            words[j] = words[j - 1]
            j -= 1
        words[j] = word


cdef void sort_two_digits(uint64_t* words, uint64_t* spare, uint32_t* counts, Py_ssize_t n,
                          int low_bit, int bits) noexcept nogil:
    # By `bits` bits from low_bit on, stable, in place. radix_sort for the common case: without
    # its inner loop over the passes it takes half the time.
    cdef int digit_bits = (bits + 1) // 2
    cdef int high_bit = low_bit + digit_bits
    cdef uint64_t mask = (<uint64_t>1 << digit_bits) - 1
    cdef uint32_t* low_counts = counts
    cdef uint32_t* high_counts = counts + (<Py_ssize_t>1 << digit_bits)
    cdef uint32_t low_total = 0, high_total = 0, here
    cdef uint64_t word, digit
    cdef Py_ssize_t i
    memset(counts, 0, (2 * sizeof(uint32_t)) << digit_bits)
    for i in range(n):
        low_counts[words[i] >> low_bit & mask] += 1
        high_counts[words[i] >> high_bit & mask] += 1
    for i in range(<Py_ssize_t>mask + 1):
        here = low_counts[i]
        low_counts[i] = low_total
        low_total += here
        here = high_counts[i]
        high_counts[i] = high_total
        high_total += here
    for i in range(n):
        word = words[i]
        digit = word >> low_bit & mask
        spare[low_counts[digit]] = word
        low_counts[digit] += 1
    for i in range(n):
        word = spare[i]
        digit = word >> high_bit & mask
        words[high_counts[digit]] = word
        high_counts[digit] += 1


cdef const uint64_t* sort_bucket(uint64_t* words, uint64_t* spare, uint32_t* counts, Py_ssize_t n,
                                 int low_bit, int bits) noexcept nogil:
    # Returns where the sorted words are: one of the two.
    if n <= FEW:
        sort_few(words, n)
    elif 0 < bits <= 2 * MAX_DIGIT_BITS:
        sort_two_digits(words, spare, counts, n, low_bit, bits)
    else:
        radix_sort(&words, &spare, counts, n, low_bit, low_bit + bits)
    return words


cdef void begin_merge(Merge* merge, int64_t offset) noexcept nogil:
    # offset: of the first request.
    cdef EvenPlan* plan = merge.plan
    plan.size = 1
    plan.pivot = 0 if offset >= merge.start else -1
    plan.unique = plan.duplicates = plan.moved = 0
    plan.places[0] = merge.offset = offset
    merge.end = offset + merge.length
    merge.previous = offset - merge.length      # so that all of the first request is new


cdef void merge_bucket(Merge* merge, const uint64_t* words, Py_ssize_t n) noexcept nogil:
    # Everything in locals: the compiler can't know that the arrays don't overlap `merge`.
    cdef EvenPlan* plan = merge.plan
    cdef int64_t base = merge.base, length = merge.length, gap = merge.gap, max_io = merge.max_io
    cdef int64_t offset = merge.offset, end = merge.end, previous = merge.previous
    cdef int64_t unique = plan.unique, duplicates = plan.duplicates, begin
    cdef int shift = merge.shift, index_bits = merge.index_bits
    cdef uint64_t mask = (<uint64_t>1 << index_bits) - 1
    cdef int64_t* first = plan.first
    cdef Py_ssize_t i, current = plan.size - 1
    for i in range(n):
        # Written in the order of offsets, so anywhere.
        iolift_prefetch_write(&first[words[min(i + AHEAD, n - 1)] & mask])
        begin = base + <int64_t>(words[i] >> index_bits << shift)
        duplicates += begin == previous
        unique += min(begin - previous, length)
        previous = begin
        if begin - end > gap or begin + length - offset > max_io:
            plan.sizes[current] = end - offset
            plan.moved += end - offset
            current += 1
            offset = max(begin, end)
            plan.places[current] = offset
            # The elevator never begins at an extent whose first request the one before has, too.
            if plan.pivot < 0 and begin >= end and offset >= merge.start:
                plan.pivot = current
        end = begin + length
        first[words[i] & mask] = current - (begin < offset)
        if begin < offset:
            plan.count[words[i] & mask] = 2
    merge.offset = offset
    merge.end = end
    merge.previous = previous
    plan.unique = unique
    plan.duplicates = duplicates
    plan.size = current + 1


cdef void end_merge(Merge* merge) noexcept nogil:
    cdef EvenPlan* plan = merge.plan
    plan.sizes[plan.size - 1] = merge.end - merge.offset
    plan.moved += merge.end - merge.offset
    plan.pivot = max(plan.pivot, 0)


cdef int merge_buckets(Merge* merge, const Packing* packing, const uint32_t* ends,
                       int bits) noexcept nogil:
    cdef uint64_t* words = <uint64_t*>merge.plan.sizes
    cdef const uint64_t* ordered
    cdef uint32_t begin = 0, n, largest = 0
    cdef uint64_t* spare
    cdef uint32_t* counts
    cdef Py_ssize_t bucket
    for bucket in range(<Py_ssize_t>1 << bits):
        largest = max(largest, ends[bucket] - begin)
        begin = ends[bucket]
    spare = <uint64_t*>iolift_allocate(largest * sizeof(uint64_t) + (
        sizeof(uint32_t) * max(2 << MAX_DIGIT_BITS, MAX_PASSES << choose_digit(largest))))
    if spare == NULL:
        return -1
    counts = <uint32_t*>(spare + largest)
    begin = 0
    for bucket in range(<Py_ssize_t>1 << bits):
        n = ends[bucket] - begin
        if n:
            ordered = sort_bucket(words + begin, spare, counts, n, packing.index_bits,
                                  packing.key_bits - bits)
            if begin == 0:
                begin_merge(merge, merge.base + <int64_t>(
                    ordered[0] >> packing.index_bits << packing.shift))
            merge_bucket(merge, ordered, n)
        begin = ends[bucket]
    end_merge(merge)
    free(spare)
    return 0


cdef int plan_even(const int64_t* offsets, int64_t length, Py_ssize_t n, const Packing* packing,
                   const Rule* rule, int64_t start, EvenPlan* plan) noexcept nogil:
    cdef Merge merge = Merge(plan, packing.base, packing.shift, packing.index_bits, length,
                             rule.gap, rule.max_io, start, 0, 0, 0)
    cdef int bits = choose_partition(packing)
    cdef uint32_t* ends = <uint32_t*>malloc(sizeof(uint32_t) << bits)
    cdef int status = -1
    if ends != NULL:
        partition(offsets, n, packing, bits, ends, <uint64_t*>plan.sizes)
        status = merge_buckets(&merge, packing, ends, bits)
    free(ends)
    return status
