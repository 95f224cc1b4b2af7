/*
 * Opening images and chains, and the check of every answer that a format gives.
 *
 * A chain is opened from the top down in one loop. Each file is opened, compared with those above
 * it (a loop would otherwise end only at the depth limit, or as a lock that this process holds
 * against itself), then locked, then given to its format. Only the top may be opened for writing, and
 * one below it by who asks for that (write_depth).
 *
 * What must stay true: image_map lets nothing through that is out of order, out of the range that
 * was asked for, or outside its store; whatever a format makes of a hostile image, the movers
 * behind it can trust the list.
 */
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "map/image.h"

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/errors.h"
#include "base/log.h"
#include "formats/format.h"
#include "map/encryption.h"
#include "map/image-name.h"
#include "store/store-file.h"

#define HOST_SECTOR   512u        /* raw files are rounded up to it */
#define UNIT_MAX      (64u << 20) /* bytes an encoded unit may decode to, or be stored in */
#define FINISH_ROUNDS 8           /* flushes until nothing is pending; two do */

/* Who is in the chain so far, to find loops. */
typedef struct ChainFile {
    dev_t device;
    ino_t inode;
    char *path;
} ChainFile;

static void chain_file_clear(void *item)
{
    g_free(((ChainFile *)item)->path);
}

static GArray *chain_files_new(void)
{
    GArray *files = g_array_new(false, false, sizeof(ChainFile));
    g_array_set_clear_func(files, chain_file_clear);
    return files;
}

static bool refuse_loop(const GArray *files, unsigned first, const char *path, GError **error)
{
    g_autoptr(GString) text = g_string_new("backing file loop: ");
    for (unsigned i = first; i < files->len; i++) {
        g_string_append_printf(text, "%s -> ", g_array_index(files, ChainFile, i).path);
    }
    g_string_append(text, path);
    return error_set(error, ELOOP, "%s: the backing file must not be above itself", text->str);
}

/* Takes note of the file; false when it is in the chain already, or the chain is too long. */
static bool chain_files_add(GArray *files, int fd, const char *path, GError **error)
{
    struct stat st;
    if (fstat(fd, &st) < 0) {
        return error_set_errno(error, errno, "%s: cannot look at it", path);
    }
    ChainFile file = {.device = st.st_dev, .inode = st.st_ino};
    if (S_ISBLK(st.st_mode)) { /* the device counts, not which of its nodes was opened */
        file.device = st.st_rdev;
        file.inode = 0;
    }
    for (unsigned i = 0; i < files->len; i++) {
        const ChainFile *above = &g_array_index(files, ChainFile, i);
        if (above->device == file.device && above->inode == file.inode) {
            return refuse_loop(files, i, path, error);
        }
    }
    if (files->len == IMAGE_CHAIN_MAX) {
        return error_set(error, ELOOP,
                         "%s: the chain has more than %d images: bring some together with 'cownbd "
                         "rebase' or 'cownbd commit'",
                         g_array_index(files, ChainFile, 0).path, IMAGE_CHAIN_MAX);
    }
    file.path = g_strdup(path);
    g_array_append_val(files, file);
    return true;
}

static bool find_format(Image *image, const Format *wanted, GError **error)
{
    if (wanted) {
        image->format = wanted;
        return true;
    }
    uint8_t head[IMAGE_PROBE_SIZE];
    size_t n = min_u64(sizeof head, store_size(image->store));
    int r = store_read(image->store, head, n, 0);
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot read its first bytes", image->path);
    }
    image->format = format_probe(head, n, image->path);
    image->format_guessed = true;
    return true;
}

/* What no format may get wrong. */
static bool check_opened(const Image *image, GError **error)
{
    if (image->size > INT64_MAX) {
        return error_set(error, EUCLEAN,
                         "%s: the virtual size is %" G_GUINT64_FORMAT " bytes: must be below 2^63",
                         image->path, image->size);
    }
    g_assert(is_power_of_two(image->allocation_unit) && is_power_of_two(image->largest_unit) &&
             image->largest_unit >= image->allocation_unit);
    return true;
}

static bool show_snapshot(Image *image, const char *name, GError **error)
{
    if (image->write) {
        return error_set(error, EINVAL, "%s: snapshot '%s': can only be opened for reading",
                         image->path, name);
    }
    if (!image->format->snapshot_show) {
        return error_set(
            error, ENOTSUP,
            "%s: snapshot '%s': format %s has no snapshots: only qcow2 and parallels have",
            image->path, name, image->format->name);
    }
    return image->format->snapshot_show(image, name, error);
}

