/*
 * The kinds of image that are compared, and how a fresh one of each kind is made.
 */
#ifndef COMPARE_CONFIG_H
#define COMPARE_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

typedef enum {
    FILL_NONE,       /* empty */
    FILL_BACKING,    /* empty, on a backing that holds data and is shorter than the overlay */
    FILL_COMPRESSED, /* full of compressed clusters */
    FILL_SNAPSHOT,   /* holds data, all of it shared with an internal snapshot */
} Fill;

typedef enum { KEEPS_SIZE, GROWS, GROWS_AND_SHRINKS } Resizing;

typedef struct Config {
    const char *name;
    const char *format;
    uint32_t cluster;    /* bytes; for raw what the random ranges like to lie around */
    uint64_t size;       /* bytes */
    const char *options; /* of qemu-img create -o; NULL for none */
    Fill fill;
    const char *backing_format; /* FILL_BACKING */
    Resizing resizing; /* the disk gets other sizes, twice a session; `size` is the first */
} Config;

extern const Config configs[]; /* ends with a NULL name */
const Config *config_find(const char *name);

/* Runs a program to its end. Its exit status; dies when it could not be run or was killed by a
 * signal. */
int run_status(const char *const *argv);

/* What qemu-img calls the format, with the options that make a disk of the size that was asked for. */
const char *config_qemu_name(const char *format);
bool config_qemu_reads(const Config *config);  /* the contents, backing and all */
bool config_qemu_checks(const Config *config); /* has a check for the format */

bool config_is_luks(const Config *config);
bool config_is_encrypted(
    const Config *config); /* with what the file `secret` beside the template holds */
/* What qemu's --image-opts say of an encrypted image, whose secret is its object s. g_free. */
char *config_qemu_options(const Config *config, const char *image);

/* Makes the template of the configuration in directory: the files `template` (the image),
 * `template.model` (what a guest sees in it) and, for FILL_BACKING, `base`. */
void config_make_template(const Config *config, const char *directory);

/* Copies an image with the files that lie beside it and removes it with them. */
void config_copy_image(const Config *config, const char *from, const char *to);
void config_remove_image(const char *image);

/* Copies a file, leaving holes where it has zeroes. */
void copy_sparse(const char *from, const char *to);

/* Says what went wrong and leaves. */
void die(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

/* What die() prints first: which sequence runs, and how to run it alone. */
extern char die_context[512];

#endif
