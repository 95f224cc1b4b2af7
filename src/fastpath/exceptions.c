/*
 * Reads what dm-snapshot has written into its persistent store, and writes such stores.
 *
 * The reader walks the areas in order until a record has no store chunk. Everything in a store is
 * hostile: a chunk number is used only after it was compared with the disk, with the end of the
 * store and with the places of the areas, and no chunk of either side may appear twice. So a list
 * that was accepted names as many different chunks of the store as it has items, all of them inside
 * it; what it can make a reader do is bounded by the bytes that really are in the file.
 *
 * The list grows by doubling, and is checked before it grows: a file with holes, however long, ends
 * the walk at its first hole.
 */
#include "fastpath/exceptions.h"

#include <inttypes.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/errors.h"

#define MAGIC       0x70416e53u
#define VERSION     1u
#define HEADER_SIZE 16u
#define RECORD_SIZE 16u
#define SECTOR      512u

static uint64_t records_of_area(uint32_t chunk)
{
    return chunk / RECORD_SIZE;
}

static uint64_t area_chunk(uint32_t chunk, uint64_t area)
{
    return 1 + (records_of_area(chunk) + 1) * area;
}

static bool is_metadata(uint32_t chunk, uint64_t store_chunk)
{
    return store_chunk == 0 || (store_chunk - 1) % (records_of_area(chunk) + 1) == 0;
}

/* ---- reading ------------------------------------------------------------------------------- */

typedef struct Reader {
    Store *store;
    uint64_t base;
    uint64_t disk_chunks, store_chunks; /* whole chunks */
    Exceptions *out;
    uint64_t capacity; /* of out->items */
    GError **error;
} Reader;

static bool read_header(Reader *reader, uint64_t disk_size)
{
    uint8_t header[HEADER_SIZE];
    Exceptions *out = reader->out;
    const char *name = reader->store->name;
    int r = store_read(reader->store, header, sizeof header, reader->base);
    if (r < 0) {
        return error_set_errno(reader->error, -r, "%s: cannot read the exception store", name);
    }
    uint32_t magic = load_le32(header), version = load_le32(header + 8);
    uint32_t sectors = load_le32(header + 12);
    if (magic == 0) { /* the kernel takes this for a new one, and so do we */
        out->valid = true;
        return true;
    }
    if (magic != MAGIC) {
        return error_set(reader->error, EUCLEAN,
                         "%s: the exception store begins with %#x: must be %#x", name, magic,
                         MAGIC);
    }
    if (version != VERSION) {
        return error_set(reader->error, ENOTSUP,
                         "%s: the exception store has version %u: must be %u", name, version,
                         VERSION);
    }
    if (!is_power_of_two(sectors) || sectors > EXCEPTIONS_CHUNK_MAX / SECTOR) {
        return error_set(reader->error, EUCLEAN,
                         "%s: a chunk of the exception store is %u sectors: must be a power of "
                         "two, at most %u",
                         name, sectors, EXCEPTIONS_CHUNK_MAX / SECTOR);
    }
    out->valid = load_le32(header + 4) != 0;
    out->chunk = sectors * SECTOR;
    uint64_t bytes = store_size(reader->store) - reader->base;
    reader->store_chunks = bytes / out->chunk;
    reader->disk_chunks = div_round_up(disk_size, out->chunk);
    return true;
}

