/* The system calls that the C library does not wrap, and the parts of the io_uring ABI in use.
 *
 * Declared here, from the kernel's documented ABI (io_uring_setup(2), io_uring_enter(2),
 * statx(2)), because a build must need nothing but a C compiler: distributions ship these headers
 * late or not at all. Struct layouts never change; new kernels only use reserved fields.
 */
#ifndef IOLIFT_SYSTEM_H
#define IOLIFT_SYSTEM_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#ifndef O_DIRECT
#define O_DIRECT 0
#endif

/* ------------------------------------------------------------------------------ io_uring ABI */

struct iolift_sqe {
    uint8_t opcode;
    uint8_t flags;
    uint16_t ioprio;
    int32_t fd;
    uint64_t off;
    uint64_t addr;
    uint32_t len;
    uint32_t op_flags;
    uint64_t user_data;
    uint64_t reserved[3];
};

struct iolift_cqe {
    uint64_t user_data;
    int32_t res;
    uint32_t flags;
};

struct iolift_ring_params {
    uint32_t sq_entries, cq_entries, flags, sq_thread_cpu, sq_thread_idle, features, wq_fd;
    uint32_t reserved[3];
    struct {
        uint32_t head, tail, ring_mask, ring_entries, flags, dropped, array, reserved;
        uint64_t user_addr;
    } sq_off;
    struct {
        uint32_t head, tail, ring_mask, ring_entries, overflow, cqes, flags, reserved;
        uint64_t user_addr;
    } cq_off;
};

struct iolift_getevents {
    uint64_t sigmask;
    uint32_t sigmask_size;
    uint32_t min_wait_usec;
    uint64_t timespec;
};

struct iolift_timespec {
    int64_t seconds;
    int64_t nanoseconds;
};

enum {
    IOLIFT_OP_READV = 1,
    IOLIFT_OP_WRITEV = 2,
    IOLIFT_OP_FSYNC = 3,
    IOLIFT_OP_READ = 22,
    IOLIFT_OP_WRITE = 23,
    IOLIFT_FSYNC_DATASYNC = 1,
    IOLIFT_SETUP_CQSIZE = 1 << 3,
    IOLIFT_SETUP_COOP_TASKRUN = 1 << 8,
    IOLIFT_FEATURE_SINGLE_MMAP = 1 << 0,
    IOLIFT_FEATURE_NODROP = 1 << 1,
    IOLIFT_FEATURE_EXT_ARG = 1 << 8,
    IOLIFT_ENTER_GETEVENTS = 1 << 0,
    IOLIFT_ENTER_EXT_ARG = 1 << 3,
    IOLIFT_OFFSET_SQ_RING = 0,
    IOLIFT_OFFSET_SQES = 0x10000000
};

/* Both return >= 0, or -errno. */
static inline int iolift_ring_setup(uint32_t entries, struct iolift_ring_params *params)
{
#if defined(__linux__)
    int fd = (int)syscall(425, (long)entries, params);
    return fd < 0 ? -errno : fd;
#else
    (void)entries; (void)params;
    return -ENOSYS;
#endif
}

static inline int iolift_ring_enter(int fd, uint32_t submit, uint32_t complete, uint32_t flags,
                                    void *argument, size_t size)
{
#if defined(__linux__)
    long n = syscall(426, (long)fd, (long)submit, (long)complete, (long)flags, argument, size);
    return n < 0 ? -errno : (int)n;
#else
    (void)fd; (void)submit; (void)complete; (void)flags; (void)argument; (void)size;
    return -ENOSYS;
#endif
}

static inline uint32_t iolift_load_acquire(const uint32_t *p)
{
    return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}

static inline void iolift_store_release(uint32_t *p, uint32_t value)
{
    __atomic_store_n(p, value, __ATOMIC_RELEASE);
}

/* Returns the sum. */
static inline uint32_t iolift_add(uint32_t *p, int32_t value)
{
    return __atomic_add_fetch(p, (uint32_t)value, __ATOMIC_RELAXED);
}

/* ------------------------------------------------------------------------- files and memory */

