"""The posix backend: preadv and pwritev on a pool of threads that never take the GIL.

1. One mutex guards the pool and all queues; no system call on a file is made while holding it.
2. Queues are served in turn, one operation each, so no batch waits for another one's end.
3. The thread that waits for its batch works on it meanwhile, and calls for help only when an
   operation takes long: a batch in the page cache is done before a helper could wake up, and
   without any threads everything still works.
4. Threads start when called for, each wakes the next, and they end with the backend.
"""

from libc.errno cimport ETIMEDOUT
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from ._backend cimport (
    QUEUED, Answer, Backend, Lane, Operation, fork_generation, run_in_place,
)
from ._system cimport iolift_now_ns

cdef extern from "<time.h>" nogil:
    cdef struct timespec:
        long tv_sec
        long tv_nsec
    int CLOCK_MONOTONIC

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    int sigfillset(sigset_t*)
    int SIG_SETMASK

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_attr_t:
        pass
    ctypedef struct pthread_condattr_t:
        pass
    int pthread_mutex_init(pthread_mutex_t*, void*)
    int pthread_mutex_lock(pthread_mutex_t*)
    int pthread_mutex_unlock(pthread_mutex_t*)
    int pthread_mutex_destroy(pthread_mutex_t*)
    int pthread_condattr_init(pthread_condattr_t*)
    int pthread_condattr_setclock(pthread_condattr_t*, int)
    int pthread_condattr_destroy(pthread_condattr_t*)
    int pthread_cond_init(pthread_cond_t*, pthread_condattr_t*)
    int pthread_cond_wait(pthread_cond_t*, pthread_mutex_t*)
    int pthread_cond_timedwait(pthread_cond_t*, pthread_mutex_t*, const timespec*)
    int pthread_cond_signal(pthread_cond_t*)
    int pthread_cond_broadcast(pthread_cond_t*)
    int pthread_cond_destroy(pthread_cond_t*)
    int pthread_attr_init(pthread_attr_t*)
    int pthread_attr_setstacksize(pthread_attr_t*, size_t)
    int pthread_attr_destroy(pthread_attr_t*)
    int pthread_create(pthread_t*, pthread_attr_t*, void* (*)(void*) noexcept nogil, void*)
    int pthread_join(pthread_t, void**)
    int pthread_sigmask(int, const sigset_t*, sigset_t*)

cdef enum:
    MAX_THREADS = 32            # beyond it, no disk of ours got faster
    STACK_BYTES = 1 << 18
    # An operation that takes longer waits for a device, or is worth a second core. To wake a
    # thread costs 5 to 50 us.
    SLOW_NS = 30000


# ------------------------------------------------------- with Pool.mutex held, all of this section

cdef void make_ready(Pool* pool, Queue* queue) noexcept nogil:
    queue.is_ready = True
    queue.next_ready = NULL
    if pool.ready == NULL:
        pool.ready = queue
    else:
        pool.ready_tail.next_ready = queue
    pool.ready_tail = queue


cdef Operation* take_pending(Queue* queue) noexcept nogil:
    cdef Operation* operation = queue.pending
    if operation != NULL:
        queue.pending = operation.next
    return operation


cdef Queue* take_ready(Pool* pool) noexcept nogil:
    # The next queue with work. Its owner may have emptied it meanwhile: such are dropped here.
    cdef Queue* queue
    while pool.ready != NULL:
        queue = pool.ready
        pool.ready = queue.next_ready
        queue.is_ready = False
        if queue.pending != NULL:
            return queue
    return NULL


cdef void forget_ready(Pool* pool, Queue* queue) noexcept nogil:
    # A lane that goes away must not stay in the list.
    cdef Queue* before = NULL
    cdef Queue* at = pool.ready
    while at != NULL and at != queue:
        before = at
        at = at.next_ready
    if at == NULL:
        return
    if before == NULL:
        pool.ready = queue.next_ready
    else:
        before.next_ready = queue.next_ready
    if pool.ready_tail == queue:
        pool.ready_tail = before
    queue.is_ready = False


cdef void finish(Queue* queue, Operation* operation) noexcept nogil:
    operation.next = queue.finished
    queue.finished = operation
    queue.finished_count += 1
    if queue.wanted and queue.finished_count >= queue.wanted:
        pthread_cond_signal(&queue.done)


cdef void call_for_help(Pool* pool) noexcept nogil:
    if pool.stopping:
        return
    if pool.idle:
        pthread_cond_signal(&pool.work)
    elif pool.thread_count < pool.max_threads:
        start_thread(pool)


cdef void start_thread(Pool* pool) noexcept nogil:
    # Failing is fine: then there are fewer helpers.
    cdef pthread_attr_t attributes
    cdef sigset_t all_signals, before
    pthread_attr_init(&attributes)
    pthread_attr_setstacksize(&attributes, STACK_BYTES)
    # Signals belong to Python's threads.
    sigfillset(&all_signals)
    pthread_sigmask(SIG_SETMASK, &all_signals, &before)
    if pthread_create(&pool.threads[pool.thread_count], &attributes, work, pool) == 0:
        pool.thread_count += 1
    pthread_sigmask(SIG_SETMASK, &before, NULL)
    pthread_attr_destroy(&attributes)


# --------------------------------------------------------------------------------- the pool's side

