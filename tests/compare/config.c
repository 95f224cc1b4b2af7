/*
 * The kinds of image, and their templates.
 *
 * A template is made once by qemu-img, or by ourselves where qemu-img cannot, and copied for each
 * sequence: making an image costs more than a whole sequence of requests. Beside each image lies its model, a plain file with what a guest
 * must see.
 */
#include "config.h"

#include <fcntl.h>
#include <glib.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/lib/random.h"

#define KIB       1024u
#define MIB       (1024u * KIB)
#define COPY_STEP (64u * KIB)

/* No size is a multiple of the cluster: the last one is always cut. */
const Config configs[] = {
    {"raw", "raw", 4 * KIB, 2 * MIB + 5 * 512, NULL, FILL_NONE, NULL},
    {"qcow2-512", "qcow2", 512, MIB + 3 * 512, "cluster_size=512", FILL_NONE, NULL},
    {"qcow2-4k", "qcow2", 4 * KIB, 2 * MIB + 5 * 512, "cluster_size=4k", FILL_NONE, NULL},
    {"qcow2-64k", "qcow2", 64 * KIB, 5 * MIB + 77 * 512, "cluster_size=64k", FILL_NONE, NULL},
    {"qcow2-2m", "qcow2", 2 * MIB, 9 * MIB + 512, "cluster_size=2M", FILL_NONE, NULL},
    {"qcow2-v2-512", "qcow2", 512, MIB + 3 * 512, "compat=0.10,cluster_size=512", FILL_NONE, NULL},
    {"qcow2-v2-64k", "qcow2", 64 * KIB, 4 * MIB + 512, "compat=0.10", FILL_NONE, NULL},
    {"qcow2-rc1", "qcow2", 4 * KIB, 2 * MIB + 512, "cluster_size=4k,refcount_bits=1", FILL_NONE,
     NULL},
    {"qcow2-rc2", "qcow2", 512, MIB + 512, "cluster_size=512,refcount_bits=2", FILL_NONE, NULL},
    {"qcow2-rc4", "qcow2", 4 * KIB, 2 * MIB + 512, "cluster_size=4k,refcount_bits=4", FILL_NONE,
     NULL},
    {"qcow2-rc8", "qcow2", 64 * KIB, 4 * MIB + 512, "refcount_bits=8", FILL_NONE, NULL},
    {"qcow2-rc32", "qcow2", 4 * KIB, 2 * MIB + 512, "cluster_size=4k,refcount_bits=32", FILL_NONE,
     NULL},
    {"qcow2-rc64", "qcow2", 512, MIB + 512, "cluster_size=512,refcount_bits=64", FILL_NONE, NULL},
    {"qcow2-lazy", "qcow2", 64 * KIB, 4 * MIB + 512, "lazy_refcounts=on", FILL_NONE, NULL},
    {"qcow2-prealloc", "qcow2", 64 * KIB, 4 * MIB + 512, "preallocation=metadata", FILL_NONE, NULL},
    {"qcow2-512-backing", "qcow2", 512, MIB + 3 * 512, "cluster_size=512", FILL_BACKING, "qcow2"},
    {"qcow2-4k-backing", "qcow2", 4 * KIB, 2 * MIB + 512, "cluster_size=4k", FILL_BACKING, "raw"},
    {"qcow2-64k-backing", "qcow2", 64 * KIB, 4 * MIB + 512, NULL, FILL_BACKING, "qcow2"},
    {"qcow2-2m-backing", "qcow2", 2 * MIB, 9 * MIB + 512, "cluster_size=2M", FILL_BACKING, "raw"},
    {"qcow2-v2-backing", "qcow2", 4 * KIB, 2 * MIB + 512, "compat=0.10,cluster_size=4k",
     FILL_BACKING, "qcow2"},
    {"qcow2-compressed", "qcow2", 4 * KIB, 2 * MIB + 512, "cluster_size=4k", FILL_COMPRESSED, NULL},
    {"qcow2-zstd", "qcow2", 64 * KIB, 4 * MIB + 512, "compression_type=zstd", FILL_COMPRESSED,
     NULL},
    {"qcow2-snapshot", "qcow2", 4 * KIB, 2 * MIB + 512, "cluster_size=4k", FILL_SNAPSHOT, NULL},
    {"qcow2-extended", "qcow2", 512, 2 * MIB + 5 * 512, "cluster_size=16k,extended_l2=on",
     FILL_NONE, NULL},
    {"qcow2-extended-backing", "qcow2", 512, 2 * MIB + 5 * 512, "cluster_size=16k,extended_l2=on",
     FILL_BACKING, "raw"},
    {"qcow2-extended-compressed", "qcow2", 512, 2 * MIB + 5 * 512,
     "cluster_size=16k,extended_l2=on", FILL_COMPRESSED, NULL},
    {"qcow2-extended-snapshot", "qcow2", 512, 2 * MIB + 5 * 512, "cluster_size=16k,extended_l2=on",
     FILL_SNAPSHOT, NULL},
    {"qcow2-data-file", "qcow2", 64 * KIB, 4 * MIB + 512, "data_file=IMAGE", FILL_NONE, NULL},
    {"qcow2-data-file-raw", "qcow2", 4 * KIB, 2 * MIB + 512,
     "data_file=IMAGE,data_file_raw=on,cluster_size=4k", FILL_NONE, NULL},
    {"qcow2-extended-data-file", "qcow2", 512, 2 * MIB + 5 * 512,
     "data_file=IMAGE,cluster_size=16k,extended_l2=on", FILL_NONE, NULL},
    {"vhd-qemu", "vpc", 2 * MIB, 9 * MIB + 512, "force_size=on", FILL_NONE, NULL},
    {"vhd-64k", "vhd", 64 * KIB, 4 * MIB + 512, "block_size=64k", FILL_NONE, NULL},
    {"vhd-64k-backing", "vhd", 4 * KIB, 2 * MIB + 512, "block_size=64k", FILL_BACKING, "vhd"},
    {"vhd-2m-backing", "vhd", 4 * KIB, 5 * MIB + 512, NULL, FILL_BACKING, "raw"},
    {"vhdx", "vhdx", MIB, 2 * MIB + 512, "block_size=1M", FILL_NONE, NULL},
    {"vhdx-backing", "vhdx", 4 * KIB, 2 * MIB + 512, "block_size=1M", FILL_BACKING, "vhdx"},
    {"vdi", "vdi", MIB, 5 * MIB + 512, NULL, FILL_NONE, NULL},
    {"vdi-64k-backing", "vdi", 64 * KIB, 4 * MIB + 512, "block_size=64k", FILL_BACKING, "vdi"},
    {"qcow", "qcow", 4 * KIB, 2 * MIB + 512, NULL, FILL_NONE, NULL},
    {"qcow-backing", "qcow", 512, 2 * MIB + 512, NULL, FILL_BACKING, "raw"},
    {"vmdk-64k", "vmdk", 64 * KIB, 4 * MIB + 512, NULL, FILL_NONE, NULL},
    {"vmdk-4k-backing", "vmdk", 4 * KIB, 2 * MIB + 512, "grain_size=4k,zeroed_grain=on",
     FILL_BACKING, "vmdk"},
    {"vmdk-16k-split-backing", "vmdk", 16 * KIB, 2 * MIB + 512,
     "subformat=twoGbMaxExtentSparse,grain_size=16k,extent_size=768k", FILL_BACKING, "vmdk"},
    {"vmdk-cowd-backing", "vmdk", 512, 4 * MIB + 512, "subformat=vmfsSparse", FILL_BACKING, "vmdk"},
    {"vmdk-flat", "vmdk", 4 * KIB, 2 * MIB + 512, "subformat=twoGbMaxExtentFlat,extent_size=1M",
     FILL_NONE, NULL},
    {"qed-backing", "qed", 4 * KIB, 4 * MIB + 512, "cluster_size=4k,table_size=2", FILL_BACKING,
     "raw"},
    {"parallels-64k", "parallels", 64 * KIB, 4 * MIB + 512, "cluster_size=64k", FILL_NONE, NULL},
    {"qcow2-4k-backing-resized", "qcow2", 4 * KIB, MIB + 512, "cluster_size=4k", FILL_BACKING,
     "raw", GROWS_AND_SHRINKS},
    {"qcow2-512-resized", "qcow2", 512, MIB + 3 * 512, "cluster_size=512", FILL_NONE, NULL,
     GROWS_AND_SHRINKS},
    {"vhd-4k-resized", "vhd", 4 * KIB, MIB + 512, "block_size=4k", FILL_NONE, NULL,
     GROWS_AND_SHRINKS},
    {"vdi-4k-backing-resized", "vdi", 4 * KIB, MIB + 512, "block_size=4k", FILL_BACKING, "vdi",
     GROWS_AND_SHRINKS},
    {"vhdx-backing-resized", "vhdx", 64 * KIB, 2 * MIB + 512, "block_size=1M", FILL_BACKING, "vhdx",
     GROWS_AND_SHRINKS},
    {"qcow-backing-resized", "qcow", 4 * KIB, 2 * MIB - 77 * 512, NULL, FILL_BACKING, "raw", GROWS},
    {"qed-backing-resized", "qed", 4 * KIB, MIB + 512, "cluster_size=4k,table_size=2", FILL_BACKING,
     "raw", GROWS},
    {"parallels-4k-resized", "parallels", 4 * KIB, 3 * MIB + 512, "cluster_size=4k", FILL_NONE,
     NULL, GROWS},
    {"vmdk-4k-resized", "vmdk", 4 * KIB, MIB + 512, "grain_size=4k", FILL_NONE, NULL,
     GROWS_AND_SHRINKS},
    {"vmdk-zeroed-backing-resized", "vmdk", 4 * KIB, MIB + 512, "grain_size=4k,zeroed_grain=on",
     FILL_BACKING, "vmdk", GROWS_AND_SHRINKS},
    {"vmdk-split-resized", "vmdk", 4 * KIB, MIB + 512,
     "subformat=twoGbMaxExtentSparse,grain_size=4k,extent_size=128k", FILL_NONE, NULL, GROWS},
    {"luks", "luks", 4 * KIB, MIB + 5 * 512, "iterations=1000", FILL_NONE, NULL},
    {"qcow2-luks", "qcow2", 4 * KIB, 2 * MIB + 512,
     "cluster_size=4k,encrypt.format=luks,encrypt.iterations=1000", FILL_NONE, NULL},
    {"qcow2-luks-backing", "qcow2", 64 * KIB, 4 * MIB + 512,
     "encrypt.format=luks,encrypt.iterations=1000,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv",
     FILL_BACKING, "raw"},
    {"qcow2-aes", "qcow2", 512, MIB + 3 * 512, "cluster_size=512,encrypt.format=aes", FILL_NONE,
     NULL},
    {"qcow-aes", "qcow", 4 * KIB, 2 * MIB + 512, "encrypt.format=aes", FILL_BACKING, "raw"},
    {NULL, NULL, 0, 0, NULL, FILL_NONE, NULL},
};

