/*
 * Where two disks read differently.
 *
 * Most of two disks need not be read: what both maps call zero is equal, and so is what lies at one
 * place of one file (a backing that both have). The rest is read piece by piece, on all threads;
 * each keeps what it finds, and at the end all of it is put into order.
 */
#include "tools/differ.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "tools/buffers.h"
#include "tools/bulk.h"
#include "tools/reader.h"

typedef struct Differ {
    Image *a, *b;
    const DifferOptions *options;
    Buffers *buffers_a, *buffers_b;
    pthread_mutex_t lock;
    GArray *found;         /* Difference, as they come */
    DifferFailure failure; /* the first in the order of the disk */
} Differ;

/* One piece in the hands of a thread. */
typedef struct Pair {
    Differ *differ;
    ExtentList map_a, map_b;
    uint8_t *bytes_a, *bytes_b;
    GArray *found;
} Pair;

static void note_failure(Differ *differ, const Image *image, uint64_t offset)
{
    with_mutex(&differ->lock);
    if (!differ->failure.image || offset < differ->failure.offset) {
        differ->failure = (DifferFailure){offset, image};
    }
}

static void add(GArray *found, uint64_t offset, uint64_t length, bool zero)
{
    Difference *last = found->len > 0 ? &g_array_index(found, Difference, found->len - 1) : NULL;
    if (last && last->offset + last->length == offset && last->zero == zero) {
        last->length += length;
    } else {
        g_array_append_val(found, ((Difference){offset, length, zero}));
    }
}

/* The bytes of both are there: finds the blocks that differ. */
static void compare_bytes(Pair *pair, uint64_t offset, uint64_t length)
{
    const DifferOptions *options = pair->differ->options;
    uint64_t end = offset + length, next;
    if (memcmp(pair->bytes_a, pair->bytes_b, length) == 0) {
        return;
    }
    for (uint64_t at = offset; at < end; at = next) {
        next = min_u64(align_down(at, options->grain) + options->grain, end);
        const uint8_t *b = pair->bytes_b + (at - offset);
        if (memcmp(pair->bytes_a + (at - offset), b, next - at) != 0) {
            add(pair->found, at, next - at, bytes_are_zero(b, next - at));
            if (options->first) {
                break;
            }
        }
    }
}

static int compare_range(Pair *pair, uint64_t offset, uint64_t length)
{
    Differ *differ = pair->differ;
    int r = reader_read(&pair->map_a, offset, length, pair->bytes_a);
    if (r < 0) {
        note_failure(differ, differ->a, offset);
        return r;
    }
    r = reader_read(&pair->map_b, offset, length, pair->bytes_b);
    if (r < 0) {
        note_failure(differ, differ->b, offset);
        return r;
    }
    compare_bytes(pair, offset, length);
    return 0;
}

/* A block must not be cut in two: the ranges that are read begin and end where blocks do. */
static uint64_t block_start(const Pair *pair, uint64_t offset, uint64_t least)
{
    return max_u64(align_down(offset, pair->differ->options->grain), least);
}

/* Goes over both maps at once. Equal runs are left out; what lies between them is read. */
static int compare_maps(Pair *pair, uint64_t offset, uint64_t length)
{
    uint64_t end = offset + length, read_from = UINT64_MAX, done = offset;
    const uint64_t grain = pair->differ->options->grain;
    int r = 0;
    unsigned i = 0, j = 0;
    for (uint64_t at = offset; r == 0 && at < end;) {
        Extent a = pair->map_a.items[i], b = pair->map_b.items[j];
        uint64_t next = min_u64(extent_end(&a), extent_end(&b));
        extent_clip(&a, at, next - at);
        extent_clip(&b, at, next - at);
        bool equal = (extent_is_zero(&a) && extent_is_zero(&b)) || reader_same_place(&a, &b);
        if (!equal && read_from == UINT64_MAX) {
            read_from = block_start(pair, at, done);
        }
        /* An equal run that holds no whole block behind this one is read with its neighbours. */
        uint64_t block_end = min_u64(align_up(at, grain), end);
        if (equal && read_from != UINT64_MAX && block_end <= next) {
            r = compare_range(pair, read_from, block_end - read_from);
            done = block_end;
            read_from = UINT64_MAX;
        }
        i += extent_end(&pair->map_a.items[i]) == next;
        j += extent_end(&pair->map_b.items[j]) == next;
        at = next;
    }
    if (r == 0 && read_from != UINT64_MAX) {
        r = compare_range(pair, read_from, end - read_from);
    }
    return r;
}

