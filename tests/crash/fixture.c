/*
 * What a crash test runs on. The backing holds stamped data in some pieces of 16 KiB and nothing in
 * others, and is shorter than the disk, so that both its holes and its end lie inside.
 */
#include "fixture.h"

#include <malloc.h>
#include <string.h>

#include "base/bytes.h"
#include "luks-keys.h"
#include "map/encryption.h"
#include "model.h"
#include "tests/lib/store-scratch.h"

#define PIECE     16384u
#define HEAP_KEPT (256 << 20)
#define LUKS_USED \
    (72u << 10) /* of a header with one key slot, of FAST_LUKS; of the other version */
#define LUKS2_USED (512 << 10)

/* Of those images that are encrypted. */
static const Secret secret = {(uint8_t *)"passphrase", 10};

static void set_option(GHashTable *options, const char *name, const char *value)
{
    if (value) {
        g_hash_table_insert(options, (char *)name, (char *)value);
    }
}

static void must(bool good, GError *error, const char *what)
{
    if (!good) {
        g_error("%s: %s", what, error ? error->message : "?");
    }
}

const char *fixture_backing_name(const Setup *setup)
{
    static const char *const names[] = {"backing.raw",  "backing.qcow2", "backing.vhd",
                                        "backing.vdi",  "backing.qcow",  "backing.vhdx",
                                        "backing.vmdk", "backing.qed"};
    unsigned i = 0;
    while (i + 1 < G_N_ELEMENTS(names) && !g_str_has_suffix(names[i], setup->backing)) {
        i++;
    }
    return names[i];
}

bool fixture_is_encrypted(const Setup *setup)
{
    return strcmp(setup->format, "luks") == 0 ||
           (setup->more_options && strstr(setup->more_options, "encrypt."));
}

bool fixture_qemu_reads(const Setup *setup)
{
    if (strcmp(setup->format, "raw") == 0) { /* that would say nothing of us */
        return false;
    }
    if (fixture_is_encrypted(setup)) {
        return false;
    }
    if (strcmp(setup->format, "vdi") == 0 && strcmp(setup->cluster_size, "1048576") != 0) {
        return false;
    }
    if (g_strcmp0(setup->table_size, "1") == 0) { /* qemu 7.2 takes none of these for valid */
        return false;
    }
    if (setup->resizes && g_strcmp0(setup->more_options, "subformat=vmfsSparse") == 0) {
        return false; /* qemu takes the size from the extent, which is cut after the descriptor says so */
    }
    return g_str_has_prefix(setup->format, "q") || strcmp(setup->format, "vmdk") == 0 ||
           !setup->backing;
}

bool fixture_needs_writer(const Setup *setup)
{
    bool two_sizes = setup->resizes && strcmp(setup->format, "vhd") == 0; /* footer and its copy */
    return setup->lazy_refcounts || two_sizes || strcmp(setup->format, "vhdx") == 0;
}

static void set_more_options(GHashTable *options, char **pairs)
{
    for (; pairs && *pairs; pairs++) {
        char *value = strchr(*pairs, '=');
        *value = '\0';
        set_option(options, *pairs, value + 1);
    }
}

static ImageFiles create_image(const Setup *setup, const char *base_name, const Format *format,
                               const Image *backing)
{
    g_autoptr(GHashTable) options = g_hash_table_new(g_str_hash, g_str_equal);
    g_auto(GStrv) pairs = setup->more_options ? g_strsplit(setup->more_options, ",", 0) : NULL;
    set_more_options(options, pairs);
    if (format == &format_vmdk) {
        set_option(options, "grain_size", setup->cluster_size);
        set_option(options, "zeroed_grain", setup->zeroed_grain);
    } else if (format->name[0] == 'v') { /* a cluster is called a block there */
        set_option(options, "block_size", setup->cluster_size);
    } else if (setup->cluster_size) {
        set_option(options, "cluster_size", setup->cluster_size);
        set_option(options, "refcount_bits", setup->refcount_bits);
        set_option(options, "compat", setup->compat);
        set_option(options, "lazy_refcounts", setup->lazy_refcounts);
        set_option(options, "table_size", setup->table_size);
        set_option(options, "extended_l2", setup->extended_l2);
    }
    uint64_t size = setup->created_size ? setup->created_size : setup->disk_size;
    FormatCreate how = {.size = size, .options = options, .secret = &secret};
    if (setup->backing) {
        how.backing_name = fixture_backing_name(setup);
        how.backing_format = setup->backing;
        how.backing = backing;
    }
    g_autoptr(GError) error = NULL;
    ImageFiles files = {0};
    must(image_files_create(&files, base_name, format, &how, &error), error, setup->name);
    return files;
}

