/* CRC32C (Castagnoli): the checksum of iSCSI, ext4 and of the journal's records.
 *
 * Three ways to one value, chosen once, when the module is loaded: the CPU's instruction on x86-64
 * (SSE4.2) and on ARMv8 (the CRC extension), or tables, eight bytes a step. The instruction is
 * asked for function by function, so that the module itself runs on any CPU.
 *
 * Polynomial 0x1EDC6F41, reflected 0x82F63B78; begins and ends inverted. crc of "123456789":
 * 0xE3069283. `value` is the crc of what comes before, 0 for nothing: crc(a + b) is
 * extend(extend(0, a), b).
 *
 * The instruction takes one cycle and gives its result after three, so three lanes go at once. What
 * a lane's crc becomes when another lane of bytes comes behind it is linear in its bits, so four
 * tables add it up (Gopal et al., "Fast CRC computation for iSCSI polynomial using CRC32
 * instruction", Intel 2011).
 */
#ifndef IOLIFT_CRC32C_H
#define IOLIFT_CRC32C_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

/* Three lanes are a little less than a page. */
#define IOLIFT_CRC32C_LANE 336
static uint32_t iolift_crc32c_tables[8][256];
static uint32_t iolift_crc32c_behind[4][256];   /* a lane of zeros, for each byte of a crc */

static inline void iolift_crc32c_make_tables(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int k = 0; k < 8; k++)
            crc = crc & 1 ? crc >> 1 ^ 0x82F63B78u : crc >> 1;
        iolift_crc32c_tables[0][i] = crc;
    }
    for (int t = 1; t < 8; t++)
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t crc = iolift_crc32c_tables[t - 1][i];
            iolift_crc32c_tables[t][i] = crc >> 8 ^ iolift_crc32c_tables[0][crc & 255];
        }
    for (int t = 0; t < 4; t++)
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t crc = i << 8 * t;
            for (int k = 0; k < IOLIFT_CRC32C_LANE; k++)
                crc = crc >> 8 ^ iolift_crc32c_tables[0][crc & 255];
            iolift_crc32c_behind[t][i] = crc;
        }
}

static inline uint32_t iolift_crc32c_shift(uint32_t crc)
{
    uint32_t (*t)[256] = iolift_crc32c_behind;
    return t[0][crc & 255] ^ t[1][crc >> 8 & 255] ^ t[2][crc >> 16 & 255] ^ t[3][crc >> 24];
}

static uint32_t iolift_crc32c_software(uint32_t value, const unsigned char *p, size_t n)
{
    uint32_t crc = ~value;
    uint32_t (*t)[256] = iolift_crc32c_tables;
    while (n >= 8) {
        /* Byte by byte, so that it is the same on either kind of machine. */
        uint32_t lo = crc ^ (p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16
                             | (uint32_t)p[3] << 24);
        crc = t[7][lo & 255] ^ t[6][lo >> 8 & 255] ^ t[5][lo >> 16 & 255] ^ t[4][lo >> 24]
            ^ t[3][p[4]] ^ t[2][p[5]] ^ t[1][p[6]] ^ t[0][p[7]];
        p += 8;
        n -= 8;
    }
    while (n--)
        crc = crc >> 8 ^ t[0][(crc ^ *p++) & 255];
    return ~crc;
}

#if defined(__x86_64__) && defined(__GNUC__)
#define IOLIFT_CRC32C_INSTRUCTION "sse4.2"
#define IOLIFT_CRC32C_TARGET __attribute__((target("sse4.2")))
static inline int iolift_crc32c_available(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("sse4.2");
}
IOLIFT_CRC32C_TARGET
static inline uint32_t iolift_crc32c_word(uint32_t crc, const unsigned char *p)
{
    uint64_t word;
    memcpy(&word, p, 8);
    return (uint32_t)__builtin_ia32_crc32di(crc, word);
}
IOLIFT_CRC32C_TARGET
static inline uint32_t iolift_crc32c_byte(uint32_t crc, unsigned char byte)
{
    return __builtin_ia32_crc32qi(crc, byte);
}
#elif defined(__aarch64__) && defined(__GNUC__)
#define IOLIFT_CRC32C_INSTRUCTION "armv8"
#define IOLIFT_CRC32C_TARGET __attribute__((target("+crc")))
static inline int iolift_crc32c_available(void)
{
#if defined(__linux__)
    return (getauxval(AT_HWCAP) >> 7 & 1) != 0;     /* HWCAP_CRC32 */
#elif defined(__APPLE__)
    return 1;
#else
    return 0;
#endif
}
IOLIFT_CRC32C_TARGET
static inline uint32_t iolift_crc32c_word(uint32_t crc, const unsigned char *p)
{
    uint64_t word;
    memcpy(&word, p, 8);
    __asm__("crc32cx %w0, %w0, %x1" : "+r"(crc) : "r"(word));
    return crc;
}
IOLIFT_CRC32C_TARGET
static inline uint32_t iolift_crc32c_byte(uint32_t crc, unsigned char byte)
{
    __asm__("crc32cb %w0, %w0, %w1" : "+r"(crc) : "r"((uint32_t)byte));
    return crc;
}
#else
#define IOLIFT_CRC32C_INSTRUCTION ""
static inline int iolift_crc32c_available(void) { return 0; }
#define iolift_crc32c_hardware iolift_crc32c_software
#endif

#ifdef IOLIFT_CRC32C_TARGET
IOLIFT_CRC32C_TARGET
static uint32_t iolift_crc32c_hardware(uint32_t value, const unsigned char *p, size_t n)
{
    const size_t lane = IOLIFT_CRC32C_LANE;
    uint32_t crc = ~value;
    while (n >= 3 * lane) {
        uint32_t second = 0, third = 0;
        for (size_t i = 0; i < lane; i += 8) {
            crc = iolift_crc32c_word(crc, p + i);
            second = iolift_crc32c_word(second, p + lane + i);
            third = iolift_crc32c_word(third, p + 2 * lane + i);
        }
        crc = iolift_crc32c_shift(iolift_crc32c_shift(crc) ^ second) ^ third;
        p += 3 * lane;
        n -= 3 * lane;
    }
    while (n >= 8) {
        crc = iolift_crc32c_word(crc, p);
        p += 8;
        n -= 8;
    }
    while (n--)
        crc = iolift_crc32c_byte(crc, *p++);
    return ~crc;
}
#endif

#endif
