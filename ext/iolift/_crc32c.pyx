"""crc32c: the checksum of the journal, by the CPU's instruction where it has one.

1. Hardware and software agree on every input (tests/test_crc32c.py holds them against an oracle
   that goes bit by bit).
2. Which one is used is settled when the module is loaded, and never looked at again.

Who may call: anybody; `extend_crc` without the GIL.
"""

from libc.stdint cimport uint32_t

from ._arguments cimport Buffer, parse_int, take_buffer

cdef extern from "_crc32c.h" nogil:
    const char* IOLIFT_CRC32C_INSTRUCTION
    int iolift_crc32c_available()
    void iolift_crc32c_make_tables()
    uint32_t iolift_crc32c_hardware(uint32_t value, const unsigned char* data, size_t size)
    uint32_t iolift_crc32c_software(uint32_t value, const unsigned char* data, size_t size)

ctypedef uint32_t (*Extend)(uint32_t, const unsigned char*, size_t) noexcept nogil

iolift_crc32c_make_tables()
cdef Extend chosen = iolift_crc32c_software
if iolift_crc32c_available():
    chosen = iolift_crc32c_hardware

#: "sse4.2", "armv8" or "software".
IMPLEMENTATION = (IOLIFT_CRC32C_INSTRUCTION.decode() if iolift_crc32c_available()
                  else "software")


cdef uint32_t extend_crc(uint32_t value, const void* data, size_t size) noexcept nogil:
    return chosen(value, <const unsigned char*>data, size)


def crc32c(data, value=0):
    """The CRC32C of any C-contiguous buffer; `value` is that of the bytes before it.

    Raises TypeError for what is no buffer, ValueError for a value outside of 32 bits.
    O(n), about 20 GB/s by the CPU's instruction, 2 GB/s without; the GIL is released meanwhile.
    """
    cdef Buffer buffer = take_buffer(data, "data", False)
    cdef uint32_t crc = <uint32_t>parse_int(value, "value", 0, 0xFFFFFFFF)
    with nogil:
        crc = extend_crc(crc, buffer.view.buf, buffer.view.len)
    return crc


def crc32c_software(data, value=0):
    """The same by tables, on any CPU: what there is to test where the CPU has the instruction."""
    cdef Buffer buffer = take_buffer(data, "data", False)
    return iolift_crc32c_software(<uint32_t>parse_int(value, "value", 0, 0xFFFFFFFF),
                                  <const unsigned char*>buffer.view.buf, buffer.view.len)
