/*
 * vhdx: the log, read and done again.
 *
 *     the log is a ring of pages: an entry begins anywhere and goes on where the ring begins
 *     +--------+-------------+------+------+-----+
 *     | header | descriptors | data | data | ... |     all of it under one CRC-32C
 *     +--------+-------------+------+------+-----+
 *
 *     header: "loge", CRC, length 4, tail 4, sequence number 8, descriptors 4, 4, GUID of the log,
 *             size of the file that was durable 8, size that it has with this entry 8
 *     "desc", last 4 bytes of the page, its first 8, where it goes 8, sequence number 8
 *     "zero", 4, length 8, where it goes 8, sequence number 8
 *     "data", upper half of the sequence number, 4084 bytes, lower half
 *
 * The entries that count are those from the tail of the last one to itself, one behind the other. They are found in one
 * look at each page: no page inside an entry begins like an entry, so no two that are whole share a page, and CRCs are
 * computed over the length of the log at most.
 *
 * What the log says is kept in memory by pages. Table, sector bits, regions and metadata are read through it; a writer
 * writes it into the file first. So a reader sees what a writer would, and changes nothing.
 *
 * What must stay true: memory has a limit, whatever lengths the log says.
 */
#include "formats/vhdx.h"

#include "base/errors.h"

#define REPLAY_MAX    65536u /* pages, zeroes counted */
#define DATA_HEAD     8u     /* of a page's bytes in its descriptor; of what precedes the others */
#define DATA_LAST     4u
#define SIGNATURE(at) load_le32(at)
#define LOGE          0x65676f6cu
#define DESC          0x63736564u
#define ZERO          0x6f72657au
#define DATA          0x61746164u

typedef struct LogEntry {
    uint64_t sequence;
    uint32_t tail, length; /* bytes; length 0: no entry begins here */
    uint32_t descriptors;
    uint64_t flushed, last; /* sizes of the file */
} LogEntry;

typedef struct Log {
    const Image *image;
    VhdxState *s;
    uint8_t *bytes;
    uint32_t pages;
    LogEntry *entries; /* by page */
} Log;

static uint8_t *log_page(const Log *log, uint32_t page)
{
    return log->bytes + (uint64_t)(page % log->pages) * VHDX_PAGE;
}

/* Pages that header and descriptors take. */
static uint32_t descriptor_pages(uint32_t descriptors)
{
    return div_round_up(VHDX_L_HEADER_SIZE + descriptors * UINT64_C(32), VHDX_PAGE);
}

/* Descriptor `number` of the entry that begins at page. */
static const uint8_t *log_descriptor(const Log *log, uint32_t page, uint32_t number)
{
    uint64_t at = VHDX_L_HEADER_SIZE + (uint64_t)number * VHDX_L_DESCRIPTOR;
    return log_page(log, page + at / VHDX_PAGE) + at % VHDX_PAGE;
}

/* Whether descriptors and data are what the header says; all but the CRC. */
static bool is_shaped(const Log *log, uint32_t page, const LogEntry *entry)
{
    uint32_t data = page + descriptor_pages(entry->descriptors);
    uint32_t end = page + entry->length / VHDX_PAGE;
    for (uint32_t i = 0; i < entry->descriptors; i++) {
        const uint8_t *descriptor = log_descriptor(log, page, i);
        uint32_t signature = SIGNATURE(descriptor);
        if ((signature != DESC && signature != ZERO) ||
            load_le64(descriptor + 24) != entry->sequence ||
            load_le64(descriptor + 16) % VHDX_PAGE != 0 ||
            (signature == ZERO && load_le64(descriptor + 8) % VHDX_PAGE != 0)) {
            return false;
        }
        if (signature == ZERO) {
            continue;
        }
        const uint8_t *bytes = log_page(log, data);
        if (data >= end || SIGNATURE(bytes) != DATA ||
            load_le32(bytes + 4) != entry->sequence >> 32 ||
            load_le32(bytes + VHDX_PAGE - DATA_LAST) != (uint32_t)entry->sequence) {
            return false;
        }
        data++;
    }
    return data == end;
}

static bool has_right_checksum(const Log *log, uint32_t page, const LogEntry *entry)
{
    g_autofree uint8_t *whole = g_try_malloc(entry->length);
    for (uint32_t i = 0; whole && i < entry->length / VHDX_PAGE; i++) {
        memcpy(whole + (uint64_t)i * VHDX_PAGE, log_page(log, page + i), VHDX_PAGE);
    }
    return whole && load_le32(whole + VHDX_L_CHECKSUM) == vhdx_checksum(whole, entry->length);
}

