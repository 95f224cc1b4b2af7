/*
 * cloop, the compressed loop image of Knoppix, version 2; read only.
 *
 *     0     text, a script that begins with "#!/bin/sh\n#V2.0 Format\n"
 *     128   size of a block 4, blocks 4 (big endian)
 *     136   where each block lies, and where the last one ends: 8 bytes each
 *           blocks, each a stream of zlib
 *
 * The disk is as large as all of its blocks.
 *
 * What must stay true: no block has more stored bytes than zlib makes of its size at worst.
 */
#include <inttypes.h>
#include <string.h>

#include "base/bytes.h"
#include "base/errors.h"
#include "base/log.h"
#include "formats/format.h"
#include "formats/inflate.h"

#define SECTOR      512u
#define HEADER_SIZE 136u
#define BLOCK_MAX   (4u << 20)   /* usual are 64 KiB; each look unpacks all of a block */
#define OFFSETS_MAX (512u << 10) /* 4 MiB of memory */
#define ZLIB_WINDOW 15

typedef struct CloopState {
    uint32_t block_size, blocks;
    uint64_t *offsets; /* one more than blocks */
} CloopState;

static const char magic[] = "#!/bin/sh\n#V2.0 Format\n";

static int cloop_probe(const uint8_t *head, size_t n, const char *path)
{
    return n >= sizeof magic - 1 && memcmp(head, magic, sizeof magic - 1) == 0 ? 100 : 0;
}

static void state_free(CloopState *s)
{
    if (s) {
        g_free(s->offsets);
        g_free(s);
    }
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(CloopState, state_free)

static void cloop_close(Image *image)
{
    state_free(image->state);
}

static bool check_header(const Image *image, const uint8_t *bytes, const CloopState *s,
                         GError **error)
{
    uint64_t size = store_size(image->store);
    if (!cloop_probe(bytes, HEADER_SIZE, "")) {
        return error_set(error, EUCLEAN, "%s: first lines: must be those of cloop, version 2",
                         image->path);
    }
    if (s->block_size == 0 || s->block_size % SECTOR != 0 || s->block_size > BLOCK_MAX) {
        return error_set(error, EUCLEAN, "%s: block size is %u: must be a multiple of 512 up to %u",
                         image->path, s->block_size, BLOCK_MAX);
    }
    return (s->blocks < OFFSETS_MAX &&
            range_within(HEADER_SIZE, (s->blocks + UINT64_C(1)) * 8, size)) ||
           error_set(error, EUCLEAN,
                     "%s: number of blocks is %u: must be below %u, and all their offsets within "
                     "the file, which has %" PRIu64 " bytes",
                     image->path, s->blocks, OFFSETS_MAX, size);
}

/* As zlib's compressBound, and more. */
static uint64_t stored_most(const CloopState *s)
{
    return s->block_size + s->block_size / 64 + UINT64_C(64);
}

static bool read_offsets(const Image *image, CloopState *s, GError **error)
{
    uint64_t count = s->blocks + UINT64_C(1), size = store_size(image->store);
    s->offsets = g_new(uint64_t, count);
    int r = store_read(image->store, s->offsets, count * 8, HEADER_SIZE);
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot read the offsets", image->path);
    }
    for (uint64_t i = 0; i < count; i++) {
        s->offsets[i] = load_be64(&s->offsets[i]);
        uint64_t least = i == 0 ? HEADER_SIZE + count * 8 : s->offsets[i - 1] + 1;
        uint64_t most = i == 0 ? size : min_u64(size, s->offsets[i - 1] + stored_most(s));
        if (s->offsets[i] < least || s->offsets[i] > most) {
            return error_set(error, EUCLEAN,
                             "%s: offset %" PRIu64 " is %" PRIu64 ": must be %" PRIu64
                             " to %" PRIu64,
                             image->path, i, s->offsets[i], least, most);
        }
    }
    return true;
}

static bool cloop_open(Image *image, GError **error)
{
    g_autoptr(CloopState) s = g_new0(CloopState, 1);
    uint8_t bytes[HEADER_SIZE];
    if (image->write) {
        return error_set(error, ENOTSUP,
                         "%s: cloop images can only be read: open it read-only (-r)", image->path);
    }
    int r = store_read(image->store, bytes, sizeof bytes, 0);
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot read the header", image->path);
    }
    s->block_size = load_be32(bytes + 128);
    s->blocks = load_be32(bytes + 132);
    if (!check_header(image, bytes, s, error) || !read_offsets(image, s, error)) {
        return false;
    }
    image->size = (uint64_t)s->blocks * s->block_size;
    image->state = g_steal_pointer(&s);
    return true;
}

/* One block: each is a unit of its own. */
static int cloop_map(Image *image, uint64_t offset, uint64_t length, ExtentList *list)
{
    const CloopState *s = image->state;
    uint64_t block = offset / s->block_size, inside = offset % s->block_size;
    Extent extent = {
        .offset = offset,
        .length = min_u64(length, s->block_size - inside),
        .host_offset = s->offsets[block],
        .store = image->store,
        .image = image,
        .stored_length = s->offsets[block + 1] - s->offsets[block],
        .unit_offset = inside,
        .unit_length = s->block_size,
        .type = EXTENT_ENCODED,
    };
    extent_list_add(list, &extent);
    return 0;
}

static int cloop_decode(Image *image, const Extent *extent, const uint8_t *stored,
                        size_t stored_length, uint8_t *unit)
{
    int r = inflate_unit(stored, stored_length, unit, extent->unit_length, ZLIB_WINDOW);
    if (r < 0) {
        log_limited(LOG_LEVEL_ERROR, "%s: the block at %" PRIu64 " cannot be unpacked: %s",
                    image->path, extent->host_offset, g_strerror(-r));
    }
    return r;
}

static uint64_t cloop_cluster_size(const Image *image)
{
    return ((const CloopState *)image->state)->block_size;
}

const Format format_cloop = {
    .name = "cloop",
    .probe = cloop_probe,
    .open = cloop_open,
    .close = cloop_close,
    .map = cloop_map,
    .decode = cloop_decode,
    .cluster_size = cloop_cluster_size,
};
