"""Solo: a read or write that passes the window by, and what it must not meet.

    begin_solo (waits for what is in the way) -> the caller's own I/O -> end_solo -> who has joined

1. Two operations that overlap, one of them a write, are never under way together: the later one
   waits. So no read ever sees half a write.
2. A solo waits for the earlier solos that it meets, for the writes that were flying when it came
   (a read that has looked at the overlay does not: they have nothing of it), and, if it writes, for
   the reads that were. Whatever comes later is behind it: it is dispatched later, joins nothing
   that went before, and takes nothing from the overlay that did.
3. A solo whose thread waits in here for something else is in the middle of a signal handler's call:
   nobody waits for it, as it could wait for them.

Who may call: any thread, with the GIL, which guards every field.
"""

from cpython.pythread cimport PyThread_get_thread_ident
from cpython.ref cimport Py_DECREF
from libc.errno cimport EIO
from libc.stdint cimport int64_t

from ._backend cimport WRITE, Kind
from ._flight cimport Flight
from ._landing cimport LandingDesk, Solo, end_joined
from ._system cimport iolift_now_ns
from ._ticket cimport Ticket, tell
from ._window cimport Writes

cdef enum:
    LOOK_NS = 50000000


cdef int begin_solo(LandingDesk self, Solo* solo, Kind kind, int64_t offset, int64_t end,
                    char* memory) except -1:
    # memory: of a read of all of [offset, end), which others may join, and of which no held or
    # flying write has a byte; else NULL.
    solo.kind = kind
    solo.offset, solo.end = offset, end
    solo.memory = memory
    solo.joined = NULL
    solo.thread = PyThread_get_thread_ident()
    solo.older = NULL
    if memory == NULL and self.window.flying is not None:
        solo.older = <void*>self.window.flying
    solo.begun = False
    solo.next = self.solos
    solo.place = &self.solos
    if solo.next != NULL:
        solo.next.place = &solo.next
    self.solos = solo
    self.solo_writes += kind == WRITE
    if solo.older != NULL or (kind == WRITE and self.flights) or meets_earlier(self, solo):
        wait_for_others(self, solo)
    solo.begun = True
    return 0


cdef int wait_for_others(LandingDesk self, Solo* solo) except -1:
    cdef Writes flying = self.window.flying if solo.older != NULL else None
    cdef list flights = list(self.flights) if solo.kind == WRITE else []
    cdef Py_ssize_t again = self.again
    self.solos_waiting += 1
    try:
        while ((flying is not None and self.window.flying is flying) or meets_earlier(self, solo)
                or any_is_up(flights)):
            # Not for ever: nobody tells when a solo's thread begins to wait (rule 3).
            self.scheduler.wait_for_landing(iolift_now_ns() + LOOK_NS)
            if again != self.again and solo.kind == WRITE:
                again = self.again      # a read that was older than this goes again
                flights = list(self.flights)
    except BaseException:
        end_solo(self, solo, -EIO)      # who has joined reads again
        raise
    finally:
        self.solos_waiting -= 1
    return 0


cdef void leave(LandingDesk self, Solo* solo) noexcept:
    solo.place[0] = solo.next
    if solo.next != NULL:
        solo.next.place = solo.place
    self.solo_writes -= solo.kind == WRITE


cdef int end_solo(LandingDesk self, Solo* solo, int64_t got) except -1:
    # got: of a read that others may have joined, bytes or -errno.
    cdef list heard = [], hubs = [], joined
    cdef Ticket ticket
    leave(self, solo)
    if (solo.joined == NULL and self.reads_due is None and self.writes_due is None
            and self.solos_waiting == 0):
        return 0
    if solo.joined != NULL:
        joined = <list>solo.joined
        Py_DECREF(joined)
        solo.joined = NULL
        for ticket in joined:
            end_joined(self, ticket, solo.memory, solo.offset, got, heard, hubs)
    self.scheduler.go_on()
    self.scheduler.drivers.land()
    tell(heard, hubs)
    return 0


cdef bint any_is_up(list flights) noexcept:
    for flight in flights:
        if not (<Flight>flight).is_down:
            return True
    return False


cdef inline bint meets(LandingDesk self, const Solo* solo, Kind kind, int64_t offset,
                       int64_t end) noexcept:
    if solo.offset >= end or offset >= solo.end or (solo.kind != WRITE and kind != WRITE):
        return False
    return not is_interrupted(self, solo)


cdef bint is_interrupted(LandingDesk self, const Solo* solo) noexcept:
    return solo.begun and (solo.thread == PyThread_get_thread_ident()
                           or solo.thread in self.scheduler.sleepers)


cdef bint meets_earlier(LandingDesk self, const Solo* solo) noexcept:
    cdef const Solo* other = solo.next
    if solo.kind != WRITE and self.solo_writes == 0:
        return False
    while other != NULL:
        if meets(self, other, solo.kind, solo.offset, solo.end):
            return True
        other = other.next
    return False


cdef bint meets_solo(LandingDesk self, Kind kind, int64_t offset, int64_t end) noexcept:
    # Whether what is to be dispatched must wait for a solo.
    cdef const Solo* solo = self.solos
    while solo != NULL:
        if meets(self, solo, kind, offset, end):
            return True
        solo = solo.next
    return False


cdef bint is_behind_solo(LandingDesk self, int64_t offset, int64_t end) noexcept:
    # Whether a read comes after a solo that waits for the writes that are flying: what those have
    # of it is overwritten when the read goes.
    cdef const Solo* solo = self.solos
    if self.window.flying is None or self.solos_waiting == 0:
        return False
    while solo != NULL:
        if (not solo.begun and solo.kind == WRITE and solo.older == <void*>self.window.flying
                and solo.offset < end and offset < solo.end):
            return True
        solo = solo.next
    return False


cdef Solo* joinable_solo(LandingDesk self, int64_t offset, int64_t end) noexcept:
    # A read that has all these bytes, and does not wait for the caller to return to it.
    cdef Solo* solo = self.solos
    cdef unsigned long thread = PyThread_get_thread_ident()
    while solo != NULL:
        if (solo.memory != NULL and solo.offset <= offset and end <= solo.end
                and solo.thread != thread):
            return solo
        solo = solo.next
    return NULL