/* An image on store, its own format open, its backing not. Takes over a reference to store. */
static Image *open_one(Store *store, const char *path, const Format *format, const ImageOpen *how,
                       bool no_names, GError **error)
{
    g_autoptr(Image) image = g_new0(Image, 1);
    image->refs = 1;
    image->store = store;
    image->path = g_strdup(path);
    image->allocation_unit = 1;
    image->write = how->write;
    image->repair = how->repair;
    image->no_lock = how->no_lock;
    image->keep_identity = how->keep_identity;
    image->vhd_size = how->vhd_size;
    image->no_names = no_names;
    image->metadata_cache =
        how->metadata_cache ? how->metadata_cache : IMAGE_METADATA_CACHE_DEFAULT;
    image->allow_paths = how->allow_paths;
    image->parts = how->parts ? g_hash_table_ref(how->parts) : NULL;
    image->secret = how->secret ? how->secret : secrets_find(how->secrets, path);
    image->no_secrets = how->no_secrets;
    if (!find_format(image, format, error)) {
        return NULL;
    }
    if (!image->format->open(image, error)) {
        image->format = NULL; /* open freed what it made */
        return NULL;
    }
    image->largest_unit = max_u64(image->largest_unit, image->allocation_unit);
    if ((how->snapshot && !show_snapshot(image, how->snapshot, error)) ||
        !check_opened(image, error)) {
        return NULL;
    }
    return g_steal_pointer(&image);
}

/* Takes over fd. */
static Image *open_file(int fd, const char *path, const Format *format, const ImageOpen *how,
                        GArray *files, GError **error)
{
    autofd int owned = fd;
    if (!chain_files_add(files, fd, path, error)) {
        return NULL;
    }
    Store *store = store_file_from_fd(fd_steal(&owned), path,
                                      image_store_flags(how->write, how->no_lock), error);
    return store ? open_one(store, path, format, how, false, error) : NULL;
}

/* The format that image declares for its backing; *format is NULL when it must be found by probing. */
static bool backing_format(const Image *image, const Format **format, GError **error)
{
    *format = NULL;
    const char *name = image->backing_format;
    if (!name) {
        return true;
    }
    /* qemu's names for "the bytes of the file as they are" */
    if (strcmp(name, "file") == 0 || strcmp(name, "host_device") == 0) {
        name = "raw";
    }
    *format = format_find(name);
    if (!*format) {
        g_autofree char *names = format_names();
        return error_set(error, ENOTSUP, "%s: the backing format is '%s': must be one of %s",
                         image->path, name, names);
    }
    return true;
}

static int try_backing_name(Image *image, const char *name, bool write, GError **error)
{
    g_clear_pointer(&image->backing_path, g_free);
    return image_name_open(image, "backing file", name, write, &image->backing_path, error);
}

/* A name that is none of a file may be one of a directory that is an image. */
static int try_backing_directory(Image *image, bool write)
{
    int fd = -1;
    for (const Format *const *format = formats; *format && fd < 0; format++) {
        const char *file = (*format)->directory_file;
        if (file) {
            g_autofree char *name = g_build_filename(image->backing_name, file, NULL);
            fd = try_backing_name(image, name, write, NULL);
        }
    }
    return fd;
}

static int open_backing_name(Image *image, bool write, GError **error)
{
    g_autoptr(GError) first = NULL;
    int fd = try_backing_name(image, image->backing_name, write, &first);
    if (fd < 0 && image->backing_substitute) {
        fd = try_backing_name(image, image->backing_substitute, write, NULL);
    }
    fd = fd < 0 ? try_backing_directory(image, write) : fd;
    if (fd < 0) {
        g_propagate_error(error, g_steal_pointer(&first));
    }
    return fd;
}

static bool check_backing(Image *image, GError **error)
{
    return !image->format->check_backing || image->format->check_backing(image, error);
}

/* See IMAGE_UNFOLDED_SUFFIX. */
static bool check_unfolded(const Image *image, GError **error)
{
    char *real = realpath(image->path, NULL);
    g_autofree char *store = g_strconcat(real ? real : image->path, IMAGE_UNFOLDED_SUFFIX, NULL);
    free(real);
    if (access(store, F_OK) != 0) {
        return true;
    }
    if (image->write) {
        return error_set(error, EBUSY,
                         "%s: has writes in %s that are not in the image yet: bring them in with "
                         "'cownbd fold %s', or open it read-only",
                         image->path, store, image->path);
    }
    log_warning("%s: is old: what was written to it since then is in %s", image->path, store);
    return true;
}

static bool start_writing(Image *image, GError **error)
{
    return !image->write || !image->format->start_writing ||
           image->format->start_writing(image, error);
}

