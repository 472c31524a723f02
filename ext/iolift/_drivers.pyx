"""Drivers: a few threads that execute batches without the GIL, and keep the time of the hold.

1. Threads start when there is more to do than idle ones can take, up to max_threads, and sleep
   without a timeout when there is nothing: an idle coalescer never wakes up.
2. One sleeper at most watches the clock, and only while wake_at says so. An alarm that was called
   off meanwhile, or put off, costs nobody the GIL.
3. A job is executed once, then finished once, by the same thread; jobs begin in the order of push.
4. The mutex guards the roster. Whoever holds it never waits for the GIL, so it may be taken with
   the GIL held.
5. Where no thread can be had (interpreter exit, limits) push says so, and the caller does the job.
"""

import _thread
import weakref

from cpython.object cimport PyObject
from cpython.pythread cimport PyThread_get_thread_ident
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport ETIMEDOUT
from libc.stdint cimport INT64_MAX, int64_t
from libc.stdlib cimport calloc, free

from ._backend cimport fork_generation
from ._calls cimport begin_call
from ._gil cimport ask_for_gil, have_gil
from ._posix cimport pthread_cond_t, pthread_mutex_t
from ._system cimport iolift_now_ns

cdef extern from "<time.h>" nogil:
    cdef struct timespec:
        long tv_sec
        long tv_nsec
    int CLOCK_MONOTONIC

cdef extern from "<pthread.h>" nogil:
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


cdef class Job:
    cdef void execute(self) noexcept nogil:
        pass

    cdef void finish(self) noexcept:
        pass


cdef class Timed:
    cdef void on_time(self) noexcept:
        pass


cdef enum Order:
    STOP
    EXECUTE
    TIME


cdef inline int wait_until(pthread_cond_t* condition, pthread_mutex_t* mutex,
                           int64_t when_ns) noexcept nogil:
    cdef timespec until
    if when_ns == INT64_MAX:
        return pthread_cond_wait(condition, mutex)
    until.tv_sec = when_ns // 1000000000
    until.tv_nsec = when_ns % 1000000000
    return pthread_cond_timedwait(condition, mutex, &until)


cdef void init_condition(pthread_cond_t* condition) noexcept nogil:
    # On the clock of `wait_until`.
    cdef pthread_condattr_t attributes
    pthread_condattr_init(&attributes)
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
    pthread_cond_init(condition, &attributes)
    pthread_condattr_destroy(&attributes)


cdef Order next_order(Roster* roster, PyObject** job) noexcept nogil:
    # Sleeps until there is something to do. Of several idle threads one keeps the time.
    cdef Order order = STOP
    cdef bint keeps
    cdef int64_t now
    pthread_mutex_lock(&roster.mutex)
    while not roster.stopping:
        if roster.first != NULL:
            job[0] = roster.first
            roster.first = (<Job>roster.first).next
            roster.queued -= 1
            order = EXECUTE
            break
        if roster.wake_at != INT64_MAX:
            now = iolift_now_ns()
            if now >= roster.due_at:
                roster.wake_at = roster.due_at = INT64_MAX
                order = TIME
                break
            if now >= roster.wake_at:
                roster.wake_at = roster.due_at
        keeps = not roster.keeper and roster.wake_at != INT64_MAX
        if keeps:
            roster.keeper = True
        roster.idle += 1
        wait_until(&roster.work, &roster.mutex, roster.wake_at if keeps else INT64_MAX)
        roster.idle -= 1
        if keeps:
            roster.keeper = False
    if order == EXECUTE and roster.wake_at != INT64_MAX and not roster.keeper and roster.idle:
        pthread_cond_signal(&roster.work)       # this one kept the time; another one must now
    pthread_mutex_unlock(&roster.mutex)
    return order