bool fixture_is_data(uint64_t offset)
{
    return offset / PIECE % 3 != 1;
}

static void write_piece(Image *image, uint64_t offset, uint64_t length)
{
    g_autofree uint8_t *data = g_malloc(length);
    stamp_fill(data, offset, length, VALUE_BACKING);
    if (!image->format->allocate) {
        must(store_write(image->store, data, length, offset) == 0, NULL, "write backing");
        return;
    }
    Allocation allocation = {.offset = offset, .length = length}, *list = &allocation;
    extent_list_init(&allocation.extents);
    must(image->format->allocate(image, &list, 1) == 0, NULL, "allocate in backing");
    for (unsigned i = 0; i < allocation.extents.count; i++) {
        const Extent *extent = &allocation.extents.items[i];
        must(store_write(extent->store, data + (extent->offset - offset), extent->length,
                         extent->host_offset) == 0,
             NULL, "write backing");
    }
    must(image->format->commit(image, &list, 1) == 0, NULL, "commit in backing");
    extent_list_clear(&allocation.extents);
}

static void fill_pieces(Fixture *fixture, Image *image)
{
    for (uint64_t offset = 0; offset + PIECE <= image->size; offset += PIECE) {
        if (fixture_is_data(offset)) {
            write_piece(image, offset, PIECE);
            for (uint64_t i = 0; i < PIECE / CELL; i++) {
                fixture->values[offset / CELL + i] = VALUE_BACKING;
            }
        }
    }
    must(image_finish(image) == 0, NULL, "finish");
}

/* As a writer leaves an image with lazy refcounts when it is cut off: the dirty bit is set, and the
 * refcounts of what it allocated last are not on the disk. */
static void make_dirty(Fixture *fixture, const ImageFiles *files)
{
    enum { TABLE_OFFSET = 48, INCOMPATIBLE_LOW_BYTE = 79 };
    uint8_t bytes[8], dirty = 1;
    g_autoptr(GError) error = NULL;
    g_autoptr(Image) image = fixture_open(fixture, files, true, &error);
    Store *store = files->stores[0];
    must(image, error, "open to fill");
    fill_pieces(fixture, image);
    must(store_read(store, bytes, 8, TABLE_OFFSET) == 0, NULL, "read");
    must(store_read(store, bytes, 8, load_be64(bytes)) == 0, NULL, "read");
    uint64_t block = load_be64(bytes), clusters = store_size(store) / fixture->unit;
    for (uint64_t i = clusters * 2 / 3; i < clusters && i < fixture->unit / 2; i++) {
        must(store_write(store, "\0\0", 2, block + i * 2) == 0, NULL, "write");
    }
    must(store_write(store, &dirty, 1, INCOMPATIBLE_LOW_BYTE) == 0, NULL, "write");
}

static const char *smallest_unit(const char *format)
{
    if (strcmp(format, "vhdx") == 0) {
        return "1048576";
    }
    return strcmp(format, "raw") == 0 ? NULL : "4096";
}

/* What nobody has written of a luks image is noise, of which the model knows nothing. The noise in key slots without a
 * key goes, too, as qemu makes them: it takes time to read. */
static void write_zeroes(Fixture *fixture, const ImageFiles *files)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Image) image = fixture_open(fixture, files, true, &error);
    must(image, error, "open to fill");
    g_autofree uint8_t *zeroes = g_malloc0(image->size);
    struct iovec all = {zeroes, image->size};
    ExtentList list;
    extent_list_init(&list);
    must(image_map(image, 0, image->size, &list) == 0 && list.count == 1, NULL, "map");
    must(extent_write(&list.items[0], &all, 1) == 0, NULL, "write zeroes");
    bool is_luks2 = strstr(fixture->setup->more_options, "version=2") != NULL;
    uint64_t used = is_luks2 ? LUKS2_USED : LUKS_USED, begins = image->encryption->start;
    must(store_punch(files->stores[0], used, begins - used, STORE_PUNCH_FREE) == 0, NULL, "punch");
    extent_list_clear(&list);
    must(image_finish(image) == 0, NULL, "finish");
}

