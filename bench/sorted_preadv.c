/* The peer "a C program": what a careful C programmer writes in an afternoon to read n ranges of
 * one length, warm.
 *
 * 1. LSD radix sort (11 bits a pass, constant digits skipped) of (offset, row) pairs.
 * 2. One sweep merges touching and overlapping ranges into runs of at most RUN_MAX bytes and
 *    IOV_MAX_ROWS rows; each run is one preadv(2) straight into the caller's rows: no merged
 *    buffer, no second copy, no byte read twice.
 * 3. What a row shares with the one before it (all of it when they are duplicates) is a memcpy
 *    from that row, which is still in the cache, right after the run's preadv.
 *
 * One thread, no error recovery: a short read ends the program's work with -1. That is the point
 * of the comparison: all that iolift does beyond this (checks, GIL, retries, one outcome per
 * request) has to fit in the ratio asked for.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

enum { DIGIT_BITS = 11, DIGITS = 1 << DIGIT_BITS, IOV_MAX_ROWS = 1024, RUN_MAX = 1 << 20 };

typedef struct {
    uint64_t offset;
    uint64_t row;
} item;

typedef struct {
    uint8_t *to;
    const uint8_t *from;
    size_t size;
} copy;

/* Sorts a[0..n) by offset, stable, with b as the spare half; returns the one with the result. */
static item *radix_sort(item *a, item *b, size_t n)
{
    for (int shift = 0; shift < 64; shift += DIGIT_BITS) {
        size_t count[DIGITS] = {0}, at = 0;
        for (size_t i = 0; i < n; i++)
            count[(a[i].offset >> shift) & (DIGITS - 1)]++;
        if (n && count[(a[0].offset >> shift) & (DIGITS - 1)] == n)
            continue;
        for (size_t d = 0; d < DIGITS; d++) {
            size_t c = count[d];
            count[d] = at;
            at += c;
        }
        for (size_t i = 0; i < n; i++)
            b[count[(a[i].offset >> shift) & (DIGITS - 1)]++] = a[i];
        item *t = a;
        a = b;
        b = t;
    }
    return a;
}

/* One run: the preadv, then the copies in sorted order (a row's source is whole by then). */
static int finish_run(int fd, const struct iovec *iov, int iovs, uint64_t start, uint64_t end,
                      const copy *copies, int n_copies)
{
    if (iovs && preadv(fd, iov, iovs, (off_t)start) != (ssize_t)(end - start))
        return -1;
    for (int i = 0; i < n_copies; i++)
        memcpy(copies[i].to, copies[i].from, copies[i].size);
    return 0;
}

/* Reads offsets[i] .. offsets[i] + length into out + i * length, for all i. 0; or -1: memory or
 * bytes are missing. */
int sorted_preadv(int fd, const int64_t *offsets, size_t n, size_t length, uint8_t *out)
{
    struct iovec iov[IOV_MAX_ROWS];
    copy copies[IOV_MAX_ROWS];
    int iovs = 0, n_copies = 0, failed = 0;
    uint64_t start = 0, end = 0, last_offset = 0;
    uint8_t *last = NULL;
    item *items = malloc(2 * n * sizeof *items);
    if (n && !items)
        return -1;
    for (size_t i = 0; i < n; i++)
        items[i] = (item){(uint64_t)offsets[i], i};
    item *sorted = radix_sort(items, items + n, n);
    for (size_t i = 0; i < n && !failed; i++) {
        uint64_t s = sorted[i].offset, e = s + length;
        uint8_t *row = out + sorted[i].row * length;
        int joins = last && s <= end && e - start <= RUN_MAX && iovs < IOV_MAX_ROWS &&
                    n_copies < IOV_MAX_ROWS;
        if (!joins) {
            failed = finish_run(fd, iov, iovs, start, end, copies, n_copies);
            iovs = n_copies = 0;
            start = (last && s < end) ? end : s;
            end = start;
        }
        size_t shared = 0;
        if (s < end) {
            shared = (size_t)(end - s);
            copies[n_copies++] = (copy){row, last + (s - last_offset), shared};
        }
        if (shared < length)
            iov[iovs++] = (struct iovec){row + shared, length - shared};
        end = e;
        last = row;
        last_offset = s;
    }
    if (!failed)
        failed = finish_run(fd, iov, iovs, start, end, copies, n_copies);
    free(items);
    return failed;
}
