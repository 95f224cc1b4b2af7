/*
 * New images that only qemu-img makes: with compressed clusters, and with an internal snapshot, so
 * that clusters are shared and every first write copies.
 */
#include <glib/gstdio.h>

#include "fixture.h"
#include "model.h"

static void must_run(const char *directory, const char *const *arguments)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *err = NULL;
    int status;
    if (!g_spawn_sync(directory, (char **)arguments, NULL,
                      G_SPAWN_SEARCH_PATH | G_SPAWN_STDOUT_TO_DEV_NULL, NULL, NULL, NULL, &err,
                      &status, &error)) {
        g_error("qemu-img: %s", error->message);
    }
    if (status != 0) {
        g_error("qemu-img %s: %s", arguments[1], err);
    }
}

static void write_contents(Fixture *fixture, const char *path)
{
    uint64_t size = fixture->setup->disk_size;
    g_autofree uint8_t *disk = g_malloc0(size);
    for (uint64_t offset = 0; offset < size; offset += CELL) {
        if (fixture_is_data(offset)) {
            stamp_fill(disk + offset, offset, CELL, VALUE_BACKING);
            fixture->values[offset / CELL] = VALUE_BACKING;
        }
    }
    g_autoptr(GError) error = NULL;
    if (!g_file_set_contents(path, (const char *)disk, size, &error)) {
        g_error("%s", error->message);
    }
}

void fixture_make_by_qemu(Fixture *fixture)
{
    const Setup *setup = fixture->setup;
    g_autoptr(GError) error = NULL;
    g_autofree char *directory = g_dir_make_tmp("cownbd-crash-XXXXXX", &error);
    if (!directory) {
        g_error("%s", error->message);
    }
    g_autofree char *contents = g_build_filename(directory, "contents", NULL);
    g_autofree char *image = g_build_filename(directory, "image", NULL);
    g_autofree char *options =
        g_strdup_printf("cluster_size=%s,compat=%s%s", setup->cluster_size, setup->compat,
                        setup->extended_l2 ? ",extended_l2=on" : "");
    const char *convert[] = {"qemu-img",
                             "convert",
                             "-f",
                             "raw",
                             "-O",
                             "qcow2",
                             "-o",
                             options,
                             "contents",
                             "image",
                             setup->compressed ? "-c" : NULL,
                             NULL};
    const char *snapshot[] = {"qemu-img", "snapshot", "-c", "first", "image", NULL};
    write_contents(fixture, contents);
    must_run(directory, convert);
    if (setup->snapshot) {
        must_run(directory, snapshot);
    }
    FileBytes *file = &fixture->content.files[fixture->content.count++];
    gsize size;
    if (!g_file_get_contents(image, (char **)&file->bytes, &size, &error)) {
        g_error("%s", error->message);
    }
    file->name = g_strdup(fixture->image_name);
    file->size = size;
    g_unlink(contents);
    g_unlink(image);
    g_rmdir(directory);
}
