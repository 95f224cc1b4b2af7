/*
 * vmdk: a streamOptimized image, made from its front to its end.
 *
 *     header     gdOffset -1: look into the footer
 *     descriptor, then nothing up to sector 128
 *     grains     marker (sector 8, bytes 4) and a zlib stream, padded to a sector; their sectors ascend
 *     table      after the last grain of it: marker (type 1), 512 entries
 *     ...        grains and tables of the rest of the disk; what holds no data has neither
 *     directory  marker (type 2), an entry a table; 0: none
 *     footer     marker (type 3), the header again, with the place of the directory
 *     end        marker (type 0)
 *
 * What must stay true: an entry names the sector at which its grain's marker was placed; every marker begins a sector.
 */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/errors.h"
#include "formats/deflate.h"
#include "formats/option.h"
#include "formats/vmdk-impl.h"

#define OVERHEAD          128u /* sectors before the first grain, as VMware's */
#define TABLE_SIZE        (VMDK_NEW_TABLE_SECTORS * VMDK_SECTOR)
#define NO_TABLE          UINT64_MAX
#define GRAIN_MARKER_SIZE 12u
#define ZLIB_WINDOW_BITS  15

enum { MARKER_END, MARKER_TABLE, MARKER_DIRECTORY, MARKER_FOOTER };

struct FormatStream {
    uint64_t capacity, grain; /* bytes */
    VmdkHeader header;
    uint64_t position;    /* bytes that are placed */
    GByteArray *head;     /* what comes first, until it is placed */
    uint32_t *directory;  /* sectors; in the bytes' order of the file */
    uint64_t tables;      /* entries of it */
    uint64_t table_index; /* of the table that is being filled, or NO_TABLE */
    uint8_t table[TABLE_SIZE];
};

static void add_zeroes(GByteArray *out, guint n)
{
    guint at = out->len;
    g_byte_array_set_size(out, at + n);
    memset(out->data + at, 0, n);
}

static void add_padded(GByteArray *out, const void *bytes, guint n)
{
    g_byte_array_append(out, bytes, n);
    add_zeroes(out, align_up(n, VMDK_SECTOR) - n);
}

/* sectors: what follows the marker. */
static void add_marker(GByteArray *out, uint32_t type, uint64_t sectors)
{
    uint8_t marker[VMDK_SECTOR] = {0};
    store_le64(marker, sectors);
    store_le32(marker + 12, type);
    g_byte_array_append(out, marker, sizeof marker);
}

static void add_header(GByteArray *out, const VmdkHeader *header)
{
    uint8_t sector[VMDK_SECTOR];
    vmdk_header_pack(header, sector);
    g_byte_array_append(out, sector, sizeof sector);
}