cdef class Drivers:
    def __cinit__(self, Timed timed, int max_threads):
        self.roster = <Roster*>calloc(1, sizeof(Roster))
        if self.roster == NULL:
            raise MemoryError
        pthread_mutex_init(&self.roster.mutex, NULL)
        init_condition(&self.roster.work)
        init_condition(&self.roster.gone)
        self.roster.wake_at = self.roster.due_at = INT64_MAX
        self.timed = weakref.ref(timed)
        self.idents = set()
        self.generation = fork_generation()
        self.max_threads = max_threads

    def __dealloc__(self):
        # Each thread holds a reference, so by now there is none, and no job.
        if self.roster != NULL and self.generation == fork_generation():
            pthread_mutex_destroy(&self.roster.mutex)
            pthread_cond_destroy(&self.roster.work)
            pthread_cond_destroy(&self.roster.gone)
        free(self.roster)

    cdef bint push(self, Job job) except -1:
        # False: there is no thread to do it.
        cdef Roster* roster = self.roster
        pthread_mutex_lock(&roster.mutex)
        # The clock wants one that does not work, too.
        cdef bint scarce = roster.queued + (roster.wake_at != INT64_MAX) >= roster.idle
        pthread_mutex_unlock(&roster.mutex)
        if scarce and roster.live < self.max_threads:
            start_thread(self)
        if roster.live == 0 or roster.stopping:
            return False
        Py_INCREF(job)
        job.next = NULL
        pthread_mutex_lock(&roster.mutex)
        if roster.first == NULL:
            roster.first = <PyObject*>job
        else:
            (<Job>roster.last).next = <PyObject*>job
        roster.last = <PyObject*>job
        roster.queued += 1
        pthread_cond_signal(&roster.work)
        pthread_mutex_unlock(&roster.mutex)
        return True

    cdef bint is_busy(self) noexcept:
        # Whether a job would have to wait for others, as there are as many threads as there may be.
        cdef Roster* roster = self.roster
        pthread_mutex_lock(&roster.mutex)
        cdef bint busy = roster.live >= self.max_threads and roster.queued >= roster.idle
        pthread_mutex_unlock(&roster.mutex)
        return busy

    cdef bint call_at(self, int64_t when_ns) except -1:
        # The earliest that was asked for counts. False: there is no thread to keep the time.
        cdef Roster* roster = self.roster
        if roster.live == 0:
            start_thread(self)
        pthread_mutex_lock(&roster.mutex)
        roster.due_at = min(roster.due_at, when_ns)
        if when_ns < roster.wake_at:
            roster.wake_at = when_ns
            if roster.keeper:
                pthread_cond_broadcast(&roster.work)        # the keeper's alarm is set too late
            elif roster.idle:
                pthread_cond_signal(&roster.work)
        pthread_mutex_unlock(&roster.mutex)
        return roster.live > 0 and not roster.stopping

    cdef void call_off(self) noexcept:
        # Nothing is due. Who keeps the time may not have seen it when it wakes: no harm.
        self.roster.due_at = INT64_MAX

    cdef bint is_driver(self):
        return PyThread_get_thread_ident() in self.idents

    cdef void wake_at_landing(self, Sleeper** sleepers) noexcept:
        # What a list of sleepers waits for has come.
        cdef Sleeper* last = sleepers[0]
        if last == NULL:
            return
        last.place = &self.due
        while last.next != NULL:
            last = last.next
        last.next = self.due
        if self.due != NULL:
            self.due.place = &last.next
        self.due = sleepers[0]
        sleepers[0] = NULL

    cdef void land(self) noexcept:
        # Wakes those whose ticket has ended, and all who wait for anything.
        cdef Roster* roster = self.roster
        cdef Sleeper* sleeper
        self.wake_at_landing(&self.waiting)
        sleeper = self.due
        if sleeper == NULL:
            return
        pthread_mutex_lock(&roster.mutex)
        while sleeper != NULL:
            sleeper.woken = True
            pthread_cond_signal(&sleeper.woken_up)
            sleeper = sleeper.next
        pthread_mutex_unlock(&roster.mutex)

    cdef int wait_among(self, Sleeper** sleepers, int64_t until_ns) except -1:
        # The caller has looked, and has not let go of the GIL since.
        cdef Roster* roster = self.roster
        cdef Sleeper own
        init_condition(&own.woken_up)
        own.woken = False
        own.next = sleepers[0]
        own.place = sleepers
        if own.next != NULL:
            own.next.place = &own.next
        sleepers[0] = &own
        with nogil:
            pthread_mutex_lock(&roster.mutex)
            while not own.woken:
                if wait_until(&own.woken_up, &roster.mutex, until_ns) == ETIMEDOUT:
                    break
            pthread_mutex_unlock(&roster.mutex)
            ask_for_gil()
        have_gil()
        own.place[0] = own.next
        if own.next != NULL:
            own.next.place = own.place
        pthread_cond_destroy(&own.woken_up)
        return 0

    cdef int stop(self) except -1:
        # Returns when all threads have gone, but for the one that calls. Jobs must be done by now.
        cdef Roster* roster = self.roster
        if self.generation != fork_generation():
            return 0
        own = 1 if self.is_driver() else 0
        with nogil:
            pthread_mutex_lock(&roster.mutex)
            roster.stopping = True
            pthread_cond_broadcast(&roster.work)
            while roster.live > own:
                pthread_cond_wait(&roster.gone, &roster.mutex)
            pthread_mutex_unlock(&roster.mutex)
        return 0

    def run(self):
        """The life of a driver."""
        cdef Roster* roster = self.roster
        cdef PyObject* found = NULL
        cdef Order order = TIME
        ident = PyThread_get_thread_ident()
        self.idents.add(ident)
        begin_call()
        while order != STOP:
            with nogil:
                order = next_order(roster, &found)
                if order == EXECUTE:
                    (<Job>found).execute()
                ask_for_gil()
            have_gil()
            if order == EXECUTE:
                finish(<Job>found)
            elif order == TIME:
                ring(self)
        self.idents.discard(ident)
        pthread_mutex_lock(&roster.mutex)
        roster.live -= 1
        pthread_cond_broadcast(&roster.gone)
        pthread_mutex_unlock(&roster.mutex)


cdef void finish(Job job) noexcept:
    # Takes over the reference that the list had.
    job.finish()
    Py_DECREF(job)


cdef void ring(Drivers self) noexcept:
    timed = self.timed()
    if timed is not None:
        (<Timed>timed).on_time()


cdef bint start_thread(Drivers self):
    if self.roster.stopping:
        return False
    self.roster.live += 1               # with the GIL; nobody else adds to it
    try:
        # No Thread: a signal handler that raises in its start would leave nobody who knows whether
        # it runs.
        _thread.start_new_thread(self.run, ())
    except Exception:
        # The interpreter ends, there are as many threads as there may be, or a hook forbids it.
        self.roster.live -= 1
        return False
    return True
