/*
 * Makes the store of a snapshot of an image, as the kernel would have left it:
 *
 *     make-cowstore IMAGE CHUNK COUNT SEED RAW [invalid|plant]
 *
 * COUNT chunks of CHUNK bytes, at random places, one in five of zeroes, go into IMAGE.cownbd-cow;
 * the same bytes go into RAW, a raw copy of the disk. invalid: the kernel has given the store up.
 * plant: chunk 0 is among them, and looks like the header of a qcow2.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "fastpath/cowstore.h"
#include "fastpath/exceptions.h"
#include "store/store-file.h"
#include "tests/lib/random.h"

static void must(bool good, const char *what, const GError *error)
{
    if (!good) {
        fprintf(stderr, "make-cowstore: %s: %s\n", what, error ? error->message : "failed");
        exit(1);
    }
}

static void fill(Random *random, uint8_t *contents, uint32_t chunk)
{
    for (uint32_t at = 0; at < chunk; at += 8) {
        store_le64(contents + at, random_next(random));
    }
    if (random_percent(random, 20)) {
        memset(contents, 0, chunk);
    }
}

int main(int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    if (argc < 6) {
        fprintf(stderr, "make-cowstore: IMAGE CHUNK COUNT SEED RAW [invalid|plant]\n");
        return 1;
    }
    const char *more = argc > 6 ? argv[6] : "";
    CowstoreHeader header = {.state = COWSTORE_OPEN, .chunk = strtoul(argv[2], NULL, 10)};
    uint64_t count = strtoull(argv[3], NULL, 10);
    Random random = random_new(strtoull(argv[4], NULL, 10));
    g_autoptr(Image) image = image_open(argv[1], &(ImageOpen){.fold = true}, &error);
    must(image != NULL, "image", error);
    must(cowstore_origin(image, &header.origin, &error), "origin", error);
    char *real = realpath(argv[1], NULL);
    g_autofree char *path = cowstore_path(real), *contents = g_malloc(header.chunk);
    free(real);
    g_autoptr(Store) store = store_file_create(path, false, &error);
    must(store != NULL, "store", error);
    int raw = open(argv[5], O_RDWR);
    must(raw >= 0, argv[5], NULL);
    ExceptionWriter writer;
    must(cowstore_write_header(store, &header) == 0, "header", NULL);
    must(exceptions_writer_init(&writer, store, COWSTORE_BASE, header.chunk) == 0, "store", NULL);
    uint64_t chunks = div_round_up(image->size, header.chunk);
    uint64_t first = strcmp(more, "plant") == 0 ? 0 : random_below(&random, chunks);
    for (uint64_t i = 0; i < MIN(count, chunks); i++) {
        uint64_t at = (first + i * 10007) % chunks; /* a prime: each place once */
        fill(&random, (uint8_t *)contents, header.chunk);
        if (i == 0 && strcmp(more, "plant") == 0) {
            memcpy(contents, "QFI\xfb\0\0\0\3", 8);
        }
        must(exceptions_append(&writer, at, contents) == 0, "exception", NULL);
        uint64_t length = MIN(header.chunk, image->size - at * header.chunk);
        must(pwrite(raw, contents, length, at * header.chunk) == (ssize_t)length, "raw", NULL);
    }
    if (strcmp(more, "invalid") == 0) {
        must(exceptions_invalidate(&writer) == 0, "header", NULL);
    }
    close(raw);
    return 0;
}