/* Opens the image below this one, and that alone. */
static bool open_backing(Image *image, const ImageOpen *top, GArray *files, GError **error)
{
    ImageOpen how = *top;
    how.write = top->write_depth != 0 && top->write_depth == files->len;
    how.repair = false;
    how.snapshot = NULL;
    how.parts = NULL;
    how.secret = NULL;
    const Format *format;
    if (!backing_format(image, &format, error)) {
        return false;
    }
    int fd = open_backing_name(image, how.write, error);
    if (fd < 0) {
        return false;
    }
    image->backing = open_file(fd, image->backing_path, format, &how, files, error);
    if (!image->backing && error && (*error)->code == ELOOP) {
        return false; /* says the whole chain already */
    }
    if (!image->backing) {
        g_prefix_error(error, "%s: backing file: ", image->path);
        return false;
    }
    if (image->backing->format_guessed) {
        log_info("%s: does not say the format of its backing file %s: found %s", image->path,
                 image->backing_path, image->backing->format->name);
    }
    return check_backing(image, error);
}

Image *image_open(const char *path, const ImageOpen *how, GError **error)
{
    g_autoptr(GArray) files = chain_files_new();
    g_autofree char *in_directory = image_name_in_directory(AT_FDCWD, path, how->format);
    path = in_directory ? in_directory : path;
    int fd = image_path_open(path, how->write, error);
    if (fd < 0) {
        return NULL;
    }
    g_autoptr(Image) top = open_file(fd, path, how->format, how, files, error);
    if (!top) {
        return NULL;
    }
    for (Image *image = top; image->backing_name && !how->no_backing; image = image->backing) {
        if (!open_backing(image, how, files, error)) {
            return NULL;
        }
    }
    for (Image *image = top; image; image = image->backing) {
        image->allow_paths = NULL;
        g_clear_pointer(&image->parts, g_hash_table_unref);
        image->secret = NULL;
        if (!how->fold && !check_unfolded(image, error)) {
            return NULL;
        }
    }
    for (Image *image = top; image; image = image->backing) {
        if (!start_writing(image, error)) {
            return NULL;
        }
    }
    return g_steal_pointer(&top);
}

Image *image_open_store(Store *store, const ImageOpen *how, Image *backing, GError **error)
{
    g_autoptr(Image) image = open_one(store_ref(store), store->name, how->format, how, true, error);
    if (!image) {
        return NULL;
    }
    if (backing) {
        image->backing = image_ref(backing);
        if (!check_backing(image, error)) {
            return NULL;
        }
    }
    image->allow_paths = NULL;
    image->secret = NULL;
    return start_writing(image, error) ? g_steal_pointer(&image) : NULL;
}

void image_name_backing(Image *image, const char *name, const char *format)
{
    g_free(image->backing_name);
    g_free(image->backing_format);
    image->backing_name = g_strdup(name);
    image->backing_format = g_strdup(format);
}

Image *image_ref(Image *image)
{
    atomic_fetch_add(&image->refs, 1);
    return image;
}

static void image_free(Image *image)
{
    if (image->format) {
        image->format->close(image);
    }
    encryption_free(image->encryption);
    store_unref(image->store);
    g_clear_pointer(&image->parts, g_hash_table_unref);
    g_free(image->path);
    g_free(image->backing_name);
    g_free(image->backing_format);
    g_free(image->backing_path);
    g_free(image->backing_substitute);
    g_free(image);
}

void image_unref(Image *image)
{
    while (image && atomic_fetch_sub(&image->refs, 1) == 1) {
        Image *backing = image->backing;
        image_free(image);
        image = backing;
    }
}

int image_finish(Image *image)
{
    const Format *format = image->format;
    if (!image->write) {
        return 0;
    }
    for (int round = 0; round < FINISH_ROUNDS; round++) {
        int r = format->flush ? format->flush(image) : image_sync(image);
        if (r < 0) {
            return r;
        }
        if (!format->is_dirty || !format->is_dirty(image)) {
            break;
        }
    }
    return format->finish ? format->finish(image) : 0;
}

int image_sync(Image *image)
{
    return image->format->sync ? image->format->sync(image) : store_sync(image->store);
}

/* "raw, qcow2" */
static char *resizable_names(void)
{
    g_autoptr(GString) names = g_string_new(NULL);
    for (const Format *const *format = formats; *format; format++) {
        if ((*format)->resize) {
            g_string_append_printf(names, "%s%s", names->len ? ", " : "", (*format)->name);
        }
    }
    return g_string_free(g_steal_pointer(&names), FALSE);
}

bool image_resize(Image *image, uint64_t size, GError **error)
{
    if (!image->format->resize) {
        g_autofree char *names = resizable_names();
        return error_set(error, ENOTSUP, "%s: a %s image keeps its size: only %s can change it",
                         image->path, image->format->name, names);
    }
    if (!image->write) {
        return error_set(error, EACCES, "%s: is open read-only: its size cannot change",
                         image->path);
    }
    if (size > INT64_MAX) {
        return error_set(error, EFBIG,
                         "%s: size is %" G_GUINT64_FORMAT " bytes: must be below 2^63", image->path,
                         size);
    }
    return size == image->size || image->format->resize(image, size, error);
}

