/*
 * Preallocation, the same for all formats: what the format would do for a guest that writes zeroes,
 * without the zeroes where the host has them anyhow.
 *
 *     format->allocate ──> metadata: zeroes only where the new space holds something
 *                          falloc: the host's space, zeroed
 *                          full: zeroes
 *                     ──> format->commit
 */
#include "cli/preallocate.h"

#include <string.h>

#include "base/bytes.h"
#include "base/errors.h"
#include "cli/create-options.h"
#include "formats/format.h"

#define STEP       (UINT64_C(64) << 20) /* of the disk, allocated at a time */
#define WRITE_STEP (1u << 20)

static const char *const names[] = {"off", "metadata", "falloc", "full"};

bool preallocation_parse(const char *name, Preallocation *how, GError **error)
{
    *how = PREALLOCATE_OFF;
    for (unsigned i = 0; name && i < G_N_ELEMENTS(names); i++) {
        if (strcmp(names[i], name) == 0) {
            *how = i;
            return true;
        }
    }
    return !name || error_set(error, EINVAL,
                              "preallocation is '%s': must be off, metadata, falloc or full", name);
}

/* What is preallocated is there: it would hide what a backing has. */
bool preallocation_take(GHashTable *options, const char *backing_name, char **name,
                        Preallocation *how, GError **error)
{
    if (!create_option_take(options, "preallocation", name, error) ||
        !preallocation_parse(*name, how, error)) {
        return false;
    }
    return *how == PREALLOCATE_OFF || !backing_name ||
           error_set(error, EINVAL,
                     "preallocation is '%s' with a backing file, which would not be seen: must be "
                     "off",
                     *name);
}

bool preallocate_check(const Image *image, Preallocation how, GError **error)
{
    if (how != PREALLOCATE_OFF && image->encryption) {
        return error_set(error, ENOTSUP,
                         "%s: is encrypted: zeroes of the host would read as noise: preallocation "
                         "must be off",
                         image->path);
    }
    return how != PREALLOCATE_METADATA || image->format->allocate ||
           error_set(error, ENOTSUP,
                     "%s: a %s image has no metadata: preallocation must be off, falloc or full",
                     image->path, image->format->name);
}

static int write_zeroes(Store *store, uint64_t offset, uint64_t length)
{
    static uint8_t zeroes[WRITE_STEP];
    int r = 0;
    for (uint64_t done = 0; r == 0 && done < length; done += WRITE_STEP) {
        r = store_write(store, zeroes, min_u64(WRITE_STEP, length - done), offset + done);
    }
    return r;
}

static int fill(Store *store, uint64_t offset, uint64_t length, bool fresh, Preallocation how)
{
    switch (how) {
    case PREALLOCATE_FALLOC:
        return store_punch(store, offset, length, STORE_PUNCH_KEEP_SPACE);
    case PREALLOCATE_FULL:
        return write_zeroes(store, offset, length);
    default:
        return fresh ? 0 : write_zeroes(store, offset, length);
    }
}

/* Of a range without space. */
static int allocate(Image *image, uint64_t offset, uint64_t length, Preallocation how)
{
    const Format *format = image->format;
    Allocation allocation = {.offset = offset, .length = length}, *list = &allocation;
    extent_list_init(&allocation.extents);
    int r = format->allocate(image, &list, 1);
    if (r == 0) {
        for (unsigned i = 0; r == 0 && i < allocation.extents.count; i++) {
            const Extent *e = &allocation.extents.items[i];
            r = fill(e->store, e->host_offset, e->length, e->flags & EXTENT_FRESH, how);
        }
        if (r == 0) {
            r = format->commit(image, &list, 1);
        } else {
            format->abandon(image, &list, 1);
        }
    }
    extent_list_clear(&allocation.extents);
    return r;
}

/* One step from *at on. */
static int step(Image *image, uint64_t *at, Preallocation how)
{
    uint64_t length = min_u64(image->size - *at, STEP);
    if (!image->format->allocate) {
        int r = fill(image->store, *at, length, true, how);
        *at += length;
        return r;
    }
    ExtentList list;
    extent_list_init(&list);
    int r = chain_map(image, *at, length, 1, &list);
    if (r == 0) {
        const Extent *first = &list.items[0];
        bool has_space = first->type == EXTENT_DATA && (first->flags & EXTENT_WRITABLE);
        if (has_space && (first->flags & EXTENT_SPARSE) && how != PREALLOCATE_METADATA) {
            r = fill(first->store, first->host_offset, first->length, true, how);
        } else if (!has_space) {
            r = allocate(image, *at, first->length, how);
        }
        *at = extent_end(first);
    }
    extent_list_clear(&list);
    return r;
}

bool preallocate(Image *image, uint64_t from, Preallocation how,
                 void (*progress)(void *context, uint64_t done, uint64_t total), GError **error)
{
    uint64_t start = align_up(from, image->largest_unit), at = start;
    int r = 0;
    if (image->encryption && how != PREALLOCATE_OFF) {
        return error_set(error, ENOTSUP,
                         "%s: is encrypted: zeroes of the host would read as noise: must be "
                         "--preallocation=off",
                         image->path);
    }
    while (r == 0 && how != PREALLOCATE_OFF && at < image->size) {
        r = step(image, &at, how);
        if (progress) {
            progress(NULL, at - start, image->size - start);
        }
    }
    if (r == -ENOTSUP) {
        return error_set(error, ENOTSUP,
                         "%s: the host cannot reserve space for it: must be preallocation full",
                         image->path);
    }
    return r == 0 || error_set_errno(error, -r, "%s: cannot allocate the new part", image->path);
}
