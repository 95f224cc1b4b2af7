/*
 * dmg, the disk image of Apple (UDIF); read only.
 *
 *     data fork     chunks, compressed each for itself
 *     property list XML: resource-fork, blkx: a list of tables, each in base64 under the key Data
 *     trailer       512 bytes, the last of the file (big endian, as all of it):
 *                     0 magic "koly"   4 version 4   8 its own size 512   24 data fork, its place and length
 *                    56 number of this segment, and of all   80 checksum of the data fork
 *                   216 place and length of the property list   352 checksum of the tables' ones   492 sectors of the disk
 *
 *     table: 0 magic "mish"   4 version 1   8 its first sector   16 sectors   24 offset of data   64 checksum of what it
 *            unpacks to   200 number of chunks
 *            204 chunks of 40 bytes: type 4, comment 4, sector 8 (from the table's first), sectors 8,
 *                place of its bytes 8 (from the data fork and the table's offset), their number 8
 *
 *     checksum: type 4 (0 none, 2 CRC-32), number of its bits 4, the bits; only `check` looks at it (dmg-check.c)
 *
 * Sectors that no chunk speaks of are zeroes.
 *
 * What must stay true: chunks are in order, and none overlaps another; each one's bytes lie before the trailer.
 */
#include "formats/dmg.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/bytes.h"
#include "base/errors.h"
#include "base/log.h"

#define SECTOR        DMG_SECTOR
#define TRAILER_SIZE  DMG_TRAILER_SIZE
#define LIST_MAX      (16u << 20) /* bytes of the property list */
#define UNIT_MAX      (16u << 20) /* bytes of a compressed chunk, stored or not */
#define TABLE_HEAD    204u
#define CHUNK_SIZE    40u
#define CHECKSUM_CRC  2u /* type of a checksum; 0: there is none */
#define CHECKSUM_BITS 32u

/* The property list, while it is read. */
typedef struct DmgList {
    Image *image;
    DmgState *state;
    unsigned depth, blkx_depth; /* of the list of tables; 0: outside of it */
    char *key;                  /* the last one */
    uint64_t end;               /* of the disk, by what the chunks say */
    unsigned tables;
} DmgList;

static void state_free(DmgState *s)
{
    if (s) {
        g_array_unref(s->chunks);
        g_array_unref(s->tables);
        g_free(s);
    }
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DmgState, state_free)

/* The magic is at the end of the file. */
static int dmg_probe(const uint8_t *head, size_t n, const char *path)
{
    const char *suffix = strrchr(path, '.');
    return suffix && g_ascii_strcasecmp(suffix, ".dmg") == 0 ? 2 : 0;
}

static void dmg_close(Image *image)
{
    state_free(image->state);
}

/* ---- tables --------------------------------------------------------------------------------- */

static bool is_packed(DmgType type)
{
    return type == DMG_ADC || type == DMG_ZLIB || type == DMG_BZIP2 || type == DMG_LZFSE ||
           type == DMG_XZ;
}

static bool check_chunk(const DmgList *list, const DmgChunk *chunk, GError **error)
{
    const char *path = list->image->path;
    uint64_t size = store_size(list->image->store) - TRAILER_SIZE;
    if (chunk->type != DMG_RAW && !is_packed(chunk->type)) {
        return error_set(error, ENOTSUP, "%s: a chunk has type 0x%08x, which is not known", path,
                         (unsigned)chunk->type);
    }
    if (!range_within(chunk->host_offset, chunk->stored_length, size)) {
        return error_set(error, EUCLEAN,
                         "%s: a chunk has %" PRIu64 " bytes at %" PRIu64
                         ": must end before the trailer at %" PRIu64,
                         path, chunk->stored_length, chunk->host_offset, size);
    }
    if (chunk->type == DMG_RAW && chunk->stored_length != chunk->length) {
        return error_set(error, EUCLEAN,
                         "%s: a raw chunk of %" PRIu64 " bytes has %" PRIu64 " stored ones", path,
                         chunk->length, chunk->stored_length);
    }
    return !is_packed(chunk->type) ||
           (chunk->length <= UNIT_MAX && chunk->stored_length <= UNIT_MAX &&
            chunk->stored_length > 0) ||
           error_set(error, EUCLEAN,
                     "%s: a compressed chunk has %" PRIu64 " bytes, %" PRIu64
                     " stored: must be 1 to %u each",
                     path, chunk->length, chunk->stored_length, UNIT_MAX);
}

