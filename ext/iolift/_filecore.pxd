# An open file and the calls on it.

from libc.stdint cimport int64_t

from ._arguments cimport Buffer
from ._backend cimport Kind
from ._bulk cimport BulkDesk
from ._coalescer cimport Coalescer
from ._costs cimport Costs
from ._ticket cimport Ticket


cdef class FileCore(BulkDesk):
    cdef readonly Coalescer coalescer
    cdef readonly bint readable, writable, direct
    cdef Costs costs                # of its device; None: the gap is fixed
    cdef bint is_closed
    cdef bint is_draining           # close waits for the last ticket, and closes the descriptor
    cdef bint reads_blocks          # a small read is done by way of aligned blocks
    cdef bint owns_descriptor
    cdef Py_ssize_t active          # calls under way; the last one out closes the descriptor
    cdef object __weakref__
    cdef int hold_open(self, Kind kind) except -1
    cdef int release(self) except -1
    cdef int finish(self) except -1
    cdef Ticket ticket_for(self, object data, object offset)
    cdef int check_request(self, int64_t size, object offset) except -1
    cdef int check_key(self, object key) except -1
    cpdef object pread(self, object n, object offset)
    cpdef object pwrite(self, object data, object offset)
    cdef Ticket submit_write(self, object data, object offset, object key)
    cpdef Ticket submit_sync(self)
    cdef int64_t read_into(self, Buffer memory, object offset) except -1
    cdef int64_t write_from(self, Buffer memory, object offset) except -1


# What a held write keeps: the caller's bytes, which never change, or a copy.
cdef object keep(object data)
