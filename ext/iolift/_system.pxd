# _system.h for Cython. Nothing here takes the GIL or raises.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void* iov_base
        size_t iov_len


cdef extern from "_system.h" nogil:
    enum:
        O_DIRECT

    cdef struct iolift_sqe:
        uint8_t opcode
        uint8_t flags
        uint16_t ioprio
        int32_t fd
        uint64_t off
        uint64_t addr
        uint32_t len
        uint32_t op_flags
        uint64_t user_data

    cdef struct iolift_cqe:
        uint64_t user_data
        int32_t res
        uint32_t flags

    cdef struct iolift_sq_offsets "struct { uint32_t x; }":
        uint32_t head, tail, ring_mask, ring_entries, flags, dropped, array

    cdef struct iolift_cq_offsets "struct { uint32_t y; }":
        uint32_t head, tail, ring_mask, ring_entries, overflow, cqes, flags

    cdef struct iolift_ring_params:
        uint32_t sq_entries, cq_entries, flags, features
        iolift_sq_offsets sq_off
        iolift_cq_offsets cq_off

    cdef struct iolift_getevents:
        uint64_t sigmask
        uint32_t sigmask_size
        uint32_t min_wait_usec
        uint64_t timespec

    cdef struct iolift_timespec:
        int64_t seconds
        int64_t nanoseconds

    enum:
        IOLIFT_OP_READV
        IOLIFT_OP_WRITEV
        IOLIFT_OP_FSYNC
        IOLIFT_OP_READ
        IOLIFT_OP_WRITE
        IOLIFT_FSYNC_DATASYNC
        IOLIFT_SETUP_CQSIZE
        IOLIFT_SETUP_COOP_TASKRUN
        IOLIFT_FEATURE_SINGLE_MMAP
        IOLIFT_FEATURE_NODROP
        IOLIFT_FEATURE_EXT_ARG
        IOLIFT_ENTER_GETEVENTS
        IOLIFT_ENTER_EXT_ARG
        IOLIFT_OFFSET_SQ_RING
        IOLIFT_OFFSET_SQES

    int iolift_ring_setup(uint32_t entries, iolift_ring_params* params)
    int iolift_ring_enter(int fd, uint32_t submit, uint32_t complete, uint32_t flags,
                          void* argument, size_t size)
    uint32_t iolift_load_acquire(const uint32_t* p)
    void iolift_store_release(uint32_t* p, uint32_t value)
    uint32_t iolift_add(uint32_t* p, int32_t value)
    int iolift_direct_alignment(int fd, uint32_t* memory, uint32_t* offset)
    int64_t iolift_read_cached(int fd, void* memory, size_t size, int64_t offset)
    int iolift_datasync(int fd)
    int iolift_set_direct(int fd, int direct)
    int64_t iolift_now_ns()
    int iolift_bit_length(uint64_t value)
    void iolift_pause_ns(int64_t ns)
    void* iolift_allocate(size_t size)
    void iolift_prefetch_write(const void* p)
    void iolift_watch_forks()
    uint32_t iolift_generation()