static bool add_record(Reader *reader, uint64_t origin, uint64_t store)
{
    Exceptions *out = reader->out;
    const char *name = reader->store->name;
    if (origin >= reader->disk_chunks) {
        return error_set(reader->error, EUCLEAN,
                         "%s: exception %" PRIu64 " is of chunk %" PRIu64
                         " of the disk: must be below %" PRIu64,
                         name, out->count, origin, reader->disk_chunks);
    }
    if (store >= reader->store_chunks) {
        return error_set(reader->error, EUCLEAN,
                         "%s: exception %" PRIu64 " lies in chunk %" PRIu64
                         ", but the store ends at %" PRIu64 ": it is damaged, or was cut short",
                         name, out->count, store, reader->store_chunks);
    }
    if (is_metadata(out->chunk, store)) {
        return error_set(reader->error, EUCLEAN,
                         "%s: exception %" PRIu64 " lies in chunk %" PRIu64
                         ", which is the store's own: it is damaged",
                         name, out->count, store);
    }
    if (out->count == reader->capacity) {
        uint64_t wanted = reader->capacity ? reader->capacity * 2 : 64;
        Exception *items =
            wanted > EXCEPTIONS_MAX ? NULL : g_try_renew(Exception, out->items, wanted);
        if (!items) {
            return error_set(reader->error, ENOMEM,
                             "%s: more than %" PRIu64 " exceptions: no memory for them", name,
                             out->count);
        }
        out->items = items;
        reader->capacity = wanted;
    }
    out->items[out->count++] = (Exception){origin, store};
    return true;
}

/* *full: all records of the area are in use, so the next one goes on. */
static bool read_records(Reader *reader, const uint8_t *area, bool *full)
{
    uint64_t records = records_of_area(reader->out->chunk);
    for (uint64_t i = 0; i < records; i++) {
        uint64_t store = load_le64(area + i * RECORD_SIZE + 8);
        if (store == 0) {
            *full = false;
            return true;
        }
        if (!add_record(reader, load_le64(area + i * RECORD_SIZE), store)) {
            return false;
        }
    }
    *full = true;
    return true;
}

static bool read_areas(Reader *reader)
{
    Exceptions *out = reader->out;
    g_autofree uint8_t *area = g_try_malloc(out->chunk);
    if (!area) {
        return error_set(reader->error, ENOMEM, "%s: no memory for %u bytes", reader->store->name,
                         out->chunk);
    }
    bool more = true;
    uint64_t n;
    for (n = 0; more; n++) {
        uint64_t chunk = area_chunk(out->chunk, n);
        if (chunk >= reader->store_chunks) {
            return error_set(reader->error, EUCLEAN,
                             "%s: the exceptions go on in chunk %" PRIu64
                             ", but the store ends at %" PRIu64 ": it was cut short",
                             reader->store->name, chunk, reader->store_chunks);
        }
        int r = store_read(reader->store, area, out->chunk, reader->base + chunk * out->chunk);
        if (r < 0) {
            return error_set_errno(reader->error, -r, "%s: cannot read area %" PRIu64,
                                   reader->store->name, n);
        }
        if (!read_records(reader, area, &more)) {
            return false;
        }
    }
    out->chunks_used = 1 + n + out->count;
    return true;
}

static int compare_store(const void *a, const void *b)
{
    uint64_t x = ((const Exception *)a)->store, y = ((const Exception *)b)->store;
    return (x > y) - (x < y);
}

static int compare_origin(const void *a, const void *b)
{
    uint64_t x = ((const Exception *)a)->origin, y = ((const Exception *)b)->origin;
    return (x > y) - (x < y);
}

/* Sorts; false when two items are equal. Stores as the kernel writes them are sorted already. */
static bool sort_unique(Exceptions *list, int (*compare)(const void *, const void *))
{
    bool sorted = true;
    for (uint64_t i = 1; i < list->count && sorted; i++) {
        sorted = compare(&list->items[i - 1], &list->items[i]) < 0;
    }
    if (sorted) {
        return true;
    }
    qsort(list->items, list->count, sizeof *list->items, compare);
    for (uint64_t i = 1; i < list->count; i++) {
        if (compare(&list->items[i - 1], &list->items[i]) == 0) {
            return false;
        }
    }
    return true;
}