static void read_entry(Log *log, uint32_t page)
{
    const uint8_t *header = log_page(log, page);
    LogEntry entry = {
        .sequence = load_le64(header + VHDX_L_SEQUENCE),
        .tail = load_le32(header + VHDX_L_TAIL),
        .length = load_le32(header + VHDX_L_LENGTH),
        .descriptors = load_le32(header + VHDX_L_DESCRIPTORS),
        .flushed = load_le64(header + VHDX_L_FLUSHED),
        .last = load_le64(header + VHDX_L_LAST),
    };
    uint64_t size = log->pages * (uint64_t)VHDX_PAGE;
    if (SIGNATURE(header) == LOGE && entry.sequence > 0 && entry.length >= VHDX_PAGE &&
        entry.length % VHDX_PAGE == 0 && entry.length <= size && entry.tail < size &&
        entry.tail % VHDX_PAGE == 0 &&
        memcmp(header + VHDX_L_GUID, log->s->header.log_guid, VHDX_GUID_SIZE) == 0 &&
        entry.descriptors <= size / VHDX_L_DESCRIPTOR &&
        descriptor_pages(entry.descriptors) <= entry.length / VHDX_PAGE &&
        is_shaped(log, page, &entry) && has_right_checksum(log, page, &entry)) {
        log->entries[page] = entry;
    }
}

/* Whether entries lie one behind the other from the tail of the one at head to itself. */
static bool is_sequence(const Log *log, uint32_t head)
{
    uint32_t page = log->entries[head].tail / VHDX_PAGE, walked = 0;
    while (page != head && walked < log->pages) {
        const LogEntry *entry = &log->entries[page];
        uint32_t next = (page + entry->length / VHDX_PAGE) % log->pages;
        if (entry->length == 0 || log->entries[next].length == 0 ||
            log->entries[next].sequence != entry->sequence + 1) {
            return false;
        }
        walked += entry->length / VHDX_PAGE;
        page = next;
    }
    return page == head;
}

static bool find_head(const Log *log, uint32_t *head)
{
    bool found = false;
    for (uint32_t page = 0; page < log->pages; page++) {
        const LogEntry *entry = &log->entries[page];
        if (entry->length != 0 && (!found || entry->sequence > log->entries[*head].sequence) &&
            is_sequence(log, page)) {
            *head = page;
            found = true;
        }
    }
    return found;
}

/* ---- done again, in memory ---- */

static void put_page(VhdxState *s, uint64_t offset, uint8_t *bytes)
{
    g_hash_table_replace(s->replayed, g_memdup2(&offset, sizeof offset), bytes);
}

static bool replay_zeroes(VhdxState *s, uint64_t offset, uint64_t length)
{
    if (length / VHDX_PAGE > REPLAY_MAX - g_hash_table_size(s->replayed)) {
        return false;
    }
    for (uint64_t at = 0; at < length; at += VHDX_PAGE) {
        put_page(s, offset + at, NULL);
    }
    return true;
}

/* A page's first and last bytes lie in its descriptor, the rest between two halves of the sequence number. */
void vhdx_log_page(const uint8_t *descriptor, const uint8_t *data, uint8_t *page)
{
    memcpy(page, descriptor + 8, DATA_HEAD);
    memcpy(page + DATA_HEAD, data + DATA_HEAD, VHDX_PAGE - DATA_HEAD - DATA_LAST);
    memcpy(page + VHDX_PAGE - DATA_LAST, descriptor + 4, DATA_LAST);
}

static bool replay_page(VhdxState *s, const uint8_t *descriptor, const uint8_t *data)
{
    if (g_hash_table_size(s->replayed) >= REPLAY_MAX) {
        return false;
    }
    uint8_t *bytes = g_malloc(VHDX_PAGE);
    vhdx_log_page(descriptor, data, bytes);
    put_page(s, load_le64(descriptor + 16), bytes);
    return true;
}

static bool replay_descriptor(const Log *log, const uint8_t *descriptor, uint32_t *data,
                              uint64_t size)
{
    uint64_t offset = load_le64(descriptor + 16);
    bool zero = SIGNATURE(descriptor) == ZERO;
    uint64_t length = zero ? load_le64(descriptor + 8) : VHDX_PAGE;
    if (offset < VHDX_REGIONS_1 || !range_within(offset, length, size)) {
        return false;
    }
    return zero ? replay_zeroes(log->s, offset, length)
                : replay_page(log->s, descriptor, log_page(log, (*data)++));
}

