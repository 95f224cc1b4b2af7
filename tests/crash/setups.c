/*
 * The configurations that the crash tests go through: cluster sizes and refcount widths that make
 * tables grow soon, both versions, with and without a backing, with a metadata cache that is always
 * full.
 */
#include "setups.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define KIB          1024u
#define TINY_CACHE   (8 * KIB)
#define LITTLE_CACHE (64 * KIB)

#define QCOW2(label, size, cluster, bits, version, ...)                               \
    {                                                                                 \
        .name = label, .format = "qcow2", .disk_size = size, .cluster_size = cluster, \
        .refcount_bits = bits, .compat = version, __VA_ARGS__                         \
    }

/* Formats whose only choice is the size of a block. */
#define BLOCKS(family, label, size, block, ...)                                                  \
    {                                                                                            \
        .name = label, .format = family, .disk_size = size, .cluster_size = block, ##__VA_ARGS__ \
    }

/* The least that a key slot may cost: an image is opened several times in each state. */
#define FAST_LUKS(prefix) \
    prefix "iterations=1000," prefix "cipher-alg=aes-128," prefix "cipher-mode=cbc"

const Setup setups[] = {
    QCOW2("v3-4k", 1024 * KIB, "4096", "16", "1.1"),
    QCOW2("v3-4k-overlay-raw", 1024 * KIB, "4096", "16", "1.1", .backing = "raw"),
    QCOW2("v2-4k-overlay-qcow2", 1024 * KIB, "4096", "16", "0.10", .backing = "qcow2"),
    QCOW2("v3-512-r64-growing", 3 * 1024 * KIB, "512", "64", "1.1"),
    QCOW2("v3-512-r1-overlay-qcow2", 512 * KIB, "512", "1", "1.1", .backing = "qcow2",
          .metadata_cache = TINY_CACHE),
    QCOW2("v2-512-overlay-raw", 512 * KIB, "512", "16", "0.10", .backing = "raw"),
    QCOW2("v3-64k", 4 * 1024 * KIB, "65536", "16", "1.1"),
    QCOW2("v3-64k-r1-overlay-raw", 2 * 1024 * KIB, "65536", "1", "1.1", .backing = "raw"),
    QCOW2("v3-4k-r64-tiny-cache", 1024 * KIB, "4096", "64", "1.1", .metadata_cache = TINY_CACHE),
    QCOW2("v3-4k-r1-overlay-raw-odd", 700 * KIB + 512, "4096", "1", "1.1", .backing = "raw",
          .metadata_cache = LITTLE_CACHE),
    QCOW2("v3-512-r2-tiny-cache", 1024 * KIB, "512", "2", "1.1", .metadata_cache = TINY_CACHE),
    QCOW2("v3-4k-lazy-overlay-qcow2", 1024 * KIB, "4096", "16", "1.1", .lazy_refcounts = "on",
          .backing = "qcow2"),
    QCOW2("v3-4k-compressed", 1024 * KIB, "4096", "16", "1.1", .compressed = true),
    QCOW2("v3-4k-snapshot", 1024 * KIB, "4096", "16", "1.1", .snapshot = true),
    QCOW2("v2-512-compressed-snapshot", 256 * KIB, "512", "16", "0.10", .compressed = true,
          .snapshot = true),
    QCOW2("v3-4k-dirty", 1024 * KIB, "4096", "16", "1.1", .lazy_refcounts = "on", .dirty = true),
    QCOW2("v3-2m", 8 * 1024 * KIB, "2097152", "16", "1.1", .request_unit = 65536),
    QCOW2("v3-512-resized", 2560 * KIB, "512", "16", "1.1", .created_size = 1024 * KIB,
          .resizes = true, .requests = 250),
    QCOW2("v3-4k-overlay-raw-resized", 700 * KIB + 512, "4096", "16", "1.1", .backing = "raw",
          .created_size = 300 * KIB + 512, .resizes = true),
    QCOW2("v3-16k-extended", 256 * KIB, "16384", "16", "1.1", .extended_l2 = "on",
          .request_unit = 512),
    QCOW2("v3-16k-extended-overlay-raw-odd", 200 * KIB + 512, "16384", "16", "1.1",
          .extended_l2 = "on", .backing = "raw", .request_unit = 512,
          .metadata_cache = LITTLE_CACHE),
    QCOW2("v3-16k-extended-snapshot", 256 * KIB, "16384", "16", "1.1", .extended_l2 = "on",
          .snapshot = true, .request_unit = 512),
    QCOW2("v3-4k-aes-overlay-raw", 512 * KIB, "4096", "16", "1.1", .backing = "raw",
          .more_options = "encrypt.format=aes"),
    QCOW2("v3-4k-luks", 512 * KIB, "4096", "16", "1.1",
          .more_options = "encrypt.format=luks," FAST_LUKS("encrypt.")),
    QCOW2("v3-4k-data-file", 1024 * KIB, "4096", "16", "1.1", .more_options = "data_file=data"),
    QCOW2("v3-4k-data-file-overlay-raw-odd", 700 * KIB + 512, "4096", "16", "1.1", .backing = "raw",
          .metadata_cache = TINY_CACHE, .more_options = "data_file=data"),
    QCOW2("v3-4k-data-file-raw", 512 * KIB, "4096", "16", "1.1",
          .more_options = "data_file=data,data_file_raw=on"),
    QCOW2("v3-4k-data-file-raw-resized", 700 * KIB + 512, "4096", "16", "1.1",
          .created_size = 300 * KIB + 512, .resizes = true,
          .more_options = "data_file=data,data_file_raw=on"),
    QCOW2("v3-16k-extended-data-file-overlay-raw", 256 * KIB, "16384", "16", "1.1",
          .backing = "raw", .extended_l2 = "on", .request_unit = 512,
          .more_options = "data_file=data"),
    {.name = "raw", .format = "raw", .disk_size = 512 * KIB},
    {.name = "luks", .format = "luks", .disk_size = 256 * KIB, .more_options = FAST_LUKS("")},
    {.name = "luks2",
     .format = "luks",
     .disk_size = 256 * KIB,
     .more_options = "version=2," FAST_LUKS("")},
    BLOCKS("vhd", "vhd-16k", 512 * KIB, "16384", .requests = 80),
    BLOCKS("vhd", "vhd-16k-overlay-vhd", 512 * KIB, "16384", .backing = "vhd"),
    BLOCKS("vhd", "vhd-4k-tiny-cache", 512 * KIB, "4096", .metadata_cache = TINY_CACHE),
    BLOCKS("vhd", "vhd-512k-overlay-raw-odd", 1100 * KIB + 512, "524288", .backing = "raw",
           .request_unit = 16384),
    BLOCKS("vhd", "vhd-4k-resized", 3 * 1024 * KIB, "4096", .created_size = 200 * KIB + 512,
           .resizes = true, .gaps = true, .requests = 150),
    BLOCKS("vhd", "vhd-fixed", 300 * KIB, NULL, .more_options = "subformat=fixed"),
    BLOCKS("vdi", "vdi-16k", 512 * KIB, "16384", .requests = 80),
    BLOCKS("vdi", "vdi-1m", 1500 * KIB, "1048576", .requests = 30),
    BLOCKS("vdi", "vdi-4k-overlay-vdi", 512 * KIB, "4096", .backing = "vdi", .requests = 120),
    BLOCKS("vdi", "vdi-64k-overlay-vdi-odd", 700 * KIB + 512, "65536", .backing = "vdi",
           .requests = 40),
    BLOCKS("vdi", "vdi-4k-overlay-vdi-resized", 3800 * KIB + 512, "4096", .backing = "vdi",
           .created_size = 200 * KIB + 512, .resizes = true, .requests = 150),
    BLOCKS("vdi", "vdi-16k-static", 300 * KIB + 512, "16384", .more_options = "static=on"),
    BLOCKS("vhdx", "vhdx-1m-fixed", 1300 * KIB, "1048576", .request_unit = 65536, .requests = 60,
           .more_options = "subformat=fixed"),
    BLOCKS("vhdx", "vhdx-1m", 2 * 1024 * KIB + 512, "1048576", .request_unit = 65536,
           .requests = 60),
    BLOCKS("vhdx", "vhdx-1m-overlay-vhdx", 1300 * KIB, "1048576", .backing = "vhdx",
           .request_unit = 16384, .requests = 80),
    BLOCKS("vhdx", "vhdx-1m-overlay-vhdx-resized", 2500 * KIB + 512, "1048576", .backing = "vhdx",
           .request_unit = 16384, .created_size = 700 * KIB + 512, .resizes = true, .gaps = true,
           .requests = 60),
    BLOCKS("qcow", "qcow-4k", 512 * KIB, "4096"),
    BLOCKS("qcow", "qcow-512-tiny-cache", 512 * KIB, "512", .metadata_cache = TINY_CACHE),
    BLOCKS("qcow", "qcow-512-overlay-qcow", 512 * KIB, "512", .backing = "qcow"),
    BLOCKS("qcow", "qcow-64k-overlay-raw-odd", 700 * KIB + 512, "65536", .backing = "raw"),
    BLOCKS("qcow", "qcow-512-grown", 512 * KIB, "512", .created_size = 133 * KIB + 512,
           .filled = true, .gaps = true, .requests = 100),
    BLOCKS("vmdk", "vmdk-4k", 512 * KIB, "4096", .requests = 120),
    BLOCKS("vmdk", "vmdk-4k-overlay-vmdk-zeroed", 512 * KIB, "4096", .backing = "vmdk",
           .zeroed_grain = "on", .requests = 120),
    BLOCKS("vmdk", "vmdk-16k-overlay-vmdk-odd", 700 * KIB + 512, "16384", .backing = "vmdk",
           .requests = 80),
    BLOCKS("vmdk", "vmdk-4k-tiny-cache", 4096 * KIB, "4096", .metadata_cache = TINY_CACHE,
           .requests = 120),
    BLOCKS("vmdk", "vmdk-split-4k", 480 * KIB, "4096", .requests = 120,
           .more_options = "subformat=twoGbMaxExtentSparse,extent_size=128k"),
    BLOCKS("vmdk", "vmdk-split-4k-overlay-vmdk-zeroed", 300 * KIB + 512, "4096", .backing = "vmdk",
           .requests = 120, .zeroed_grain = "on",
           .more_options = "subformat=twoGbMaxExtentSparse,extent_size=64k"),
    BLOCKS("vmdk", "vmdk-cowd-512", 512 * KIB, "512", .requests = 120,
           .more_options = "subformat=vmfsSparse"),
    BLOCKS("vmdk", "vmdk-cowd-1k-overlay-vmdk-odd", 6 * 1024 * KIB + 512, "1024", .backing = "vmdk",
           .requests = 120, .metadata_cache = TINY_CACHE, .more_options = "subformat=vmfsSparse"),
    BLOCKS("vmdk", "vmdk-flat", 300 * KIB, NULL, .requests = 120,
           .more_options = "subformat=twoGbMaxExtentFlat,extent_size=128k"),
    BLOCKS("vmdk", "vmdk-4k-resized", 5 * 1024 * KIB, "4096", .created_size = 200 * KIB + 512,
           .resizes = true, .gaps = true, .requests = 100),
    BLOCKS("vmdk", "vmdk-4k-overlay-vmdk-zeroed-resized", 2500 * KIB + 512, "4096",
           .backing = "vmdk", .zeroed_grain = "on", .created_size = 300 * KIB + 512,
           .resizes = true, .gaps = true, .requests = 100),
    BLOCKS("vmdk", "vmdk-cowd-512-resized", 5 * 1024 * KIB, "512", .created_size = 200 * KIB,
           .resizes = true, .gaps = true, .requests = 80, .more_options = "subformat=vmfsSparse"),
    BLOCKS("vmdk", "vmdk-flat-resized", 300 * KIB, NULL, .created_size = 100 * KIB + 512,
           .resizes = true, .requests = 100, .more_options = "subformat=monolithicFlat"),
    BLOCKS("vmdk", "vmdk-split-4k-grown", 300 * KIB + 512, "4096", .created_size = 100 * KIB + 512,
           .filled = true, .requests = 80, .spare_files = 5,
           .more_options = "subformat=twoGbMaxExtentSparse,extent_size=64k"),
    BLOCKS("qed", "qed-4k-t1", 2112 * KIB, "4096", .table_size = "1"),
    BLOCKS("qed", "qed-4k-t2-tiny-cache", 512 * KIB, "4096", .table_size = "2",
           .metadata_cache = TINY_CACHE),
    BLOCKS("qed", "qed-4k-overlay-qed", 512 * KIB, "4096", .backing = "qed"),
    BLOCKS("qed", "qed-4k-overlay-qed-grown", 2112 * KIB, "4096", .table_size = "1",
           .backing = "qed", .created_size = 133 * KIB + 512, .filled = true, .requests = 100),
    BLOCKS("qed", "qed-64k-overlay-raw-odd", 700 * KIB + 512, "65536", .table_size = "2",
           .backing = "raw"),
    BLOCKS("parallels", "parallels-4k", 512 * KIB, "4096"),
    BLOCKS("parallels", "parallels-16k-odd", 700 * KIB + 512, "16384", .requests = 120),
    BLOCKS("parallels", "parallels-4k-grown", 4100 * KIB, "4096", .created_size = 4000 * KIB + 512,
           .filled = true, .gaps = true, .requests = 50),
    BLOCKS("parallels", "parallels-64k", 1024 * KIB, "65536", .requests = 60),
    {.name = NULL},
};

const Setup *setup_find(const char *name)
{
    for (const Setup *setup = setups; setup->name; setup++) {
        if (strcmp(setup->name, name) == 0) {
            return setup;
        }
    }
    return NULL;
}

static char watchdog_text[200];

static void watchdog_bites(int signal_number)
{
    ssize_t ignored = write(STDERR_FILENO, watchdog_text, strlen(watchdog_text));
    (void)ignored;
    abort();
}

void watchdog_set(unsigned seconds, const char *what)
{
    g_snprintf(watchdog_text, sizeof watchdog_text, "hang: %s\n", what);
    signal(SIGALRM, watchdog_bites);
    alarm(seconds);
}
