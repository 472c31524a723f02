# CRC32C, by the CPU's instruction where it has one.

from libc.stdint cimport uint32_t


cdef uint32_t extend_crc(uint32_t value, const void* data, size_t size) noexcept nogil
