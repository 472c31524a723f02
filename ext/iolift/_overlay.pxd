# Which held writes touch a page of the file. Pure memory work; no Python objects.

from libc.stdint cimport int64_t, uint32_t


cdef enum:
    PAGE_BITS = 12
    # A longer write would have too many entries: such are few, and looked at one by one.
    MAX_INDEXED_PAGES = 64
    NONE = 0xffffffff


cdef struct Entry:
    uint32_t write              # its place among the held writes: the order of submission
    uint32_t older              # the entry of the same page before this one, or NONE


cdef struct PageIndex:
    # A hash table of pages, each the head of a chain of entries, the youngest write first. Zero is
    # an empty one. Owned by a Generation; goes as a whole.
    Entry* entries
    Py_ssize_t size
    Py_ssize_t room
    int64_t* pages              # by slot: a page number, -1 where empty
    uint32_t* heads             # by slot: its youngest entry
    Py_ssize_t slots            # a power of two, or 0
    Py_ssize_t used
    uint32_t* large             # the writes of more pages than that, ascending
    Py_ssize_t large_size
    Py_ssize_t large_room


cdef struct Walk:
    # The writes that may touch one page, from the youngest to the oldest.
    const PageIndex* index
    uint32_t entry
    Py_ssize_t large_left


# The page that holds position. A write [offset, end) of one page: page_of(offset) == page_of(end-1)
cdef inline int64_t page_of(int64_t position) noexcept nogil:
    return position >> PAGE_BITS


# 0, or -1: out of memory, and nothing is changed that a reader of the index would notice.
cdef int index_write(PageIndex* index, uint32_t write, int64_t offset, int64_t end) noexcept nogil
cdef uint32_t youngest(const PageIndex* index, int64_t page) noexcept nogil
cdef void begin_walk(Walk* walk, const PageIndex* index, int64_t page) noexcept nogil
cdef uint32_t next_write(Walk* walk) noexcept nogil         # NONE at the end
cdef void free_index(PageIndex* index) noexcept nogil
