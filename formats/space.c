/*
 * What formats that hand out blocks of a store share: a store that grows, bytes that are cleared or copied.
 *
 * Space is cleared in the cheapest way that is sure: a hole is left alone, a punch makes one, and
 * zeroes are written only where the host can do neither.
 */
#include "formats/space.h"

#include <errno.h>

#include "base/bytes.h"

#define STEP     (UINT64_C(1) << 20)
#define GROW_MAX (UINT64_C(16) << 20) /* bytes ahead of need */

int space_grow(Store *store, uint64_t end, uint64_t unit)
{
    uint64_t size = store_size(store);
    if (end <= size) {
        return 0;
    }
    uint64_t ahead = min_u64(size / 16, GROW_MAX) / unit * unit;
    int r = store_truncate(store, end + ahead);
    if (r < 0 && ahead > 0) {
        r = store_truncate(store, end);
    }
    return r == -ENOTSUP || r == -EINVAL ? -ENOSPC : r;
}

static int write_zeroes(Store *store, uint64_t offset, uint64_t length)
{
    g_autofree uint8_t *zeroes = g_try_malloc0(min_u64(length, STEP));
    int r = zeroes ? 0 : -ENOMEM;
    for (uint64_t end = offset + length; r == 0 && offset < end; offset += STEP) {
        r = store_write(store, zeroes, min_u64(STEP, end - offset), offset);
    }
    return r;
}

int space_make_fresh(Store *store, uint64_t offset, uint64_t length, uint64_t fresh_start)
{
    uint64_t hole;
    bool data;
    if (offset >= fresh_start ||
        (store_next_data(store, offset, length, &data, &hole) == 0 && !data && hole >= length)) {
        return 0;
    }
    int r = store_punch(store, offset, length, STORE_PUNCH_KEEP_SPACE);
    r = r == -ENOTSUP ? write_zeroes(store, offset, length) : r;
    if (r == -ENOSPC && store_punch(store, offset, length, STORE_PUNCH_FREE) == 0) {
        r = 0; /* a hole needs no room */
    }
    return r;
}

int space_copy(Store *store, uint64_t from, uint64_t to, uint64_t length)
{
    g_autofree uint8_t *bytes = g_try_malloc(min_u64(STEP, length));
    int r = bytes ? 0 : -ENOMEM;
    for (uint64_t at = 0; r == 0 && at < length; at += STEP) {
        uint64_t part = min_u64(STEP, length - at);
        r = store_read(store, bytes, part, from + at);
        r = r < 0 ? r : store_write(store, bytes, part, to + at);
    }
    return r;
}

bool space_backing_is_longer(const Image *image)
{
    return image->backing && image->backing->size > image->size;
}