char die_context[512];

void die(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "compare: %s", die_context);
    vfprintf(stderr, format, args);
    fprintf(stderr, "\n");
    va_end(args);
    exit(1);
}

const Config *config_find(const char *name)
{
    for (const Config *config = configs; config->name != NULL; config++) {
        if (strcmp(config->name, name) == 0) {
            return config;
        }
    }
    die("there is no configuration %s", name);
}

int run_status(const char *const *argv)
{
    g_autoptr(GError) error = NULL;
    int status;
    if (!g_spawn_sync(NULL, (char **)argv, NULL, G_SPAWN_SEARCH_PATH | G_SPAWN_STDOUT_TO_DEV_NULL,
                      NULL, NULL, NULL, NULL, &status, &error)) {
        die("%s", error->message);
    }
    if (!WIFEXITED(status)) {
        die("%s ended by signal %d", argv[0], WTERMSIG(status));
    }
    return WEXITSTATUS(status);
}

/* Runs a command of the shell in directory; it must succeed. */
static void shell(const char *directory, const char *format, ...) G_GNUC_PRINTF(2, 3);
static void shell(const char *directory, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    g_autofree char *command = g_strdup_printf("cd '%s' && %s", directory, text);
    const char *const argv[] = {"sh", "-c", command, NULL};
    if (run_status(argv) != 0) {
        die("failed: %s", command);
    }
}