uint64_t image_allocated_bytes(const Image *image)
{
    const Format *format = image->format;
    return format->allocated_bytes ? format->allocated_bytes(image)
                                   : store_allocated_bytes(image->store);
}

static int refuse_answer(const Image *image, const Extent *extent, const char *what)
{
    log_limited(LOG_LEVEL_ERROR,
                "%s: the map at offset %" G_GUINT64_FORMAT " (%" G_GUINT64_FORMAT
                " bytes, host offset %" G_GUINT64_FORMAT ") cannot be true: %s",
                image->path, extent->offset, extent->length, extent->host_offset, what);
    return -EIO;
}

static int refuse_truncated(const Image *image, const Extent *extent)
{
    log_limited(LOG_LEVEL_ERROR,
                "%s: image is truncated: offset %" G_GUINT64_FORMAT
                " should be at host offset %" G_GUINT64_FORMAT
                " of %s, which has %" G_GUINT64_FORMAT " bytes",
                image->path, extent->offset, extent->host_offset, extent->store->name,
                store_size(extent->store));
    return -EIO;
}

/* A whole unit may be cut short at the end of the file, no more. A run that goes on beyond is cut
 * there; its rest is refused when it is asked for. */
static int check_host_range(const Image *image, Extent *extent)
{
    uint64_t end;
    if (!extent->store) {
        return refuse_answer(image, extent, "it has no store");
    }
    if (!add_u64(extent->host_offset, extent->length, &end) || end > INT64_MAX) {
        return refuse_answer(image, extent, "it ends beyond 2^63");
    }
    uint64_t unit = max_u64(image->largest_unit, HOST_SECTOR);
    uint64_t limit = align_up(store_size(extent->store), unit);
    if (extent->host_offset >= limit) {
        return refuse_truncated(image, extent);
    }
    extent->length = min_u64(extent->length, limit - extent->host_offset);
    return 0;
}

static int check_encoded(const Image *image, const Extent *extent)
{
    if (!extent->store) {
        return refuse_answer(image, extent, "it has no store");
    }
    if (!image->format->decode || extent->stored_length == 0 || extent->stored_length > UNIT_MAX ||
        extent->unit_length > UNIT_MAX ||
        !range_within(extent->unit_offset, extent->length, extent->unit_length)) {
        return refuse_answer(image, extent, "the unit of encoded data is wrong");
    }
    return extent->host_offset < store_size(extent->store) ? 0 : refuse_truncated(image, extent);
}

static int check_extent(const Image *image, Extent *extent)
{
    if (extent->flags & (EXTENT_NEW | EXTENT_FRESH)) {
        return refuse_answer(image, extent, "it is shown before it was committed");
    }
    if ((extent->flags & EXTENT_WRITABLE) && (!image->write || extent->type != EXTENT_DATA)) {
        return refuse_answer(image, extent, "it is called writable");
    }
    switch (extent->type) {
    case EXTENT_DATA:
        /* A hole of the host file decrypts to noise. */
        extent->flags &= image->encryption ? ~EXTENT_SPARSE : UINT8_MAX;
        return check_host_range(image, extent);
    case EXTENT_ENCODED:
        return check_encoded(image, extent);
    case EXTENT_UNALLOCATED:
    case EXTENT_ZERO:
        return 0;
    default:
        return refuse_answer(image, extent, "its type is unknown");
    }
}

int image_map(Image *image, uint64_t offset, uint64_t length, ExtentList *list)
{
    g_assert(length > 0 && range_within(offset, length, image->size));
    g_assert(list->count == 0 || extent_list_end(list) == offset);

    ExtentList answer;
    extent_list_init(&answer);
    int r = image->format->map(image, offset, length, &answer);
    uint64_t at = offset;
    for (unsigned i = 0; r == 0 && i < answer.count; i++) {
        Extent extent = answer.items[i];
        extent.image = image;
        extent.depth = 0;
        if (extent.offset != at || extent_end(&extent) > offset + length) {
            r = refuse_answer(image, &extent, "it is out of order or longer than asked for");
            break;
        }
        r = check_extent(image, &extent);
        if (r < 0) {
            break;
        }
        extent_list_add(list, &extent);
        at = extent_end(&extent);
        if (extent.length < answer.items[i].length) {
            break;
        }
    }
    extent_list_clear(&answer);
    /* What was good before the bad part is an answer; the bad part is refused when it comes first. */
    if (at > offset) {
        return 0;
    }
    return r < 0 ? r : refuse_answer(image, &(Extent){.offset = offset}, "it is empty");
}