/* Both are zero from `offset` on: up to where? */
static uint64_t both_zero_until(const Differ *differ, uint64_t offset)
{
    uint64_t end = differ->options->length;
    uint64_t a = reader_zero_until(differ->a, offset, end);
    return a > offset ? min_u64(a, reader_zero_until(differ->b, offset, end)) : offset;
}

static int map_both(Pair *pair, uint64_t offset, uint64_t length)
{
    Differ *differ = pair->differ;
    int r = reader_map(differ->a, offset, length, &pair->map_a);
    if (r < 0) {
        note_failure(differ, differ->a, offset);
        return r;
    }
    r = reader_map(differ->b, offset, length, &pair->map_b);
    if (r < 0) {
        note_failure(differ, differ->b, offset);
    }
    return r;
}

static int compare_pair(Pair *pair, uint64_t offset, uint64_t length, uint64_t *next)
{
    Differ *differ = pair->differ;
    int r = map_both(pair, offset, length);
    if (r < 0) {
        return r;
    }
    if (reader_all_zero(&pair->map_a) && reader_all_zero(&pair->map_b)) {
        *next = both_zero_until(differ, *next);
        return 0;
    }
    if (!pair->bytes_a || !pair->bytes_b) {
        return -ENOMEM;
    }
    r = compare_maps(pair, offset, length);
    if (r < 0 || pair->found->len == 0) {
        return r;
    }
    with_mutex(&differ->lock);
    g_array_append_vals(differ->found, pair->found->data, pair->found->len);
    return differ->options->first ? BULK_STOP : 0;
}

static int compare_piece(void *opaque, unsigned slot, uint64_t offset, uint64_t length,
                         uint64_t *next)
{
    Differ *differ = opaque;
    Pair pair = {
        .differ = differ,
        .bytes_a = buffers_get(differ->buffers_a, slot),
        .bytes_b = buffers_get(differ->buffers_b, slot),
        .found = g_array_new(false, false, sizeof(Difference)),
    };
    extent_list_init(&pair.map_a);
    extent_list_init(&pair.map_b);
    int r = compare_pair(&pair, offset, length, next);
    extent_list_clear(&pair.map_a);
    extent_list_clear(&pair.map_b);
    g_array_unref(pair.found);
    return r;
}

static gint compare_offsets(gconstpointer a, gconstpointer b)
{
    const Difference *x = a, *y = b;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

int differ_run(Image *a, Image *b, const DifferOptions *options, GArray *differences,
               DifferFailure *failure)
{
    uint64_t piece = buffers_piece(options->grain);
    unsigned threads = buffers_threads(options->threads, 2 * piece);
    g_autoptr(Buffers) buffers_a = buffers_new(threads, piece);
    g_autoptr(Buffers) buffers_b = buffers_new(threads, piece);
    g_autoptr(GArray) found = g_array_new(false, false, sizeof(Difference));
    Differ differ = {
        .a = a,
        .b = b,
        .options = options,
        .buffers_a = buffers_a,
        .buffers_b = buffers_b,
        .found = found,
    };
    Bulk bulk = {
        .length = options->length,
        .piece = piece,
        .threads = threads,
        .work = compare_piece,
        .opaque = &differ,
        .progress = options->progress,
        .context = options->context,
    };
    pthread_mutex_init(&differ.lock, NULL);
    int r = options->length > 0 ? bulk_run(&bulk, NULL) : 0;
    pthread_mutex_destroy(&differ.lock);
    g_array_sort(found, compare_offsets);
    for (guint i = 0; i < found->len; i++) {
        const Difference *next = &g_array_index(found, Difference, i);
        add(differences, next->offset, next->length, next->zero);
    }
    *failure = differ.failure;
    return MIN(r, 0);
}