/* first: of the table, in sectors; data: where its bytes are counted from. */
static bool add_chunk(DmgList *list, DmgTable *table, const uint8_t *bytes, uint64_t first,
                      uint64_t data, GError **error)
{
    uint64_t sector, end, sectors = load_be64(bytes + 16);
    DmgChunk chunk = {.type = (DmgType)load_be32(bytes), .stored_length = load_be64(bytes + 32)};
    if (chunk.type == DMG_COMMENT || chunk.type == DMG_END || sectors == 0) {
        return true;
    }
    if (!add_u64(first, load_be64(bytes + 8), &sector) || !add_u64(sector, sectors, &end) ||
        end > INT64_MAX / SECTOR || !add_u64(data, load_be64(bytes + 24), &chunk.host_offset)) {
        return error_set(error, EUCLEAN, "%s: a chunk lies beyond 2^63 bytes", list->image->path);
    }
    chunk.offset = sector * SECTOR;
    chunk.length = sectors * SECTOR;
    list->end = max_u64(list->end, end * SECTOR);
    table->ignores |= chunk.type == DMG_IGNORE;
    if (chunk.type == DMG_ZERO || chunk.type == DMG_IGNORE) {
        return true;
    }
    if (!check_chunk(list, &chunk, error)) {
        return false;
    }
    g_array_append_val(list->state->chunks, chunk);
    return true;
}

static DmgChecksum read_checksum(const uint8_t *bytes)
{
    return (DmgChecksum){
        .known = load_be32(bytes) == CHECKSUM_CRC && load_be32(bytes + 4) == CHECKSUM_BITS,
        .crc = load_be32(bytes + 8),
    };
}

/* The range is only used to check the table, so one that cannot be is no range. */
static void describe_table(DmgTable *table, const uint8_t *bytes)
{
    table->checksum = read_checksum(bytes + 64);
    if (!mul_u64(load_be64(bytes + 8), SECTOR, &table->offset) ||
        !mul_u64(load_be64(bytes + 16), SECTOR, &table->length)) {
        table->offset = UINT64_MAX;
    }
}

static bool add_table(DmgList *list, const uint8_t *bytes, size_t n, GError **error)
{
    const char *path = list->image->path;
    uint64_t data;
    if (n < TABLE_HEAD || memcmp(bytes, "mish", 4) != 0 || load_be32(bytes + 4) != 1) {
        return error_set(error, EUCLEAN, "%s: table %u does not begin with mish and version 1",
                         path, list->tables);
    }
    uint32_t chunks = load_be32(bytes + 200);
    if (chunks > (n - TABLE_HEAD) / CHUNK_SIZE) {
        return error_set(error, EUCLEAN,
                         "%s: table %u has %u chunks: its %zu bytes have room for %zu", path,
                         list->tables, chunks, n, (n - TABLE_HEAD) / CHUNK_SIZE);
    }
    if (!add_u64(list->state->fork, load_be64(bytes + 24), &data)) {
        return error_set(error, EUCLEAN, "%s: the data offset of table %u is %" PRIu64, path,
                         list->tables, load_be64(bytes + 24));
    }
    list->tables++;
    DmgTable table = {0};
    describe_table(&table, bytes);
    for (uint32_t i = 0; i < chunks; i++) {
        if (!add_chunk(list, &table, bytes + TABLE_HEAD + i * CHUNK_SIZE, load_be64(bytes + 8),
                       data, error)) {
            return false;
        }
    }
    g_array_append_val(list->state->tables, table);
    return true;
}

/* ---- the property list ---------------------------------------------------------------------- */

static void on_start(GMarkupParseContext *context, const char *name, const char **names,
                     const char **values, void *opaque, GError **error)
{
    DmgList *list = opaque;
    list->depth++;
    if (list->blkx_depth == 0 && strcmp(name, "array") == 0 && g_strcmp0(list->key, "blkx") == 0) {
        list->blkx_depth = list->depth;
    }
}

static void on_end(GMarkupParseContext *context, const char *name, void *opaque, GError **error)
{
    DmgList *list = opaque;
    if (list->depth == list->blkx_depth) {
        list->blkx_depth = 0;
        g_clear_pointer(&list->key, g_free);
    }
    list->depth--;
}

