/*
 * vhdx: the metadata region.
 *
 *     table, 64 KiB: "metadata", 2 bytes, entries 2, 20 bytes; at 32, for each, 32 bytes:
 *     GUID of the item, its offset in the region 4, length 4, flags 4 (1 the user's, 2 the disk's,
 *     4 required)
 *
 *     file parameters     size of a block 4, flags 4 (1 stays allocated, 2 has a parent)
 *     virtual disk size   8                       logical, physical sector size   4
 *     virtual disk id     GUID
 *     parent locator      GUID of its type, 2 bytes, entries 2; for each, offset of the key 4 and
 *                         of the value 4, their lengths 2 and 2; all of it text in UTF-16
 *
 * The locator's keys: parent_linkage, parent_linkage2 are GUIDs of what the parent's guest sees;
 * relative_path, volume_path, absolute_win32_path say where it is, and are tried in this order.
 */
#include "formats/vhdx.h"

#include "base/errors.h"
#include "formats/windows-name.h"

#define ITEM_MAX         (1u << 20)
#define REGION_MAX       (16u << 20) /* bytes that are copied or changed */
#define METADATA_ENTRY   32u
#define LOCATOR_HEADER   20u
#define LOCATOR_ENTRY    12u
#define LOCATOR_MAX      (64u * VHDX_KIB) /* bytes that we read */
#define FLAG_DISK        2u
#define FLAG_REQUIRED    4u
#define PARAMETER_FIXED  1u
#define PARAMETER_PARENT 2u
#define NAME_MAX_CHARS   4096u

typedef enum {
    ITEM_PARAMETERS,
    ITEM_DISK_SIZE,
    ITEM_DISK_ID,
    ITEM_SECTOR_SIZE,
    ITEM_PHYSICAL_SIZE,
    ITEM_LOCATOR,
    ITEMS
} Item;

static const struct {
    uint8_t guid[VHDX_GUID_SIZE];
    uint32_t length; /* 0: any */
    uint32_t flags;  /* that we write */
    const char *name;
} items[ITEMS] = {
    [ITEM_PARAMETERS] = {{0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa, 0x43, 0x4d, 0xb3, 0xb6, 0x33, 0xf0,
                          0xaa, 0x44, 0xe7, 0x6b},
                         8,
                         FLAG_REQUIRED,
                         "file parameters"},
    [ITEM_DISK_SIZE] = {{0x24, 0x42, 0xa5, 0x2f, 0x1b, 0xcd, 0x76, 0x48, 0xb2, 0x11, 0x5d, 0xbe,
                         0xd8, 0x3b, 0xf4, 0xb8},
                        8,
                        FLAG_REQUIRED | FLAG_DISK,
                        "virtual disk size"},
    [ITEM_DISK_ID] = {{0xab, 0x12, 0xca, 0xbe, 0xe6, 0xb2, 0x23, 0x45, 0x93, 0xef, 0xc3, 0x09, 0xe0,
                       0x00, 0xc7, 0x46},
                      16,
                      FLAG_REQUIRED | FLAG_DISK,
                      "virtual disk id"},
    [ITEM_SECTOR_SIZE] = {{0x1d, 0xbf, 0x41, 0x81, 0x6f, 0xa9, 0x09, 0x47, 0xba, 0x47, 0xf2, 0x33,
                           0xa8, 0xfa, 0xab, 0x5f},
                          4,
                          FLAG_REQUIRED | FLAG_DISK,
                          "logical sector size"},
    [ITEM_PHYSICAL_SIZE] = {{0xc7, 0x48, 0xa3, 0xcd, 0x5d, 0x44, 0x71, 0x44, 0x9c, 0xc9, 0xe9, 0x88,
                             0x52, 0x51, 0xc5, 0x56},
                            4,
                            FLAG_REQUIRED | FLAG_DISK,
                            "physical sector size"},
    [ITEM_LOCATOR] = {{0x2d, 0x5f, 0xd3, 0xa8, 0x0b, 0xb3, 0x4d, 0x45, 0xab, 0xf7, 0xd3, 0xd8, 0x48,
                       0x34, 0xab, 0x0c},
                      0,
                      FLAG_REQUIRED,
                      "parent locator"},
};

