/*
 * Runs a fuzz target without a fuzzer: on every seed, on every seed cut short, and on copies with a
 * few bytes changed by chance (the same each time). So that each build checks what the fuzzer would
 * see first, with any compiler.
 *
 *     fuzz_NAME SEED-OR-DIRECTORY...
 */
#include <glib.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/scale.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv) __attribute__((weak));

static unsigned mutations = 400; /* of each seed */

static uint64_t next_random(void)
{
    static uint64_t state = 1;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

/* The target gets memory of exactly that size, so that a sanitizer sees a read past the end. */
static void run(const uint8_t *bytes, size_t size)
{
    g_autofree uint8_t *copy = g_malloc(size + (size == 0));
    memcpy(copy, bytes, size);
    LLVMFuzzerTestOneInput(copy, size);
}

/* Changes a few bytes, mostly near the beginning, where the headers are; to values at the borders
 * of types, mostly. */
static void mutate(uint8_t *bytes, size_t size)
{
    static const uint8_t borders[] = {0x00, 0x01, 0x7f, 0x80, 0xff};
    unsigned changes = 1 + next_random() % 4;
    for (unsigned i = 0; i < changes; i++) {
        size_t reach = next_random() % 2 && size > 128 ? 128 : size;
        size_t at = next_random() % reach;
        bytes[at] = next_random() % 4 == 0 ? (uint8_t)next_random()
                                           : borders[next_random() % sizeof borders];
    }
}

static void replay_file(const char *path)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *bytes = NULL;
    gsize size;
    if (!g_file_get_contents(path, &bytes, &size, &error)) {
        fprintf(stderr, "%s\n", error->message);
        exit(1);
    }
    run((uint8_t *)bytes, size);
    for (unsigned i = 0; i < mutations && size > 0; i++) {
        g_autofree uint8_t *copy = g_memdup2(bytes, size);
        mutate(copy, size);
        run(copy, i % 8 == 0 ? next_random() % size : size);
    }
}

static unsigned replay_directory(const char *path)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GDir) directory = g_dir_open(path, 0, &error);
    unsigned count = 0;
    const char *name;
    if (directory == NULL) {
        fprintf(stderr, "%s\n", error->message);
        exit(1);
    }
    while ((name = g_dir_read_name(directory)) != NULL) {
        g_autofree char *file = g_build_filename(path, name, NULL);
        replay_file(file);
        count++;
    }
    return count;
}

int main(int argc, char **argv)
{
    unsigned count = 0;
    mutations = scaled(mutations);
    if (LLVMFuzzerInitialize != NULL) {
        LLVMFuzzerInitialize(&argc, &argv);
    }
    for (int i = 1; i < argc; i++) {
        if (g_file_test(argv[i], G_FILE_TEST_IS_DIR)) {
            count += replay_directory(argv[i]);
        } else {
            replay_file(argv[i]);
            count++;
        }
    }
    printf("%u seeds, %u mutations of each\n", count, mutations);
    return count > 0 ? 0 : 1;
}