static bool replay_entry(const Log *log, uint32_t page, GError **error)
{
    const LogEntry *entry = &log->entries[page];
    VhdxState *s = log->s;
    uint64_t size = store_size(log->image->store);
    if (entry->flushed > size) {
        return error_set(error, EUCLEAN,
                         "%s: image is truncated: the log knows %" PRIu64
                         " bytes of the file, which has %" PRIu64,
                         log->image->path, entry->flushed, size);
    }
    if (entry->last > VHDX_FILE_MAX) {
        return error_set(error, EUCLEAN,
                         "%s: size of the file in the log is %" PRIu64 ": at most %" PRIu64,
                         log->image->path, entry->last, VHDX_FILE_MAX);
    }
    s->replayed_size = max_u64(s->replayed_size, entry->last);
    uint32_t data = page + descriptor_pages(entry->descriptors);
    for (uint32_t i = 0; i < entry->descriptors; i++) {
        const uint8_t *descriptor = log_descriptor(log, page, i);
        if (!replay_descriptor(log, descriptor, &data, vhdx_file_size(log->image, s))) {
            return error_set(
                error, EUCLEAN,
                "%s: the log changes what is at %" PRIu64
                ": must be behind the headers, within the file, and %u pages in all at most",
                log->image->path, load_le64(descriptor + 16), REPLAY_MAX);
        }
    }
    return true;
}

static bool replay(const Log *log, GError **error)
{
    uint32_t head = 0, page;
    if (!find_head(log, &head)) {
        return error_set(error, EUCLEAN,
                         "%s: the log is damaged: the header says that it has entries, but none is "
                         "whole",
                         log->image->path);
    }
    for (page = log->entries[head].tail / VHDX_PAGE; page != head;
         page = (page + log->entries[page].length / VHDX_PAGE) % log->pages) {
        if (!replay_entry(log, page, error)) {
            return false;
        }
    }
    return replay_entry(log, head, error);
}

bool vhdx_log_read(const Image *image, VhdxState *s, GError **error)
{
    const VhdxRange *range = &s->header.log;
    uint64_t size = store_size(image->store);
    if (vhdx_guid_is_null(s->header.log_guid)) {
        return true;
    }
    if (range->offset % VHDX_MIB != 0 || !range_within(range->offset, range->length, size)) {
        return error_set(error, EUCLEAN,
                         "%s: offset of the log is %" PRIu64 ", with %" PRIu64
                         " bytes: must be a multiple of 1048576, within the file, which has "
                         "%" PRIu64 " bytes",
                         image->path, range->offset, range->length, size);
    }
    g_autofree uint8_t *bytes = g_try_malloc(range->length);
    Log log = {.image = image, .s = s, .bytes = bytes, .pages = range->length / VHDX_PAGE};
    int r = bytes ? store_read(image->store, bytes, range->length, range->offset) : -ENOMEM;
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot read the log", image->path);
    }
    g_autofree LogEntry *entries = g_new0(LogEntry, log.pages);
    log.entries = entries;
    for (uint32_t page = 0; page < log.pages; page++) {
        read_entry(&log, page);
    }
    return replay(&log, error);
}

/* ---- seen through it ---- */

uint64_t vhdx_file_size(const Image *image, const VhdxState *s)
{
    return max_u64(store_size(image->store), s->replayed_size);
}

int vhdx_read(const Image *image, const VhdxState *s, void *bytes, size_t length, uint64_t offset)
{
    int r = store_read(image->store, bytes, length, offset);
    if (r < 0 || g_hash_table_size(s->replayed) == 0) {
        return r;
    }
    uint64_t end = offset + length;
    for (uint64_t page = align_down(offset, VHDX_PAGE); page < end; page += VHDX_PAGE) {
        gpointer content;
        if (!g_hash_table_lookup_extended(s->replayed, &page, NULL, &content)) {
            continue;
        }
        uint64_t from = max_u64(page, offset), to = min_u64(page + VHDX_PAGE, end);
        uint8_t *place = (uint8_t *)bytes + (from - offset);
        if (content) {
            memcpy(place, (uint8_t *)content + (from - page), to - from);
        } else {
            memset(place, 0, to - from);
        }
    }
    return 0;
}

static int put_into_cache(VhdxState *s, uint64_t offset, const uint8_t *content)
{
    MetaBlock *block;
    int r = metacache_create(s->tables, offset, &block);
    if (r < 0) {
        return r;
    }
    if (content) {
        memcpy(block->data, content, VHDX_PAGE);
    }
    metacache_dirty(s->tables, block, META_FIRST);
    metacache_put(s->tables, block);
    return 0;
}

static bool is_in_regions(const VhdxState *s, uint64_t offset)
{
    bool inside = offset < VHDX_MIB;
    for (guint i = 0; !inside && i < s->regions->len; i++) {
        const VhdxRange *region = &g_array_index(s->regions, VhdxRange, i);
        inside = offset >= region->offset && offset - region->offset < region->length;
    }
    return inside;
}