static const uint8_t locator_type[VHDX_GUID_SIZE] = {
    0xb7, 0xef, 0x4a, 0xb0, 0x9e, 0xd1, 0x81, 0x4a, 0xb7, 0x89, 0x25, 0xb8, 0xe9, 0x44, 0x59, 0x13};

/* ---- read ---- */

static bool take_entry(const Image *image, const VhdxState *s, const uint8_t *entry,
                       VhdxRange *found, GError **error)
{
    uint32_t offset = load_le32(entry + 16), length = load_le32(entry + 20);
    unsigned item = 0;
    while (item < ITEMS && memcmp(entry, items[item].guid, VHDX_GUID_SIZE) != 0) {
        item++;
    }
    if (item == ITEMS) {
        g_autofree char *guid = vhdx_guid_text(entry);
        return !(load_le32(entry + 24) & FLAG_REQUIRED) ||
               error_set(error, ENOTSUP, "%s: needs metadata %s that are not known here",
                         image->path, guid);
    }
    if (offset < VHDX_TABLE_SIZE || length > ITEM_MAX || length == 0 ||
        !range_within(offset, length, s->metadata.length) ||
        (items[item].length != 0 && items[item].length != length)) {
        return error_set(error, EUCLEAN,
                         "%s: %s is at %u of the metadata, with %u bytes: must be behind 65536, "
                         "within the region, with the right length",
                         image->path, items[item].name, offset, length);
    }
    found[item] = (VhdxRange){s->metadata.offset + offset, length};
    return true;
}

static bool find_items(const Image *image, const VhdxState *s, VhdxRange *found, GError **error)
{
    g_autofree uint8_t *table = g_malloc(VHDX_TABLE_SIZE);
    int r = vhdx_read(image, s, table, VHDX_TABLE_SIZE, s->metadata.offset);
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot read the metadata", image->path);
    }
    unsigned count = load_le16(table + 10);
    if (memcmp(table, "metadata", 8) != 0) {
        return error_set(error, EUCLEAN, "%s: signature of the metadata: must be 'metadata'",
                         image->path);
    }
    if (count > VHDX_ENTRIES_MAX) {
        return error_set(error, EUCLEAN, "%s: entry count of the metadata is %u: at most %u",
                         image->path, count, VHDX_ENTRIES_MAX);
    }
    for (unsigned i = 0; i < count; i++) {
        if (!take_entry(image, s, table + 32 + i * METADATA_ENTRY, found, error)) {
            return false;
        }
    }
    for (unsigned item = 0; item < ITEM_LOCATOR; item++) {
        if (found[item].length == 0 && item != ITEM_DISK_ID && item != ITEM_PHYSICAL_SIZE) {
            return error_set(error, EUCLEAN, "%s: the metadata have no %s", image->path,
                             items[item].name);
        }
    }
    return true;
}

static bool read_item(const Image *image, const VhdxState *s, VhdxRange place, uint8_t *bytes,
                      GError **error)
{
    int r = vhdx_read(image, s, bytes, place.length, place.offset);
    return r == 0 || error_set_errno(error, -r, "%s: cannot read the metadata", image->path);
}

static bool check_sizes(const Image *image, const VhdxState *s, uint64_t size, GError **error)
{
    if (!is_power_of_two(s->block_size) || s->block_size < VHDX_BLOCK_MIN ||
        s->block_size > VHDX_BLOCK_MAX) {
        return error_set(error, EUCLEAN,
                         "%s: block size is %" PRIu64 ": must be a power of two from %" PRIu64
                         " to %" PRIu64,
                         image->path, s->block_size, VHDX_BLOCK_MIN, VHDX_BLOCK_MAX);
    }
    if (s->sector_size != 512 && s->sector_size != 4096) {
        return error_set(error, EUCLEAN,
                         "%s: logical sector size is %" PRIu64 ": must be 512 or 4096", image->path,
                         s->sector_size);
    }
    if (size % s->sector_size != 0 || size > VHDX_DISK_MAX) {
        return error_set(error, EUCLEAN,
                         "%s: virtual disk size is %" PRIu64 ": must be a multiple of %" PRIu64
                         " up to %" PRIu64,
                         image->path, size, s->sector_size, VHDX_DISK_MAX);
    }
    return true;
}

