/*
 * The files of one image in a test: the first is its own, the others are those that it names (extents of a vmdk, the
 * data file of a qcow2). An image of one file is the common case.
 *
 *     ImageFiles   stores, each with its name
 *     ImageBytes   what such stores held at some moment
 */
#ifndef TESTS_LIB_IMAGE_FILES_H
#define TESTS_LIB_IMAGE_FILES_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "formats/format.h"
#include "map/image.h"
#include "store/store.h"

#define IMAGE_FILES_MAX 8u

typedef struct ImageFiles {
    unsigned count;
    Store *stores[IMAGE_FILES_MAX]; /* a store's name is what the image calls it; [0]: anything */
} ImageFiles;

typedef struct FileBytes {
    char *name;
    uint8_t *bytes;
    uint64_t size;
} FileBytes;

typedef struct ImageBytes {
    unsigned count; /* 0: there is no image */
    FileBytes files[IMAGE_FILES_MAX];
} ImageBytes;

/* An image of this store alone. Takes no reference: there is nothing to clear. */
ImageFiles image_files_of(Store *store);

/* Takes over a reference to the store. */
void image_files_add(ImageFiles *files, Store *store);
void image_files_clear(ImageFiles *files);

/* A new image, in scratch stores that are added to files, which is empty. base_name: of its own file. how->files is
 * filled in here. */
bool image_files_create(ImageFiles *files, const char *base_name, const Format *format,
                        FormatCreate *how, GError **error);

/* As image_open_store; what the image names is found among the files. */
Image *image_files_open(const ImageFiles *files, const ImageOpen *how, Image *backing,
                        GError **error);

/* An image of one file with these bytes. Copies nothing: there is nothing to clear. */
ImageBytes image_bytes_of(const uint8_t *bytes, uint64_t size);

/* A copy of what the stores hold; content: scratch_content or record_content. */
ImageBytes image_bytes_copy(const ImageFiles *files,
                            const uint8_t *(*content)(Store *store, uint64_t *size));
void image_bytes_clear(ImageBytes *bytes);

/* Scratch stores with these bytes. */
ImageFiles image_files_scratch(const ImageBytes *bytes);

#endif