/* Set: where sector bits lie. The table is in the cache as the log leaves it. */
static int collect_bits(const Image *image, const VhdxState *s, GHashTable *places)
{
    int r = 0;
    for (uint64_t block = 0; s->has_parent && r == 0 && block < s->blocks;
         block += s->chunk_ratio) {
        uint64_t entry;
        r = vhdx_entry_get(image, vhdx_bits_entry(s, block), &entry);
        if (r == 0 && vhdx_entry_state(entry) == VHDX_PRESENT) {
            uint64_t offset = vhdx_entry_offset(entry);
            g_hash_table_add(places, g_memdup2(&offset, sizeof offset));
        }
    }
    return r;
}

/* Pages that are neither table nor sector bits nor regions, ascending. They are nobody's (sector bits of which the
 * table does not know yet), unless a block lies there. */
typedef struct Others {
    const VhdxState *s;
    GArray *offsets; /* uint64_t */
    uint64_t found;  /* that lies in a block, or 0 */
} Others;

static int compare_offsets(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static int look_in_block(void *opaque, const VhdxEntry *entry)
{
    Others *others = opaque;
    uint64_t offset = vhdx_entry_offset(entry->value);
    guint low = 0, high = others->offsets->len;
    if (entry->is_bits || !vhdx_has_place(entry->value)) {
        return 0;
    }
    while (low < high) {
        guint middle = low + (high - low) / 2;
        if (g_array_index(others->offsets, uint64_t, middle) < offset) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    uint64_t next = low < others->offsets->len ? g_array_index(others->offsets, uint64_t, low) : 0;
    if (next >= offset && next - offset < others->s->block_size && next > 0) {
        others->found = next;
    }
    return others->found ? -ENOTSUP : 0;
}

/* Guest data in a log: nobody should have put them there, and a reader would have to look for them
 * at each read. */
static bool check_others(Image *image, const VhdxState *s, GArray *offsets, GError **error)
{
    Others others = {.s = s, .offsets = offsets};
    g_array_sort(offsets, compare_offsets);
    int r = offsets->len > 0 ? vhdx_walk(image, look_in_block, &others) : 0;
    if (others.found) {
        return error_set(error, ENOTSUP,
                         "%s: the log changes bytes at %" PRIu64
                         ", which are the guest's: they are there when the image has been opened "
                         "for writing once",
                         image->path, others.found);
    }
    return r == 0 || error_set_errno(error, -r, "%s: cannot read the table", image->path);
}

static int apply_table(VhdxState *s, GList *pages)
{
    int r = 0;
    for (GList *page = pages; r == 0 && page; page = page->next) {
        uint64_t offset = *(uint64_t *)page->data;
        if (range_within(offset - s->table.offset, VHDX_PAGE, s->table.length)) {
            r = put_into_cache(s, offset, g_hash_table_lookup(s->replayed, &offset));
        }
    }
    return r;
}

static int apply_bits(const Image *image, VhdxState *s, GList *pages, GArray *others)
{
    g_autoptr(GHashTable) bits = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);
    int r = collect_bits(image, s, bits);
    for (GList *page = pages; r == 0 && page; page = page->next) {
        uint64_t offset = *(uint64_t *)page->data, place = align_down(offset, VHDX_MIB);
        if (g_hash_table_contains(bits, &place)) {
            r = put_into_cache(s, offset, g_hash_table_lookup(s->replayed, &offset));
        } else if (!is_in_regions(s, offset)) {
            g_array_append_val(others, offset);
        }
    }
    return r;
}

bool vhdx_log_apply(Image *image, VhdxState *s, GError **error)
{
    g_autoptr(GList) pages = g_hash_table_get_keys(s->replayed);
    g_autoptr(GArray) others = g_array_new(false, false, sizeof(uint64_t));
    if (!pages) {
        return true;
    }
    int r = apply_table(s, pages);
    r = r < 0 ? r : apply_bits(image, s, pages, others);
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot do the log again", image->path);
    }
    return image->write || check_others(image, s, others, error);
}

int vhdx_log_write_back(Image *image)
{
    VhdxState *s = image->state;
    static const uint8_t zeroes[VHDX_PAGE];
    GHashTableIter iter;
    gpointer offset, content;
    int r = 0;
    if (s->replayed_size > store_size(image->store)) {
        r = store_truncate(image->store, s->replayed_size);
    }
    g_hash_table_iter_init(&iter, s->replayed);
    while (r == 0 && g_hash_table_iter_next(&iter, &offset, &content)) {
        r = store_write(image->store, content ? content : zeroes, VHDX_PAGE, *(uint64_t *)offset);
    }
    r = r < 0 ? r : metacache_write(s->tables, META_FIRST);
    return r < 0 ? r : store_sync(image->store);
}