static bool read_sizes(Image *image, VhdxState *s, const VhdxRange *found, GError **error)
{
    uint8_t parameters[8], size[8], sector[4];
    if (!read_item(image, s, found[ITEM_PARAMETERS], parameters, error) ||
        !read_item(image, s, found[ITEM_DISK_SIZE], size, error) ||
        !read_item(image, s, found[ITEM_SECTOR_SIZE], sector, error)) {
        return false;
    }
    uint32_t flags = load_le32(parameters + 4);
    s->block_size = load_le32(parameters);
    s->sector_size = load_le32(sector);
    s->fixed = flags & PARAMETER_FIXED;
    s->has_parent = flags & PARAMETER_PARENT;
    if (!check_sizes(image, s, load_le64(size), error)) {
        return false;
    }
    image->size = load_le64(size);
    s->size_offset = found[ITEM_DISK_SIZE].offset;
    s->blocks = div_round_up(image->size, s->block_size);
    s->chunk_ratio = VHDX_CHUNK_SECTORS * s->sector_size / s->block_size;
    uint64_t needed = vhdx_entries_needed(s) * 8;
    return needed <= s->table.length ||
           error_set(error, EUCLEAN,
                     "%s: length of the block allocation table is %" PRIu64
                     ": the disk needs %" PRIu64,
                     image->path, s->table.length, needed);
}

/* One text of the locator; "" when it does not lie inside. */
static char *locator_text(const uint8_t *bytes, uint64_t length, uint32_t offset, uint16_t size)
{
    char *text = range_within(offset, size, length)
                     ? windows_name_decode(bytes + offset, size, "UTF-16LE")
                     : NULL;
    return text ? text : g_strdup("");
}

static GHashTable *unpack_locator(const uint8_t *bytes, uint64_t length)
{
    GHashTable *values = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
    unsigned count = load_le16(bytes + 18);
    for (unsigned i = 0; i < count && LOCATOR_HEADER + (i + 1) * LOCATOR_ENTRY <= length; i++) {
        const uint8_t *entry = bytes + LOCATOR_HEADER + i * LOCATOR_ENTRY;
        g_hash_table_insert(
            values, locator_text(bytes, length, load_le32(entry), load_le16(entry + 8)),
            locator_text(bytes, length, load_le32(entry + 4), load_le16(entry + 10)));
    }
    return values;
}

static bool take_parent(Image *image, VhdxState *s, GHashTable *values, GError **error)
{
    static const char *const paths[] = {"relative_path", "volume_path", "absolute_win32_path"};
    const char *linkage = g_hash_table_lookup(values, "parent_linkage");
    const char *linkage2 = g_hash_table_lookup(values, "parent_linkage2");
    char *name = NULL;
    if (!linkage || !vhdx_guid_parse(linkage, s->parent_guid[0])) {
        return error_set(error, EUCLEAN,
                         "%s: parent_linkage of the parent locator is '%s': must be a GUID",
                         image->path, linkage ? linkage : "");
    }
    if (!linkage2 || !vhdx_guid_parse(linkage2, s->parent_guid[1])) {
        memcpy(s->parent_guid[1], s->parent_guid[0], VHDX_GUID_SIZE);
    }
    for (unsigned i = 0; !name && i < G_N_ELEMENTS(paths); i++) {
        name = windows_name_to_local(g_strdup(g_hash_table_lookup(values, paths[i])));
    }
    if (!name) {
        return error_set(error, EUCLEAN, "%s: the parent locator has no path of the parent",
                         image->path);
    }
    image->backing_name = name;
    image->backing_substitute = windows_name_substitute(name);
    image->backing_format = g_strdup("vhdx");
    return true;
}

static bool read_parent(Image *image, VhdxState *s, VhdxRange place, GError **error)
{
    if (place.length < LOCATOR_HEADER || place.length > LOCATOR_MAX) {
        return error_set(error, EUCLEAN,
                         "%s: has a parent, but its parent locator has %" PRIu64
                         " bytes: must have %u to %u",
                         image->path, place.length, LOCATOR_HEADER, LOCATOR_MAX);
    }
    g_autofree uint8_t *bytes = g_malloc(place.length);
    if (!read_item(image, s, place, bytes, error)) {
        return false;
    }
    if (memcmp(bytes, locator_type, VHDX_GUID_SIZE) != 0) {
        g_autofree char *guid = vhdx_guid_text(bytes);
        return error_set(error, ENOTSUP,
                         "%s: type of the parent locator is %s: must be that of "
                         "another vhdx",
                         image->path, guid);
    }
    g_autoptr(GHashTable) values = unpack_locator(bytes, place.length);
    return take_parent(image, s, values, error);
}