static void make_backing(Fixture *fixture)
{
    const Setup *setup = fixture->setup;
    const Format *format = format_find(setup->backing);
    Setup below = {.name = "backing",
                   .disk_size = align_down(setup->disk_size * 3 / 4, PIECE),
                   .cluster_size = smallest_unit(setup->backing)};
    ImageFiles files = create_image(&below, fixture_backing_name(setup), format, NULL);
    fixture->backing_store = files.stores[0];
    g_autoptr(GError) error = NULL;
    ImageOpen how = {.format = format, .write = true};
    g_autoptr(Image) image = image_open_store(fixture->backing_store, &how, NULL, &error);
    must(image, error, "open backing");
    fill_pieces(fixture, image);
    how.write = false;
    fixture->backing = image_open_store(fixture->backing_store, &how, NULL, &error);
    must(fixture->backing, error, "open backing again");
}

/* As the extents of a split vmdk are called. A file that is not there yet is an empty one here. */
static void add_spare_files(ImageFiles *files, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        g_autofree char *name = g_strdup_printf("image-s%03u.vmdk", files->count);
        image_files_add(files, store_scratch_new(name, NULL, 0));
    }
}

Fixture *fixture_new(const Setup *setup)
{
    Fixture *fixture = g_new0(Fixture, 1);
    luks_keys_keep();
    fixture->setup = setup;
    fixture->format = format_find(setup->format);
    fixture->image_name = g_strconcat("image.", setup->format, NULL);
    fixture->values = g_new0(uint32_t, setup->disk_size / CELL);
    fixture->unit = setup->cluster_size ? strtoul(setup->cluster_size, NULL, 10) : 4096;
    fixture->unit = setup->request_unit ? setup->request_unit : fixture->unit;
    if (setup->backing) {
        make_backing(fixture);
    }
    if (setup->compressed || setup->snapshot) {
        fixture_make_by_qemu(fixture);
        return fixture;
    }
    if (setup->created_size) { /* nothing of the backing shows behind the end, ever */
        uint64_t first = setup->created_size / CELL;
        memset(fixture->values + first, 0, (setup->disk_size / CELL - first) * sizeof(uint32_t));
    }
    ImageFiles files = create_image(setup, fixture->image_name, fixture->format, fixture->backing);
    add_spare_files(&files, setup->spare_files);
    if (setup->filled) {
        g_autoptr(GError) error = NULL;
        g_autoptr(Image) image = fixture_open(fixture, &files, true, &error);
        must(image, error, "open to fill");
        fill_pieces(fixture, image);
    }
    if (setup->dirty) {
        make_dirty(fixture, &files);
    }
    if (fixture->format == &format_luks) {
        write_zeroes(fixture, &files);
    }
    fixture->content = image_bytes_copy(&files, scratch_content);
    image_files_clear(&files);
    return fixture;
}

void fixture_free(Fixture *fixture)
{
    image_unref(fixture->backing);
    store_unref(fixture->backing_store);
    image_bytes_clear(&fixture->content);
    g_free(fixture->image_name);
    g_free(fixture->values);
    g_free(fixture);
}

Image *fixture_open(const Fixture *fixture, const ImageFiles *files, bool write, GError **error)
{
    ImageOpen how = {.format = fixture->format,
                     .write = write,
                     .secret = &secret,
                     .metadata_cache = fixture->setup->metadata_cache};
    return image_files_open(files, &how, fixture->backing, error);
}

Image *fixture_open_whole(const Fixture *fixture, const ImageFiles *files, GError **error)
{
    g_autoptr(Image) image = fixture_open(fixture, files, true, error);
    uint64_t size = fixture->setup->disk_size, middle = size / 1024 * 512;
    bool twice = image && !fixture->setup->resizes && image->size < middle;
    bool whole = image && (!twice || image_resize(image, middle, error)) &&
                 (image->size == size || image_resize(image, size, error));
    return whole ? g_steal_pointer(&image) : NULL;
}

void machine_start(Machine *machine)
{
    g_autoptr(GError) error = NULL;
    /* Each of the many runs takes and frees the same megabytes. Handed back to the kernel between them, their pages
     * would cost more than the run. */
    mallopt(M_MMAP_THRESHOLD, HEAP_KEPT);
    mallopt(M_TRIM_THRESHOLD, HEAP_KEPT);
    machine->pool = pool_new(3);
    machine->io_pool = pool_new(3);
    for (unsigned i = 0; i < MACHINE_WORKERS; i++) {
        machine->workers[i] = worker_new(i, &error);
        must(machine->workers[i], error, "worker");
    }
}

/* The pools first: their last jobs may still be posting to a worker. */
void machine_stop(Machine *machine)
{
    pool_free(machine->pool);
    pool_free(machine->io_pool);
    for (unsigned i = 0; i < MACHINE_WORKERS; i++) {
        worker_free(machine->workers[i]);
    }
}
