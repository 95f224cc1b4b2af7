/*
 * read-image [--secret PASSPHRASE-FILE] [--snapshot NAME] FILE: the sha256 of what a guest would read from the image and all below it.
 *
 * Reads through chain_read, in pieces whose odd sizes begin and end everywhere in sectors, grains
 * and clusters. With --raw it writes the contents to stdout instead.
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
    gboolean raw = FALSE;
    g_autofree char *secret_file = NULL, *snapshot = NULL;
    const GOptionEntry entries[] = {
        {"raw", 0, 0, G_OPTION_ARG_NONE, &raw, "Write the contents", NULL},
        {"secret", 0, 0, G_OPTION_ARG_FILENAME, &secret_file, "Of an encrypted image", "FILE"},
        {"snapshot", 0, 0, G_OPTION_ARG_STRING, &snapshot, "An internal one", "NAME"},
        {NULL},
    };
    g_autoptr(GError) error = NULL;
    g_autoptr(GOptionContext) context = g_option_context_new("FILE");
    g_option_context_add_main_entries(context, entries, NULL);
    if (!g_option_context_parse(context, &argc, &argv, &error) || argc != 2) {
        fprintf(stderr, "read-image: %s\n", error ? error->message : "one image at a time");
        return 2;
    }
    g_autoptr(Secrets) secrets = secrets_new(NULL);
    ImageOpen how = {.write = false, .secrets = secrets, .snapshot = snapshot};
    if (secret_file && !secrets_add_file(secrets, secret_file, &error)) {
        fprintf(stderr, "read-image: %s\n", error->message);
        return 1;
    }
    g_autoptr(Image) image = image_open(argv[1], &how, &error);
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