static bool check_unique(Reader *reader)
{
    if (!sort_unique(reader->out, compare_store)) {
        return error_set(reader->error, EUCLEAN,
                         "%s: two exceptions lie in the same chunk of the store: it is damaged",
                         reader->store->name);
    }
    if (!sort_unique(reader->out, compare_origin)) {
        return error_set(reader->error, EUCLEAN,
                         "%s: two exceptions are of the same chunk of the disk: it is damaged",
                         reader->store->name);
    }
    return true;
}

bool exceptions_read(Store *store, uint64_t base, uint64_t disk_size, Exceptions *exceptions,
                     GError **error)
{
    *exceptions = (Exceptions){0};
    if (store_size(store) < base) {
        return error_set(error, EUCLEAN,
                         "%s: is %" PRIu64 " bytes long: an exception store begins at %" PRIu64,
                         store->name, store_size(store), base);
    }
    Reader reader = {.store = store, .base = base, .out = exceptions, .error = error};
    if (read_header(&reader, disk_size) &&
        (exceptions->chunk == 0 || (read_areas(&reader) && check_unique(&reader)))) {
        return true;
    }
    exceptions_clear(exceptions);
    return false;
}

void exceptions_clear(Exceptions *exceptions)
{
    g_free(exceptions->items);
    *exceptions = (Exceptions){0};
}

/* ---- sizes --------------------------------------------------------------------------------- */

uint64_t exceptions_fit_size(uint64_t size, uint32_t chunk)
{
    uint64_t chunks = size / chunk, period = records_of_area(chunk) + 1;
    if (chunks > 1 && (chunks - 1) % period == 0) {
        chunks--;
    }
    return chunks * chunk;
}

uint64_t exceptions_full_size(uint64_t disk_size, uint32_t chunk)
{
    uint64_t contents = div_round_up(disk_size, chunk);
    uint64_t areas = contents / records_of_area(chunk) + 1;
    return (1 + areas + contents) * chunk;
}

/* ---- writing ------------------------------------------------------------------------------- */

static int write_header(ExceptionWriter *writer, bool valid)
{
    uint8_t header[HEADER_SIZE];
    store_le32(header, MAGIC);
    store_le32(header + 4, valid);
    store_le32(header + 8, VERSION);
    store_le32(header + 12, writer->chunk / SECTOR);
    return store_write(writer->store, header, sizeof header, writer->base);
}

static int write_zero_chunk(ExceptionWriter *writer, uint64_t store_chunk)
{
    g_autofree uint8_t *zeroes = g_malloc0(writer->chunk);
    return store_write(writer->store, zeroes, writer->chunk,
                       writer->base + store_chunk * writer->chunk);
}

int exceptions_writer_init(ExceptionWriter *writer, Store *store, uint64_t base, uint32_t chunk)
{
    *writer = (ExceptionWriter){.store = store, .base = base, .chunk = chunk};
    int r = write_zero_chunk(writer, 0);
    if (r == 0) {
        r = write_zero_chunk(writer, area_chunk(chunk, 0));
    }
    return r < 0 ? r : write_header(writer, true);
}

int exceptions_append(ExceptionWriter *writer, uint64_t origin_chunk, const void *contents)
{
    uint64_t records = records_of_area(writer->chunk);
    uint64_t area = area_chunk(writer->chunk, writer->count / records);
    uint64_t index = writer->count % records;
    uint64_t store_chunk = area + 1 + index;
    int r = store_write(writer->store, contents, writer->chunk,
                        writer->base + store_chunk * writer->chunk);
    if (r == 0 && index == records - 1) {
        r = write_zero_chunk(writer, area + records + 1);
    }
    uint8_t record[RECORD_SIZE];
    store_le64(record, origin_chunk);
    store_le64(record + 8, store_chunk);
    if (r == 0) {
        r = store_write(writer->store, record, sizeof record,
                        writer->base + area * writer->chunk + index * RECORD_SIZE);
    }
    writer->count += r == 0;
    return r;
}

int exceptions_invalidate(ExceptionWriter *writer)
{
    return write_header(writer, false);
}