static void on_text(GMarkupParseContext *context, const char *text, gsize length, void *opaque,
                    GError **error)
{
    DmgList *list = opaque;
    const char *element = g_markup_parse_context_get_element(context);
    if (g_strcmp0(element, "key") == 0) {
        g_free(list->key);
        list->key = g_strndup(text, length);
    } else if (list->blkx_depth > 0 && g_strcmp0(element, "data") == 0 &&
               g_strcmp0(list->key, "Data") == 0) {
        gsize n = 0;
        g_autofree char *encoded = g_strndup(text, length);
        if (strlen(encoded) > 1) { /* as g_base64_decode_inplace wants it */
            g_base64_decode_inplace(encoded, &n);
        }
        add_table(list, (const uint8_t *)encoded, n, error);
    }
}

static bool parse_list(DmgList *list, const char *text, size_t n, GError **error)
{
    static const GMarkupParser parser = {
        .start_element = on_start,
        .end_element = on_end,
        .text = on_text,
    };
    g_autoptr(GError) wrong = NULL;
    GMarkupParseContext *context = g_markup_parse_context_new(&parser, 0, list, NULL);
    bool good = g_markup_parse_context_parse(context, text, n, &wrong) &&
                g_markup_parse_context_end_parse(context, &wrong);
    g_markup_parse_context_free(context);
    g_clear_pointer(&list->key, g_free);
    if (!good && wrong->domain == G_MARKUP_ERROR) {
        g_strdelimit(wrong->message, "\r\n", ' ');
        return error_set(error, EUCLEAN, "%s: the property list is no XML: %s", list->image->path,
                         wrong->message);
    }
    if (!good) {
        g_propagate_error(error, g_steal_pointer(&wrong));
        return false;
    }
    return list->tables > 0 ||
           error_set(error, EUCLEAN, "%s: the property list has no tables (blkx)",
                     list->image->path);
}

static bool read_list(DmgList *list, uint64_t offset, uint64_t length, GError **error)
{
    Store *store = list->image->store;
    if (length == 0 || length > LIST_MAX ||
        !range_within(offset, length, store_size(store) - TRAILER_SIZE)) {
        return error_set(error, EUCLEAN,
                         "%s: the property list has %" PRIu64 " bytes at %" PRIu64
                         ": must be 1 to %u, before the trailer",
                         list->image->path, length, offset, LIST_MAX);
    }
    g_autofree char *text = g_try_malloc(length);
    int r = text ? store_read(store, text, length, offset) : -ENOMEM;
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot read the property list", list->image->path);
    }
    return parse_list(list, text, length, error);
}

/* ---- opening -------------------------------------------------------------------------------- */

static bool read_trailer(Image *image, uint8_t *trailer, GError **error)
{
    uint64_t size = store_size(image->store);
    int r = size < TRAILER_SIZE
                ? 0
                : store_read(image->store, trailer, TRAILER_SIZE, size - TRAILER_SIZE);
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot read the trailer", image->path);
    }
    if (size < TRAILER_SIZE || memcmp(trailer, "koly", 4) != 0) {
        return error_set(error, EUCLEAN,
                         "%s: has no trailer with the magic koly in its last 512 bytes: say -f raw "
                         "for a disk without one",
                         image->path);
    }
    if (load_be32(trailer + 4) != 4) {
        return error_set(error, ENOTSUP, "%s: version is %u: must be 4", image->path,
                         load_be32(trailer + 4));
    }
    if (load_be32(trailer + 60) > 1) {
        return error_set(error, ENOTSUP,
                         "%s: is segment %u of %u: images in several files (.dmgpart) are not "
                         "supported: join them first (hdiutil convert)",
                         image->path, load_be32(trailer + 56), load_be32(trailer + 60));
    }
    return load_be32(trailer + 8) == TRAILER_SIZE ||
           error_set(error, EUCLEAN, "%s: header size is %u: must be %u", image->path,
                     load_be32(trailer + 8), TRAILER_SIZE);
}

static int compare_chunks(const void *a, const void *b)
{
    uint64_t first = ((const DmgChunk *)a)->offset, second = ((const DmgChunk *)b)->offset;
    return first < second ? -1 : first > second;
}