/* What O_DIRECT asks of memory addresses and file offsets, in bytes; 0, 0 where the kernel does
 * not say. Returns 0 or -errno. */
static inline int iolift_direct_alignment(int fd, uint32_t *memory, uint32_t *offset)
{
    *memory = *offset = 0;
#if defined(__linux__) && defined(SYS_statx)
    /* struct statx is 256 bytes: stx_mask at 0, stx_dio_mem_align at 152, stx_dio_offset_align
     * at 156; STATX_DIOALIGN is 0x2000 (Linux 6.1). */
    unsigned char buffer[256];
    uint32_t mask;
    memset(buffer, 0, sizeof buffer);
    if (syscall(SYS_statx, fd, "", 0x1000 /* AT_EMPTY_PATH */, 0x2000U, buffer) < 0)
        return -errno;
    memcpy(&mask, buffer, 4);
    if (mask & 0x2000U) {
        memcpy(memory, buffer + 152, 4);
        memcpy(offset, buffer + 156, 4);
    }
    return 0;
#else
    (void)fd;
    return -ENOSYS;
#endif
}

/* The bytes that are in the page cache, without waiting for a device. Returns how many, or -errno:
 * -EAGAIN where the device would be needed, -EOPNOTSUPP and others where this can't be asked. */
static inline int64_t iolift_read_cached(int fd, void *memory, size_t size, int64_t offset)
{
#if defined(__linux__) && defined(SYS_preadv2)
    struct iovec segment = {memory, size};
    /* RWF_NOWAIT is 8 (Linux 4.14). The offset goes in two halves. */
    long n = syscall(SYS_preadv2, (long)fd, &segment, 1L, (long)offset, (long)(offset >> 32 >> 32),
                     8L);
    return n < 0 ? -errno : n;
#else
    (void)fd; (void)memory; (void)size; (void)offset;
    return -EOPNOTSUPP;
#endif
}

/* Whether writes go past the page cache from now on. 0 or -errno. */
static inline int iolift_set_direct(int fd, int direct)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0)
        return -errno;
    flags = direct ? flags | O_DIRECT : flags & ~O_DIRECT;
    return fcntl(fd, F_SETFL, flags) < 0 ? -errno : 0;
}

static inline int iolift_datasync(int fd)
{
#if defined(__APPLE__)
    return fcntl(fd, F_FULLFSYNC) < 0 ? -errno : 0;
#else
    return fdatasync(fd) < 0 ? -errno : 0;
#endif
}

static inline int64_t iolift_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* How many binary digits `value` has; 0 for 0. */
static inline int iolift_bit_length(uint64_t value)
{
    return value ? 64 - __builtin_clzll(value) : 0;
}

static inline void iolift_pause_ns(int64_t ns)
{
    struct timespec pause = {ns / 1000000000, ns % 1000000000};
    nanosleep(&pause, NULL);
}

/* malloc for large arrays that are filled once: in huge pages where the system grants them, since
 * a fresh 4 KiB page costs more than planning the requests that fit in it. Freed by free(). */
static inline void *iolift_allocate(size_t size)
{
#ifdef MADV_HUGEPAGE
    const size_t huge = (size_t)1 << 21;
    void *memory;
    if (size >= 2 * huge) {
        if (posix_memalign(&memory, huge, size))
            return NULL;
        madvise(memory, size & ~(huge - 1), MADV_HUGEPAGE);
        return memory;
    }
#endif
    return malloc(size ? size : 1);
}

static inline void iolift_prefetch_write(const void *p) { __builtin_prefetch(p, 1); }

/* --------------------------------------------------------------------------------------- fork */

/* How many forks lie between this process and the one that loaded the module. A ring, a lock or a
 * thread pool made in another generation belongs to the parent. */
static uint32_t iolift_generation_counter;

static void iolift_count_fork(void) { iolift_generation_counter++; }

static inline void iolift_watch_forks(void) { pthread_atfork(NULL, NULL, iolift_count_fork); }

static inline uint32_t iolift_generation(void) { return iolift_generation_counter; }

#endif
