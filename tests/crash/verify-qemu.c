/*
 * What qemu-img thinks of a state: its check, and whether it reads the same contents.
 */
#include "verify.h"

#include <glib/gstdio.h>
#include <string.h>

#include "tests/lib/store-scratch.h"

static void write_file(const char *directory, const char *name, const void *bytes, uint64_t size)
{
    g_autofree char *path = g_build_filename(directory, name, NULL);
    g_autoptr(GError) error = NULL;
    if (!g_file_set_contents(path, bytes, size, &error)) {
        g_error("%s", error->message);
    }
}

static const char *qemu_name(const char *format)
{
    return strcmp(format, "vhd") == 0 ? "vpc" : format;
}

static void write_store(const char *directory, const char *name, Store *store)
{
    uint64_t size;
    const uint8_t *bytes = scratch_content(store, &size);
    write_file(directory, name, bytes, size);
}

void verify_dump(const Fixture *fixture, const ImageFiles *files, const char *directory)
{
    g_mkdir_with_parents(directory, 0755);
    for (unsigned i = 0; i < files->count; i++) {
        write_store(directory, i == 0 ? fixture->image_name : files->stores[i]->name,
                    files->stores[i]);
    }
    if (fixture->setup->backing) {
        write_store(directory, fixture_backing_name(fixture->setup), fixture->backing_store);
    }
}

/* env goes to the directory: GLib would fork for that, or to close descriptors, and so copy the page tables of a process
 * that holds many states. */
static bool run_qemu(const char *directory, const char *const *arguments, int accepted,
                     Findings *findings)
{
    g_autoptr(GPtrArray) argv = g_ptr_array_new();
    g_ptr_array_add(argv, "env");
    g_ptr_array_add(argv, "-C");
    g_ptr_array_add(argv, (gpointer)directory);
    for (unsigned i = 0; i == 0 || arguments[i - 1]; i++) {
        g_ptr_array_add(argv, (gpointer)arguments[i]);
    }
    g_autofree char *out = NULL, *err = NULL;
    g_autoptr(GError) error = NULL;
    int status;
    if (!g_spawn_sync(NULL, (char **)argv->pdata, NULL,
                      G_SPAWN_SEARCH_PATH | G_SPAWN_LEAVE_DESCRIPTORS_OPEN, NULL, NULL, &out, &err,
                      &status, &error)) {
        g_error("qemu-img: %s", error->message);
    }
    int code = status >> 8; /* as wait() has it */
    if (status == 0 || ((status & 0x7f) == 0 && code == accepted)) {
        return true;
    }
    findings->corrupt++;
    findings_say(findings, "qemu-img %s: exit %d: %s%s", arguments[1], code, out, err);
    return false;
}

/* The internal snapshot must hold what the disk held at the start, whatever was written since. */
static bool snapshot_is_whole(const Verifier *verifier, const char *image, Findings *findings)
{
    const Fixture *fixture = verifier->fixture;
    uint64_t size = fixture->setup->disk_size;
    g_autofree uint8_t *expected = g_malloc0(size);
    for (uint64_t cell = 0; cell < size / CELL; cell++) {
        stamp_fill(expected + cell * CELL, cell * CELL, CELL, fixture->values[cell]);
    }
    write_file(verifier->directory, "expected", expected, size);
    const char *convert[] = {"qemu-img", "convert", "-l",  "first",    "-f", "qcow2",
                             "-O",       "raw",     image, "snapshot", NULL};
    const char *compare[] = {"qemu-img", "compare",  "-f",       "raw", "-F",
                             "raw",      "snapshot", "expected", NULL};
    return run_qemu(verifier->directory, convert, 0, findings) &&
           run_qemu(verifier->directory, compare, 0, findings);
}

bool verify_qemu(Verifier *verifier, const ImageFiles *files, Findings *findings)
{
    const Fixture *fixture = verifier->fixture;
    const char *format = qemu_name(fixture->setup->format), *image = fixture->image_name;
    bool reads = fixture_qemu_reads(fixture->setup);
    /* One that does not call a leak corruption. */
    bool has_check = (strcmp(format, "qcow2") == 0 && !fixture_is_encrypted(fixture->setup)) ||
                     (strcmp(format, "qed") == 0 && reads);
    if (!reads && !has_check) {
        return true;
    }
    if (!verifier->directory) {
        g_autoptr(GError) error = NULL;
        verifier->directory = g_dir_make_tmp("cownbd-crash-XXXXXX", &error);
        if (!verifier->directory) {
            g_error("%s", error->message);
        }
    }
    verify_dump(fixture, files, verifier->directory);
    write_file(verifier->directory, "contents", verifier->disk, fixture->setup->disk_size);
    const char *check[] = {"qemu-img", "check", "-f", format, image, NULL};
    const char *compare[] = {"qemu-img", "compare", "-f",       format, "-F",
                             "raw",      image,     "contents", NULL};
    verifier->qemu_checks++;
    return (!has_check || run_qemu(verifier->directory, check, 3, findings)) &&
           (!reads || run_qemu(verifier->directory, compare, 0, findings)) &&
           (!fixture->setup->snapshot || snapshot_is_whole(verifier, image, findings));
}

static void remove_directory(const char *path)
{
    g_autoptr(GDir) directory = g_dir_open(path, 0, NULL);
    const char *name;
    while (directory && (name = g_dir_read_name(directory))) {
        g_autofree char *file = g_build_filename(path, name, NULL);
        g_unlink(file);
    }
    g_rmdir(path);
}

void verifier_clear(Verifier *verifier)
{
    if (verifier->directory) {
        remove_directory(verifier->directory);
    }
    g_free(verifier->directory);
    g_free(verifier->disk);
}