bool vhdx_metadata_read(Image *image, VhdxState *s, GError **error)
{
    VhdxRange found[ITEMS] = {{0}};
    if (!find_items(image, s, found, error) || !read_sizes(image, s, found, error)) {
        return false;
    }
    return !s->has_parent || read_parent(image, s, found[ITEM_LOCATOR], error);
}

/* ---- make ---- */

/* Appends an item to the region, and its entry to the table at the region's start. */
static void add_item(GByteArray *region, Item item, const uint8_t *bytes, uint32_t length)
{
    unsigned count = load_le16(region->data + 10);
    uint32_t offset = region->len;
    g_byte_array_append(region, bytes, length);
    uint8_t *entry = region->data + 32 + count * METADATA_ENTRY;
    memcpy(entry, items[item].guid, VHDX_GUID_SIZE);
    store_le32(entry + 16, offset);
    store_le32(entry + 20, length);
    store_le32(entry + 24, items[item].flags);
    store_le16(region->data + 10, count + 1);
}

static void add_number(GByteArray *region, Item item, uint64_t value)
{
    uint8_t bytes[8];
    store_le64(bytes, value);
    add_item(region, item, bytes, items[item].length);
}

static bool add_text(GByteArray *locator, unsigned at, unsigned length_at, const char *text)
{
    gsize length;
    g_autofree char *utf16 = g_convert(text, -1, "UTF-16LE", "UTF-8", NULL, &length, NULL);
    if (!utf16 || length > NAME_MAX_CHARS * 2) {
        return false;
    }
    store_le32(locator->data + at, locator->len);
    store_le16(locator->data + length_at, length);
    g_byte_array_append(locator, (uint8_t *)utf16, length);
    return true;
}

static bool add_locator(GByteArray *region, const VhdxParent *parent, GError **error)
{
    g_autofree char *linkage = vhdx_guid_text(parent->guid);
    g_autofree char *path = windows_name_from_local(parent->name, error);
    const char *texts[] = {"parent_linkage", linkage,
                           parent->name[0] == '/' ? "absolute_win32_path" : "relative_path", path};
    if (!path) {
        return false;
    }
    g_autoptr(GByteArray) locator = g_byte_array_new();
    g_byte_array_set_size(locator, LOCATOR_HEADER + 2 * LOCATOR_ENTRY);
    memset(locator->data, 0, locator->len);
    memcpy(locator->data, locator_type, VHDX_GUID_SIZE);
    store_le16(locator->data + 18, 2);
    for (unsigned i = 0; i < G_N_ELEMENTS(texts); i++) {
        unsigned entry = LOCATOR_HEADER + i / 2 * LOCATOR_ENTRY;
        if (!add_text(locator, entry + i % 2 * 4, entry + 8 + i % 2 * 2, texts[i])) {
            return error_set(error, EINVAL,
                             "the name of the backing file must be text in UTF-8, of at most %u "
                             "characters",
                             NAME_MAX_CHARS);
        }
    }
    add_item(region, ITEM_LOCATOR, locator->data, locator->len);
    return true;
}

GByteArray *vhdx_metadata_make(const VhdxState *s, uint64_t size, const VhdxParent *parent,
                               GError **error)
{
    g_autoptr(GByteArray) region = g_byte_array_new();
    uint8_t id[VHDX_GUID_SIZE];
    uint32_t flags = (s->fixed ? PARAMETER_FIXED : 0) | (parent ? PARAMETER_PARENT : 0);
    if (!vhdx_guid_make(id, error)) {
        return NULL;
    }
    g_byte_array_set_size(region, VHDX_TABLE_SIZE);
    memset(region->data, 0, region->len);
    memcpy(region->data, "metadata", 8);
    add_number(region, ITEM_PARAMETERS, s->block_size | (uint64_t)flags << 32);
    add_number(region, ITEM_DISK_SIZE, size);
    add_item(region, ITEM_DISK_ID, id, sizeof id);
    add_number(region, ITEM_SECTOR_SIZE, s->sector_size);
    add_number(region, ITEM_PHYSICAL_SIZE, 4096);
    if (parent && !add_locator(region, parent, error)) {
        return NULL;
    }
    return g_steal_pointer(&region);
}

