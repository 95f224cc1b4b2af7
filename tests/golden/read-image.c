/*
 * read-image FILE: the sha256 of what a guest would read from the image and all below it.
 *
 * Reads through chain_read, in pieces whose odd sizes begin and end everywhere in sectors, grains
 * and clusters. With
 * --raw it writes the contents to stdout instead.
 */
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "map/image.h"

static const uint64_t piece_sizes[] = {1, 511, 70001, 4096, 13, 262147, 65536, 1000003};

static bool read_all(Image *image, GChecksum *sum, bool raw)
{
    g_autofree uint8_t *buffer = g_malloc(1000003);
    uint64_t offset = 0;
    for (unsigned i = 0; offset < image->size; i++) {
        uint64_t length = piece_sizes[i % G_N_ELEMENTS(piece_sizes)];
        length = min_u64(length, image->size - offset);
        int r = chain_read(image, buffer, length, offset);
        if (r < 0) {
            fprintf(stderr, "read-image: %s: offset %" G_GUINT64_FORMAT ": %s\n", image->path,
                    offset, strerror(-r));
            return false;
        }
        if (raw && fwrite(buffer, length, 1, stdout) != 1) {
            return false;
        }
        g_checksum_update(sum, buffer, length);
        offset += length;
    }
    return true;
}

int main(int argc, char **argv)
{
    bool raw = argc == 3 && strcmp(argv[1], "--raw") == 0;
    if (argc != 2 && !raw) {
        fprintf(stderr, "usage: read-image [--raw] FILE\n");
        return 2;
    }
    g_autoptr(GError) error = NULL;
    ImageOpen how = {.write = false};
    g_autoptr(Image) image = image_open(argv[argc - 1], &how, &error);
    if (!image) {
        fprintf(stderr, "read-image: %s\n", error->message);
        return 1;
    }
    g_autoptr(GChecksum) sum = g_checksum_new(G_CHECKSUM_SHA256);
    if (!read_all(image, sum, raw)) {
        return 1;
    }
    if (!raw) {
        printf("%s\n", g_checksum_get_string(sum));
    }
    return 0;
}