static bool check_order(const Image *image, const DmgState *s, GError **error)
{
    g_array_sort(s->chunks, compare_chunks);
    for (guint i = 1; i < s->chunks->len; i++) {
        const DmgChunk *last = &g_array_index(s->chunks, DmgChunk, i - 1), *chunk = last + 1;
        if (last->offset + last->length > chunk->offset) {
            return error_set(error, EUCLEAN,
                             "%s: two chunks overlap: those at %" PRIu64 " and %" PRIu64,
                             image->path, last->offset, chunk->offset);
        }
    }
    return true;
}

static bool dmg_open(Image *image, GError **error)
{
    uint8_t trailer[TRAILER_SIZE];
    if (image->write) {
        return error_set(error, ENOTSUP, "%s: dmg images can only be read: open it read-only (-r)",
                         image->path);
    }
    if (!read_trailer(image, trailer, error)) {
        return false;
    }
    g_autoptr(DmgState) s = g_new0(DmgState, 1);
    s->chunks = g_array_new(false, false, sizeof(DmgChunk));
    s->tables = g_array_new(false, false, sizeof(DmgTable));
    s->fork = load_be64(trailer + 24);
    s->fork_length = load_be64(trailer + 32);
    s->fork_checksum = read_checksum(trailer + 80);
    s->master_checksum = read_checksum(trailer + 352);
    DmgList list = {.image = image, .state = s};
    if (!read_list(&list, load_be64(trailer + 216), load_be64(trailer + 224), error) ||
        !check_order(image, s, error)) {
        return false;
    }
    uint64_t sectors = load_be64(trailer + 492);
    if (sectors > INT64_MAX / SECTOR) {
        return error_set(error, EUCLEAN, "%s: the disk has %" PRIu64 " sectors: must be below 2^54",
                         image->path, sectors);
    }
    image->size = max_u64(list.end, sectors * SECTOR);
    image->state = g_steal_pointer(&s);
    return true;
}

/* ---- reading -------------------------------------------------------------------------------- */

const DmgChunk *dmg_chunk_at(const DmgState *s, uint64_t offset)
{
    guint low = 0, high = s->chunks->len;
    while (low < high) {
        guint middle = low + (high - low) / 2;
        const DmgChunk *chunk = &g_array_index(s->chunks, DmgChunk, middle);
        if (chunk->offset + chunk->length <= offset) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < s->chunks->len ? &g_array_index(s->chunks, DmgChunk, low) : NULL;
}

/* One chunk, or what lies before the next. */
static int dmg_map(Image *image, uint64_t offset, uint64_t length, ExtentList *list)
{
    const DmgState *s = image->state;
    const DmgChunk *chunk = dmg_chunk_at(s, offset);
    if (!chunk || chunk->offset > offset) {
        uint64_t end = chunk ? min_u64(chunk->offset, offset + length) : offset + length;
        extent_list_add_zero(list, offset, end - offset, image);
        return 0;
    }
    uint64_t inside = offset - chunk->offset;
    Extent extent = {
        .offset = offset,
        .length = min_u64(length, chunk->length - inside),
        .store = image->store,
        .image = image,
        .type = EXTENT_DATA,
        .host_offset = chunk->host_offset + inside,
    };
    if (chunk->type != DMG_RAW) {
        extent.type = EXTENT_ENCODED;
        extent.host_offset = chunk->host_offset;
        extent.stored_length = chunk->stored_length;
        extent.unit_offset = inside;
        extent.unit_length = chunk->length;
    }
    extent_list_add(list, &extent);
    return 0;
}

static int dmg_decode(Image *image, const Extent *extent, const uint8_t *stored,
                      size_t stored_length, uint8_t *unit)
{
    const DmgChunk *chunk = dmg_chunk_at(image->state, extent->offset);
    int r = dmg_unpack(chunk->type, stored, stored_length, unit, extent->unit_length);
    if (r < 0) {
        log_limited(LOG_LEVEL_ERROR,
                    "%s: the chunk at offset %" PRIu64 ", host offset %" PRIu64
                    " cannot be unpacked: %s",
                    image->path, chunk->offset, chunk->host_offset, g_strerror(-r));
    }
    return r;
}

const Format format_dmg = {
    .name = "dmg",
    .probe = dmg_probe,
    .open = dmg_open,
    .close = dmg_close,
    .map = dmg_map,
    .decode = dmg_decode,
    .check = dmg_check,
};
