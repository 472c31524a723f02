"""PageIndex: from a page of the file to the held writes that touch it, the youngest first.

1. A write of up to MAX_INDEXED_PAGES pages has one entry in the chain of each page it touches; a
   longer one is in `large`, which every walk looks through.
2. Writes are added in the order of their numbers, so chains and `large` descend from the head, and
   a walk is a merge of the two.
3. Nothing is ever taken out: what is cancelled or superseded is passed over by the reader, and an
   index goes as a whole with the generation of writes that it belongs to.

Adding a write is O(pages), a walk O(entries of the page + large writes).
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memset

cdef enum:
    FIRST_SLOTS = 64


cdef inline Py_ssize_t slot_of(const PageIndex* index, int64_t page) noexcept nogil:
    # Fibonacci hashing: neighbours go far apart. Open addressing; the table is never full.
    cdef uint64_t hashed = <uint64_t>page * <uint64_t>0x9e3779b97f4a7c15
    cdef Py_ssize_t slot = <Py_ssize_t>(hashed >> 20) & (index.slots - 1)
    while index.pages[slot] != page and index.pages[slot] != -1:
        slot = (slot + 1) & (index.slots - 1)
    return slot


cdef int grow_table(PageIndex* index) noexcept nogil:
    cdef PageIndex old = index[0]
    cdef Py_ssize_t i, slot
    index.slots = max(FIRST_SLOTS, 2 * old.slots)
    index.pages = <int64_t*>malloc(index.slots * sizeof(int64_t))
    index.heads = <uint32_t*>malloc(index.slots * sizeof(uint32_t))
    if index.pages == NULL or index.heads == NULL:
        free(index.pages)
        free(index.heads)
        index[0] = old
        return -1
    memset(index.pages, 0xff, index.slots * sizeof(int64_t))
    for i in range(old.slots):
        if old.pages[i] != -1:
            slot = slot_of(index, old.pages[i])
            index.pages[slot] = old.pages[i]
            index.heads[slot] = old.heads[i]
    free(old.pages)
    free(old.heads)
    return 0


cdef int make_room(PageIndex* index, Py_ssize_t pages) noexcept nogil:
    # For so many pages more, all of which may be new.
    cdef Py_ssize_t room
    cdef Entry* entries
    if index.size + pages > index.room:
        room = max(64, 2 * index.room, index.size + pages)
        entries = <Entry*>realloc(index.entries, room * sizeof(Entry))
        if entries == NULL:
            return -1
        index.entries = entries
        index.room = room
    while 2 * (index.used + pages) > index.slots:
        if grow_table(index) < 0:
            return -1
    return 0


cdef int add_large(PageIndex* index, uint32_t write) noexcept nogil:
    cdef Py_ssize_t room
    cdef uint32_t* large
    if index.large_size == index.large_room:
        room = max(16, 2 * index.large_room)
        large = <uint32_t*>realloc(index.large, room * sizeof(uint32_t))
        if large == NULL:
            return -1
        index.large = large
        index.large_room = room
    index.large[index.large_size] = write
    index.large_size += 1
    return 0


cdef int index_write(PageIndex* index, uint32_t write, int64_t offset, int64_t end) noexcept nogil:
    cdef int64_t page = page_of(offset), last = page_of(end - 1)
    cdef Py_ssize_t slot
    if last - page >= MAX_INDEXED_PAGES:
        return add_large(index, write)
    if make_room(index, last - page + 1) < 0:
        return -1
    while page <= last:
        slot = slot_of(index, page)
        if index.pages[slot] == -1:
            index.pages[slot] = page
            index.heads[slot] = NONE
            index.used += 1
        index.entries[index.size] = Entry(write, index.heads[slot])
        index.heads[slot] = <uint32_t>index.size
        index.size += 1
        page += 1
    return 0


cdef uint32_t youngest(const PageIndex* index, int64_t page) noexcept nogil:
    # The head of the chain of a page: an entry, or NONE.
    cdef Py_ssize_t slot
    if index.slots == 0:
        return NONE
    slot = slot_of(index, page)
    return NONE if index.pages[slot] == -1 else index.heads[slot]


cdef void begin_walk(Walk* walk, const PageIndex* index, int64_t page) noexcept nogil:
    walk.index = index
    walk.entry = youngest(index, page)
    walk.large_left = index.large_size


cdef uint32_t next_write(Walk* walk) noexcept nogil:
    cdef const PageIndex* index = walk.index
    cdef uint32_t write = NONE
    if walk.entry != NONE:
        write = index.entries[walk.entry].write
    if walk.large_left and (write == NONE or index.large[walk.large_left - 1] > write):
        walk.large_left -= 1
        return index.large[walk.large_left]
    if walk.entry != NONE:
        walk.entry = index.entries[walk.entry].older
    return write


cdef void free_index(PageIndex* index) noexcept nogil:
    free(index.entries)
    free(index.pages)
    free(index.heads)
    free(index.large)
    memset(index, 0, sizeof(PageIndex))
