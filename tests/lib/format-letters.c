/*
 * The format of letters: what its store says, it answers, be it true or not.
 */
#include "tests/lib/format-letters.h"

#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "tests/lib/store-memory.h"

#define LETTERS_MAX LETTERS_UNIT

static int letters_probe(const uint8_t *head, size_t n, const char *path)
{
    return 0;
}

static bool letters_open_image(Image *image, GError **error)
{
    char *letters = g_malloc0(LETTERS_MAX + 1);
    store_read(image->store, letters, LETTERS_MAX, 0);
    image->state = letters;
    image->size = strlen(letters) * LETTERS_UNIT;
    image->allocation_unit = LETTERS_UNIT;
    return true;
}

static void letters_close(Image *image)
{
    g_free(image->state);
}

/* Shapes the answer after its letter; false when there is none to give. */
static bool shape(Extent *extent, char letter, const Image *image)
{
    extent->type = EXTENT_DATA;
    switch (letter) {
    case '.':
        extent->type = EXTENT_UNALLOCATED;
        return true;
    case 'Z':
        extent->type = EXTENT_ZERO;
        return true;
    case 'X':
    case 'E':
        extent->type = EXTENT_ENCODED;
        extent->host_offset = align_down(extent->host_offset, LETTERS_UNIT);
        extent->unit_offset = extent->offset % LETTERS_UNIT;
        extent->unit_length = letter == 'E' ? LETTERS_UNIT : 1;
        extent->stored_length = 1;
        return true;
    case 'N':
        extent->flags = EXTENT_NEW;
        return true;
    case 'W':
        extent->flags = EXTENT_WRITABLE;
        return true;
    case 'S':
        extent->store = NULL;
        return true;
    case 'O':
        extent->host_offset = 1u << 30;
        return true;
    case 'G':
        extent->offset += LETTERS_UNIT;
        return true;
    case 'L':
        extent->length += LETTERS_UNIT;
        return true;
    case 'T':
        extent->type = 77;
        return true;
    case '0':
        return false;
    default:
        return true;
    }
}

static int letters_map(Image *image, uint64_t offset, uint64_t length, ExtentList *list)
{
    const char *letters = image->state;
    uint64_t end = offset + length;
    uint64_t unit_end = align_down(offset, LETTERS_UNIT) + LETTERS_UNIT;
    char letter = letters[offset / LETTERS_UNIT];
    if (letter == 'I') {
        return -EIO;
    }
    Extent extent = {
        .offset = offset,
        .length = min_u64(end, unit_end) - offset,
        .store = image->store,
        .host_offset = LETTERS_UNIT + offset,
    };
    if (shape(&extent, letter, image)) {
        extent_list_add(list, &extent);
    }
    return 0;
}

static int letters_decode(Image *image, const Extent *extent, const uint8_t *stored,
                          size_t stored_length, uint8_t *unit)
{
    if (stored_length != 1) {
        return -EIO;
    }
    memset(unit, stored[0], extent->unit_length);
    return 0;
}

const Format format_letters = {
    .name = "letters",
    .probe = letters_probe,
    .open = letters_open_image,
    .close = letters_close,
    .map = letters_map,
    .decode = letters_decode,
};

Image *letters_open(const char *letters, uint8_t fill, Image *backing)
{
    size_t units = strlen(letters);
    g_autofree uint8_t *bytes = g_malloc0((units + 1) * LETTERS_UNIT);
    memcpy(bytes, letters, units);
    for (size_t unit = 0; unit < units; unit++) {
        memset(bytes + (unit + 1) * LETTERS_UNIT, fill + unit, LETTERS_UNIT);
    }
    g_autoptr(Store) store = store_memory_new(letters, bytes, (units + 1) * LETTERS_UNIT);
    g_autoptr(GError) error = NULL;
    ImageOpen how = {.format = &format_letters};
    Image *image = image_open_store(store, &how, backing, &error);
    if (!image) {
        g_error("%s", error->message);
    }
    return image;
}