cdef void* work(void* argument) noexcept nogil:
    cdef Pool* pool = <Pool*>argument
    cdef Queue* queue
    cdef Operation* operation
    pthread_mutex_lock(&pool.mutex)
    while not pool.stopping:
        queue = take_ready(pool)
        if queue == NULL:
            pool.idle += 1
            pthread_cond_wait(&pool.work, &pool.mutex)
            pool.idle -= 1
            continue
        operation = take_pending(queue)
        if queue.pending != NULL:
            make_ready(pool, queue)
        if pool.ready != NULL:
            call_for_help(pool)
        pthread_mutex_unlock(&pool.mutex)
        run_in_place(operation)
        pthread_mutex_lock(&pool.mutex)
        finish(queue, operation)
    pthread_mutex_unlock(&pool.mutex)
    return NULL


# -------------------------------------------------------------------------------- the batch's side

cdef class PosixLane(Lane):
    def __cinit__(self, PosixBackend backend):
        cdef pthread_condattr_t attributes
        self.backend = backend
        memset(&self.queue, 0, sizeof(Queue))
        pthread_condattr_init(&attributes)
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
        pthread_cond_init(&self.queue.done, &attributes)
        pthread_condattr_destroy(&attributes)

    cdef Answer submit(self, Operation* operation) noexcept nogil:
        cdef Pool* pool = self.backend.pool
        cdef Queue* queue = &self.queue
        operation.next = NULL
        pthread_mutex_lock(&pool.mutex)
        if queue.pending == NULL:
            queue.pending = operation
        else:
            queue.pending_tail.next = operation
        queue.pending_tail = operation
        queue.outstanding += 1
        if queue.is_slow and not queue.is_ready:
            make_ready(pool, queue)
            call_for_help(pool)
        pthread_mutex_unlock(&pool.mutex)
        return QUEUED

    cdef Py_ssize_t reap(self, Operation** finished, Py_ssize_t room, Py_ssize_t wanted,
                         int64_t timeout_ns) noexcept nogil:
        cdef Pool* pool = self.backend.pool
        cdef Queue* queue = &self.queue
        cdef Operation* operation
        cdef int64_t now = iolift_now_ns(), before
        cdef int64_t deadline = now + timeout_ns
        cdef timespec until
        cdef Py_ssize_t n = 0
        until.tv_sec = deadline // 1000000000
        until.tv_nsec = deadline % 1000000000
        pthread_mutex_lock(&pool.mutex)
        wanted = min(wanted, room, queue.outstanding)
        while queue.finished_count < wanted:
            operation = take_pending(queue)
            if operation != NULL:
                pthread_mutex_unlock(&pool.mutex)
                before = iolift_now_ns()
                run_in_place(operation)
                now = iolift_now_ns()
                pthread_mutex_lock(&pool.mutex)
                finish(queue, operation)
                queue.is_slow = now - before > SLOW_NS
                if queue.is_slow and queue.pending != NULL and not queue.is_ready:
                    make_ready(pool, queue)
                    call_for_help(pool)
                if now >= deadline:
                    break
                continue
            queue.wanted = wanted
            if pthread_cond_timedwait(&queue.done, &pool.mutex, &until) == ETIMEDOUT:
                break
        queue.wanted = 0
        while queue.finished != NULL and n < room:
            finished[n] = queue.finished
            queue.finished = queue.finished.next
            n += 1
        queue.finished_count -= n
        queue.outstanding -= n
        pthread_mutex_unlock(&pool.mutex)
        return n

    def __dealloc__(self):
        # In a forked child the mutex may be held by a thread that does not exist there.
        if self.backend is None or self.backend.generation != fork_generation():
            return
        pthread_mutex_lock(&self.backend.pool.mutex)
        forget_ready(self.backend.pool, &self.queue)
        pthread_mutex_unlock(&self.backend.pool.mutex)
        pthread_cond_destroy(&self.queue.done)


cdef class PosixBackend(Backend):
    def __cinit__(self, Py_ssize_t depth, str reason):
        self.pool = <Pool*>calloc(1, sizeof(Pool))
        if self.pool == NULL:
            raise MemoryError
        self.generation = fork_generation()
        self.pool.max_threads = <int>min(depth, MAX_THREADS)
        self.pool.threads = <pthread_t*>calloc(self.pool.max_threads, sizeof(pthread_t))
        if self.pool.threads == NULL:
            raise MemoryError
        pthread_mutex_init(&self.pool.mutex, NULL)
        pthread_cond_init(&self.pool.work, NULL)

    def __init__(self, Py_ssize_t depth, str reason):
        self.name = "posix"
        self.depth = depth
        self.reason = reason

    cdef Lane make_lane(self):
        return PosixLane(self)

    cdef void close(self) noexcept:
        self.closed = True
        self.idle_lanes.clear()
        stop_pool(self)

    def __dealloc__(self):
        if self.pool == NULL:
            return
        stop_pool(self)
        if self.generation == fork_generation():
            pthread_cond_destroy(&self.pool.work)
            pthread_mutex_destroy(&self.pool.mutex)
        free(self.pool.threads)
        free(self.pool)
        self.pool = NULL


cdef void stop_pool(PosixBackend self) noexcept:
    # In a forked child there are no threads to stop, and the mutex may be held by one of them.
    cdef Pool* pool = self.pool
    cdef int i, count
    if pool.threads == NULL or self.generation != fork_generation():
        return
    with nogil:
        pthread_mutex_lock(&pool.mutex)
        pool.stopping = True
        # Whoever comes second finds none to wait for, and none is started any more.
        count = pool.thread_count
        pool.thread_count = pool.max_threads = 0
        pthread_cond_broadcast(&pool.work)
        pthread_mutex_unlock(&pool.mutex)
        for i in range(count):
            pthread_join(pool.threads[i], NULL)