/* Data that compresses a little, with runs of zeroes: 4 KiB pieces of one repeated word, noise or
 * nothing. */
static void write_pattern(const char *path, uint64_t size, uint64_t seed)
{
    Random random = {.state = seed};
    g_autofree uint64_t *bytes = g_malloc0(size + 4 * KIB);
    for (uint64_t at = 0; at < size / 8; at += 512) {
        uint64_t kind = random_below(&random, 4);
        uint64_t word = random_next(&random);
        for (uint64_t i = at; kind != 0 && i < at + 512; i++) {
            bytes[i] = kind == 1 ? random_next(&random) : word;
        }
    }
    g_autoptr(GError) error = NULL;
    if (!g_file_set_contents(path, (char *)bytes, size, &error)) {
        die("%s", error->message);
    }
}

/* A vdi keeps no name: its parent is looked for among files that are called so. */
static const char *base_name(const Config *config)
{
    return strcmp(config->backing_format, "vdi") == 0 ? "base.vdi" : "base";
}

static void make_model(const Config *config, const char *directory)
{
    g_autofree char *model = g_build_filename(directory, "template.model", NULL);
    uint64_t filled = 0;
    if (config->fill == FILL_BACKING) {
        filled = config->size / 4 * 3 / 512 * 512;
    } else if (config->fill != FILL_NONE) {
        filled = config->size;
    }
    write_pattern(model, filled, config->size);
    if (config->fill == FILL_BACKING) {
        shell(directory, "qemu-img convert -f raw -O %s template.model %s",
              config_qemu_name(config->backing_format), base_name(config));
    }
    if (truncate(model, (off_t)config->size) != 0) {
        die("%s: %s", model, strerror(errno));
    }
}