static void stream_free(FormatStream *stream)
{
    if (stream) {
        g_byte_array_unref(stream->head);
        g_free(stream->directory);
        g_free(stream);
    }
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(FormatStream, stream_free)

static bool stream_wanted(const FormatCreate *how)
{
    const char *subformat = option_lookup(how->options, "subformat");
    return subformat && g_ascii_strcasecmp(subformat, "streamOptimized") == 0;
}

static void make_head(FormatStream *stream, const GString *descriptor)
{
    add_header(stream->head, &stream->header);
    g_byte_array_append(stream->head, (const uint8_t *)descriptor->str, descriptor->len);
    add_zeroes(stream->head, OVERHEAD * VMDK_SECTOR - stream->head->len);
}

static FormatStream *stream_begin(const FormatCreate *how, GError **error)
{
    g_autoptr(FormatStream) stream = g_new0(FormatStream, 1);
    VmdkPlan plan = {0};
    stream->head = g_byte_array_new();
    if (how->backing_name) {
        error_set(error, EINVAL,
                  "subformat streamOptimized, made by convert, has no backing file: leave -b out");
        return NULL;
    }
    if (!vmdk_plan_make(&plan, how, error)) {
        return NULL;
    }
    stream->capacity = plan.size;
    stream->grain = plan.grain;
    stream->tables = div_round_up(plan.size, plan.grain * VMDK_NEW_ENTRIES);
    stream->table_index = NO_TABLE;
    stream->directory = g_try_new0(uint32_t, stream->tables);
    if (!stream->directory) {
        error_set_errno(error, ENOMEM, "cannot keep the grain directory");
        return NULL;
    }
    /* It fits: only the name of a backing file has no bounds. */
    g_autoptr(GString) descriptor = vmdk_descriptor_embedded(&plan, how, "disk.vmdk");
    stream->header = (VmdkHeader){
        .compressed = true,
        .capacity = plan.size / VMDK_SECTOR,
        .grain = plan.grain / VMDK_SECTOR,
        .descriptor = VMDK_NEW_DESCRIPTOR,
        .descriptor_sectors = VMDK_NEW_DESCRIPTOR_SECTORS,
        .entries_per_table = VMDK_NEW_ENTRIES,
        .directory = VMDK_DIRECTORY_IN_FOOTER,
        .overhead = OVERHEAD,
    };
    make_head(stream, descriptor);
    return g_steal_pointer(&stream);
}

static uint32_t stream_unit(const FormatStream *stream)
{
    return stream->grain;
}

/* As much as deflate needs at worst, and more. */
static guint stored_most(const FormatStream *stream)
{
    return stream->grain + stream->grain / 16 + 256;
}

static int stream_encode(const FormatStream *stream, uint64_t offset, const uint8_t *unit,
                         GByteArray *out)
{
    guint at = out->len, most = stored_most(stream);
    g_byte_array_set_size(out, at + GRAIN_MARKER_SIZE + most);
    int n = deflate_unit(unit, stream->grain, out->data + at + GRAIN_MARKER_SIZE, most,
                         ZLIB_WINDOW_BITS, DEFLATE_ZLIB);
    g_byte_array_set_size(out, at + GRAIN_MARKER_SIZE + MAX(n, 0));
    if (n <= 0) {
        return n < 0 ? n : -EIO;
    }
    store_le64(out->data + at, offset / VMDK_SECTOR);
    store_le32(out->data + at + 8, n);
    guint length = GRAIN_MARKER_SIZE + n;
    add_zeroes(out, align_up(length, VMDK_SECTOR) - length);
    return 0;
}

/* What was appended since `before` is placed. Entries have 32 bits: the file ends at 2 TiB. */
static int placed(FormatStream *stream, const GByteArray *out, guint before)
{
    stream->position += out->len - before;
    return stream->position / VMDK_SECTOR > UINT32_MAX ? -EFBIG : 0;
}

static int place_head(FormatStream *stream, GByteArray *out)
{
    guint before = out->len;
    g_byte_array_append(out, stream->head->data, stream->head->len);
    g_byte_array_set_size(stream->head, 0);
    return placed(stream, out, before);
}

/* The table that is being filled has all its grains. */
static int place_table(FormatStream *stream, GByteArray *out)
{
    guint before = out->len;
    if (stream->table_index == NO_TABLE) {
        return 0;
    }
    add_marker(out, MARKER_TABLE, TABLE_SIZE / VMDK_SECTOR);
    uint64_t sector = stream->position / VMDK_SECTOR + 1;
    stream->directory[stream->table_index] = htole32(sector);
    g_byte_array_append(out, stream->table, TABLE_SIZE);
    memset(stream->table, 0, TABLE_SIZE);
    stream->table_index = NO_TABLE;
    return placed(stream, out, before);
}

static int stream_place(FormatStream *stream, uint64_t offset, uint64_t length, GByteArray *out)
{
    uint64_t grain = offset / stream->grain, table = grain / VMDK_NEW_ENTRIES;
    int r = place_head(stream, out);
    if (r == 0 && table != stream->table_index) {
        r = place_table(stream, out);
    }
    if (r < 0) {
        return r;
    }
    stream->table_index = table;
    store_le32(stream->table + grain % VMDK_NEW_ENTRIES * 4, stream->position / VMDK_SECTOR);
    stream->position += length;
    return stream->position / VMDK_SECTOR > UINT32_MAX ? -EFBIG : 0;
}

static int stream_end(FormatStream *stream, GByteArray *out)
{
    int r = place_head(stream, out);
    r = r < 0 ? r : place_table(stream, out);
    if (r < 0) {
        return r;
    }
    guint size = stream->tables * sizeof *stream->directory;
    add_marker(out, MARKER_DIRECTORY, div_round_up(size, VMDK_SECTOR));
    stream->header.directory = stream->position / VMDK_SECTOR + 1;
    add_padded(out, stream->directory, size);
    add_marker(out, MARKER_FOOTER, 1);
    add_header(out, &stream->header);
    add_marker(out, MARKER_END, 0);
    return 0;
}

const FormatStreaming vmdk_streaming = {
    .wanted = stream_wanted,
    .begin = stream_begin,
    .unit = stream_unit,
    .encode = stream_encode,
    .place = stream_place,
    .end = stream_end,
    .free = stream_free,
};