/* ---- another parent ---- */

GByteArray *vhdx_metadata_region(const Image *image, GError **error)
{
    const VhdxState *s = image->state;
    g_autoptr(GByteArray) region = g_byte_array_new();
    VhdxRange found[ITEMS] = {{0}};
    if (!find_items(image, s, found, error)) {
        return NULL;
    }
    g_byte_array_set_size(region, VHDX_TABLE_SIZE);
    int r = vhdx_read(image, s, region->data, region->len, s->metadata.offset);
    unsigned count = load_le16(region->data + 10);
    uint64_t end = VHDX_TABLE_SIZE;
    for (unsigned i = 0; r == 0 && i < count; i++) {
        const uint8_t *entry = region->data + 32 + i * METADATA_ENTRY;
        end = max_u64(end, load_le32(entry + 16) + (uint64_t)load_le32(entry + 20));
    }
    end = min_u64(end, s->metadata.length);
    if (end > REGION_MAX) {
        error_set(error, EFBIG, "%s: the metadata have %" PRIu64 " bytes: must have at most %u",
                  image->path, end, REGION_MAX);
        return NULL;
    }
    g_byte_array_set_size(region, end);
    r = r < 0 ? r
              : vhdx_read(image, s, region->data + VHDX_TABLE_SIZE, end - VHDX_TABLE_SIZE,
                          s->metadata.offset + VHDX_TABLE_SIZE);
    if (r < 0) {
        error_set_errno(error, -r, "%s: cannot read the metadata", image->path);
        return NULL;
    }
    return g_steal_pointer(&region);
}

/* Where in the region an item's entry is; NULL: it has none. */
static uint8_t *find_entry(const GByteArray *region, Item item)
{
    unsigned count = load_le16(region->data + 10);
    for (unsigned i = 0; i < count; i++) {
        uint8_t *entry = region->data + 32 + i * METADATA_ENTRY;
        if (memcmp(entry, items[item].guid, VHDX_GUID_SIZE) == 0) {
            return entry;
        }
    }
    return NULL;
}

/* The last item takes the place of the locator in the table. */
static void drop_locator(GByteArray *region)
{
    uint8_t *entry = find_entry(region, ITEM_LOCATOR);
    if (entry) {
        unsigned last = load_le16(region->data + 10) - 1;
        memmove(entry, region->data + 32 + last * METADATA_ENTRY, METADATA_ENTRY);
        memset(region->data + 32 + last * METADATA_ENTRY, 0, METADATA_ENTRY);
        store_le16(region->data + 10, last);
    }
}

/* The pages of the region that are not what they were. */
static int change_pages(Image *image, const GByteArray *region)
{
    const VhdxState *s = image->state;
    int r = 0;
    for (uint64_t at = 0; r == 0 && at < region->len; at += VHDX_PAGE) {
        MetaBlock *page;
        uint64_t length = min_u64(VHDX_PAGE, region->len - at);
        r = metacache_get(s->tables, s->metadata.offset + at, &page);
        if (r == 0) {
            if (memcmp(page->data, region->data + at, length) != 0) {
                memcpy(page->data, region->data + at, length);
                metacache_dirty(s->tables, page, META_SECOND);
            }
            metacache_put(s->tables, page);
        }
    }
    vhdx_update_dirty(image->state);
    return r;
}

bool vhdx_metadata_set_parent(Image *image, const VhdxParent *parent, GError **error)
{
    const VhdxState *s = image->state;
    g_autoptr(GByteArray) region = vhdx_metadata_region(image, error);
    if (!region) {
        return false;
    }
    uint8_t *flags = region->data + load_le32(find_entry(region, ITEM_PARAMETERS) + 16) + 4;
    store_le32(flags, (load_le32(flags) & ~PARAMETER_PARENT) | (parent ? PARAMETER_PARENT : 0));
    drop_locator(region);
    if (parent && !add_locator(region, parent, error)) {
        return false;
    }
    if (region->len > s->metadata.length || load_le16(region->data + 10) > VHDX_ENTRIES_MAX) {
        return error_set(error, ENOSPC, "%s: the metadata have no room for another parent",
                         image->path);
    }
    int r = change_pages(image, region);
    return r == 0 || error_set_errno(error, -r, "%s: cannot change the metadata", image->path);
}