const char *config_qemu_name(const char *format)
{
    return strcmp(format, "vhd") == 0 ? "vpc -o force_size=on" : format;
}

static bool is_vmdk(const Config *config)
{
    return strcmp(config->format, "vmdk") == 0;
}

bool config_is_luks(const Config *config)
{
    return strcmp(config->format, "luks") == 0;
}

bool config_is_encrypted(const Config *config)
{
    return config_is_luks(config) || (config->options && strstr(config->options, "encrypt."));
}

char *config_qemu_options(const Config *config, const char *image)
{
    const char *aes =
        config->options && strstr(config->options, "encrypt.format=aes") ? "aes" : "luks";
    g_autofree char *encrypt = g_strdup_printf("encrypt.format=%s,encrypt.", aes);
    return g_strdup_printf("driver=%s,%skey-secret=s,file.filename=%s", config->format,
                           config_is_luks(config) ? "" : encrypt, image);
}

/* "IMAGE" in the options is the path of the image; an absolute name, for qemu looks where it is started. */
static bool has_data_file(const Config *config)
{
    return config->options && strstr(config->options, "data_file=IMAGE") != NULL;
}

static bool is_ours(const Config *config)
{
    return config_is_encrypted(config) || has_data_file(config) ||
           strcmp(config->format, "vhd") == 0 || strcmp(config->format, "vhdx") == 0 ||
           strcmp(config->format, "vdi") == 0 || is_vmdk(config);
}

bool config_qemu_reads(const Config *config)
{
    return !is_ours(config) || is_vmdk(config) || has_data_file(config) ||
           config_is_encrypted(config) || config->fill != FILL_BACKING;
}

bool config_qemu_checks(const Config *config)
{
    return strcmp(config->format, "qcow2") == 0 || strcmp(config->format, "qed") == 0 ||
           strcmp(config->format, "parallels") == 0;
}

/* An empty one of ours, whose data file lies beside it. */
static void make_with_data_file(const Config *config, const char *image)
{
    g_autofree char *data = g_strdup_printf("data_file=%s-data", image);
    g_auto(GStrv) parts = g_strsplit(config->options, "data_file=IMAGE", -1);
    g_autofree char *options = g_strjoinv(data, parts);
    shell("/", "\"$COWNBD\" create -q -f %s -o %s %s %" G_GUINT64_FORMAT, config->format, options,
          image, config->size);
}

