/*
 * qcow2: persistent dirty bitmaps. Private to formats/qcow2*.c. Blocks.
 *
 *     qcow2-bitmap.c            the directory, read; info
 *     qcow2-bitmap-bits.c       the bits of one bitmap, read and written
 *     qcow2-bitmap-keep.c       from opening for writing to the orderly end
 *     qcow2-bitmap-directory.c  the directory written anew; the header extension
 *     qcow2-bitmap-change.c     add, remove, clear, enable, disable, merge
 *
 * Directory -> table of a bitmap -> clusters of bits. A bitmap is *taken* while its bits in memory may
 * differ from those on the disk: IN_USE is set in its entry, durably, and whoever finds that later
 * knows that it cannot be relied upon.
 */
#ifndef FORMATS_QCOW2_BITMAP_H
#define FORMATS_QCOW2_BITMAP_H

#include "base/dirtymap.h"
#include "formats/qcow2.h"

#define QCOW2_BITMAP_IN_USE (1u << 0) /* not saved by its last user: must not be relied upon */
#define QCOW2_BITMAP_AUTO   (1u << 1) /* enabled: goes on being kept while the image is written */
#define QCOW2_BITMAP_COMPATIBLE \
    (1u << 2) /* extra data that is not understood may be left as it is */

#define QCOW2_BITMAP_TYPE     1  /* the only one: what was written */
#define QCOW2_BITMAP_HEAD     24 /* of a directory entry, before extra data and name */
#define QCOW2_BITMAP_NAME_MAX 1023

/* Entries of a bitmap's table */
#define QCOW2_BITMAP_ENTRY_RESERVED UINT64_C(0xff000000000001fe)
#define QCOW2_BITMAP_ENTRY_ALL_ONES UINT64_C(1) /* without an offset */

/* A directory entry. */
typedef struct Qcow2Bitmap {
    uint64_t table_offset;
    uint32_t table_entries;
    uint32_t flags;
    uint8_t type;
    uint8_t granularity_bits;
    uint32_t extra_size;
    const char *name; /* in the directory, not ended by 0 */
    uint16_t name_length;
    uint64_t length; /* of the entry */
} Qcow2Bitmap;

/* A bitmap of an open image. */
typedef struct Qcow2KeptBitmap {
    Qcow2Bitmap is;  /* as on the disk; its name is the next field */
    char *name;      /* valid UTF-8 or not, ended by 0 */
    uint8_t *entry;  /* the bytes of the directory entry */
    uint64_t at;     /* of the entry in the file */
    DirtyMap *map;   /* NULL: not loaded */
    uint64_t *table; /* with map */
    uint32_t flags;  /* that it is to have when it is stored, without IN_USE */
    bool taken;
} Qcow2KeptBitmap;

/* The bytes of the directory, which the header extension says; g_free. 0 or -errno. */
int qcow2_bitmap_directory_read(const Image *image, uint8_t **directory);

/* One entry, of at most `room` bytes. False: it cannot be true. Pure. */
bool qcow2_bitmap_unpack(const Qcow2State *s, const uint8_t *entry, uint64_t room,
                         Qcow2Bitmap *bitmap);

/* Adds "bitmaps" to what info shows, when there are any. */
void qcow2_bitmap_info(const Image *image, GVariantBuilder *data);

/* What the usable ones take at most in an image with clusters of that size. */
uint64_t qcow2_bitmaps_measure(Image *image, uint64_t cluster_size);

/* state->bitmaps: all in the directory; what was there before is dropped. */
bool qcow2_bitmaps_read(Image *image, GError **error);
void qcow2_bitmaps_free(Qcow2State *s);
Qcow2KeptBitmap *qcow2_bitmap_new(const uint8_t *entry, uint64_t at, const Qcow2Bitmap *is);
void qcow2_bitmap_free(gpointer bitmap);

/* The bitmap called so, usable or not. NULL with *error. */
Qcow2KeptBitmap *qcow2_bitmap_find(Image *image, const char *name, GError **error);

/* Why its bits say nothing; NULL: they do. Pure. */
const char *qcow2_bitmap_unusable(const Image *image, const Qcow2KeptBitmap *bitmap);

/* ---- bits (qcow2-bitmap-bits.c): 0 or -errno ---- */

/* Makes bitmap->table, where it is not there. -EUCLEAN: an entry cannot be true, or two refer to the
 * same cluster. */
int qcow2_bitmap_read_table(Image *image, Qcow2KeptBitmap *bitmap);

/* Makes bitmap->map and bitmap->table, where they are not there. */
int qcow2_bitmap_load(Image *image, Qcow2KeptBitmap *bitmap);
void qcow2_bitmap_unload(Qcow2KeptBitmap *bitmap);

/* Writes what is in the map to clusters, its own and new ones, and notes in bitmap->table where. What it
 * does not need any more is appended to superfluous (Qcow2Run). Not durable. [exclusive] */
int qcow2_bitmap_write_bits(Image *image, Qcow2KeptBitmap *bitmap, GArray *superfluous);
int qcow2_bitmap_write_table(Image *image, const Qcow2KeptBitmap *bitmap);

/* ---- from start to end (qcow2-bitmap-keep.c) [exclusive] ---- */

/* Takes all that are enabled. *kept: there are bitmaps that go on to count. Damaged ones are given up,
 * said in the log; what cannot be read now may be readable later, and is an error. */
bool qcow2_bitmaps_start(Image *image, bool *kept, GError **error);

/* Loads it and sets IN_USE, durably. */
int qcow2_bitmap_take(Image *image, Qcow2KeptBitmap *bitmap);

/* Stores what was taken; nothing is marked after this. 0 or -errno. */
int qcow2_bitmaps_store(Image *image);

/* ---- the directory (qcow2-bitmap-directory.c) [exclusive] ---- */

/* Writes the directory of state->bitmaps anew, and points the header to it, durably. The old one will
 * be freed. */
bool qcow2_bitmap_directory_write(Image *image, GError **error);

#endif