void config_make_template(const Config *config, const char *directory)
{
    g_autofree char *options =
        config->options ? g_strdup_printf("-o %s", config->options) : g_strdup("");
    const char *maker = is_ours(config) ? "\"$COWNBD\"" : "qemu-img";
    g_autofree char *secret =
        config_is_encrypted(config) ? g_strdup("--secret-file secret") : g_strdup("");
    shell(directory, "printf passphrase > secret");
    make_model(config, directory);
    if (has_data_file(config)) {
        return; /* each image is made anew: a copy would name the data file of another */
    }
    switch (config->fill) {
    case FILL_NONE:
        if (config_is_luks(config)) { /* a new one reads as noise */
            shell(directory, "%s convert -f raw -O luks %s %s template.model template", maker,
                  options, secret);
            break;
        }
        shell(directory, "%s create -q -f %s %s %s template %" G_GUINT64_FORMAT, maker,
              config->format, options, secret, config->size);
        break;
    case FILL_BACKING:
        shell(directory, "%s create -q -f %s %s %s -b %s -F %s template %" G_GUINT64_FORMAT, maker,
              config->format, options, secret, base_name(config), config->backing_format,
              config->size);
        break;
    case FILL_COMPRESSED:
        shell(directory, "qemu-img convert -c -f raw -O %s %s template.model template",
              config->format, options);
        break;
    case FILL_SNAPSHOT:
        shell(directory,
              "qemu-img convert -f raw -O %s %s template.model template && "
              "qemu-img snapshot -c before template",
              config->format, options);
        break;
    }
}

void copy_sparse(const char *from, const char *to)
{
    static const uint8_t zeroes[COPY_STEP];
    g_autoptr(GError) error = NULL;
    g_autofree char *bytes = NULL;
    gsize size;
    if (!g_file_get_contents(from, &bytes, &size, &error)) {
        die("%s", error->message);
    }
    int fd = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, (off_t)size) != 0) {
        die("%s: %s", to, strerror(errno));
    }
    for (gsize at = 0; at < size; at += COPY_STEP) {
        gsize step = MIN(COPY_STEP, size - at);
        if (memcmp(bytes + at, zeroes, step) != 0 &&
            pwrite(fd, bytes + at, step, (off_t)at) != (ssize_t)step) {
            die("%s: cannot write", to);
        }
    }
    close(fd);
}

/* Calls each with the end of the name, "-s001", of every file beside the image. */
static void each_extent(const char *image,
                        void (*each)(const char *image, const char *end, const char *to),
                        const char *to)
{
    g_autofree char *directory = g_path_get_dirname(image);
    g_autofree char *base = g_path_get_basename(image);
    g_autofree char *start = g_strconcat(base, "-", NULL);
    GDir *dir = g_dir_open(directory, 0, NULL);
    for (const char *name; (name = g_dir_read_name(dir)) != NULL;) {
        if (g_str_has_prefix(name, start)) {
            each(image, name + strlen(base), to);
        }
    }
    g_dir_close(dir);
}

static void copy_extent(const char *image, const char *end, const char *to)
{
    g_autofree char *from = g_strconcat(image, end, NULL), *copy = g_strconcat(to, end, NULL);
    copy_sparse(from, copy);
}

/* The descriptor names the extents. */
static void rename_extents(const char *image, const char *from, const char *to)
{
    g_autofree char *text = NULL;
    if (!g_file_get_contents(image, &text, NULL, NULL)) {
        die("%s: cannot be read", image);
    }
    g_auto(GStrv) parts = g_strsplit(text, from, -1);
    g_autofree char *changed = g_strjoinv(to, parts);
    if (!g_file_set_contents(image, changed, -1, NULL)) {
        die("%s: cannot be written", image);
    }
}

static bool has_extents(const Config *config)
{
    return config->options && (strstr(config->options, "extent_size") != NULL ||
                               strstr(config->options, "vmfsSparse") != NULL);
}

void config_copy_image(const Config *config, const char *from, const char *to)
{
    if (has_data_file(config)) {
        make_with_data_file(config, to);
        return;
    }
    copy_sparse(from, to);
    if (has_extents(config)) {
        g_autofree char *base = g_path_get_basename(from), *new_base = g_path_get_basename(to);
        g_autofree char *old = g_strdup_printf("\"%s-", base);
        g_autofree char *new = g_strdup_printf("\"%s-", new_base);
        each_extent(from, copy_extent, to);
        rename_extents(to, old, new);
    }
}

static void remove_extent(const char *image, const char *end, const char *to)
{
    g_autofree char *path = g_strconcat(image, end, NULL);
    unlink(path);
}

void config_remove_image(const char *image)
{
    each_extent(image, remove_extent, NULL);
    unlink(image);
}
