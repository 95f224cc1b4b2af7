/*
 * parallels: what its files share. Private to formats/parallels*.c and their tests.
 *
 *     parallels.c          probe, open, close, map
 *     parallels-header.c   the header: read and checked, the mark of a writer
 *     parallels-write.c    allocate, commit, abandon, unmap; start of writing, flush, finish
 *     parallels-resize.c   a larger disk
 *     parallels-create.c   create, measure
 *     parallels-check.c    check and repair
 *     parallels-descriptor.c, parallels-directory.c   disks of several files: the text about them; open, map, check
 */
#ifndef FORMATS_PARALLELS_H
#define FORMATS_PARALLELS_H

#include <glib.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "formats/blocktable.h"
#include "formats/format.h"
#include "map/image.h"
#include "store/store.h"

#define PARALLELS_MAGIC_OLD   "WithoutFreeSpace" /* the table counts sectors */
#define PARALLELS_MAGIC       "WithouFreSpacExt" /* the table counts clusters */
#define PARALLELS_MAGIC_SIZE  16u
#define PARALLELS_VERSION     2u
#define PARALLELS_HEADER_SIZE 64u /* the table follows */
#define PARALLELS_SECTOR      512u
#define PARALLELS_CLUSTER_MAX (256u << 20)
#define PARALLELS_IN_USE      0x746f6e59u /* a writer has not come to its end */
#define PARALLELS_CLOSED      0x312e3276u
#define PARALLELS_EMPTY       1u /* flag: whatever the table says */

/* Offsets in the header; numbers are little endian */
#define PARALLELS_H_VERSION   16
#define PARALLELS_H_HEADS     20
#define PARALLELS_H_CYLINDERS 24
#define PARALLELS_H_TRACKS    28
#define PARALLELS_H_ENTRIES   32
#define PARALLELS_H_SECTORS   36
#define PARALLELS_H_IN_USE    44
#define PARALLELS_H_DATA      48
#define PARALLELS_H_FLAGS     52
#define PARALLELS_H_EXTENSION 56

typedef struct ParallelsHeader {
    uint64_t size;         /* of the disk, bytes */
    uint64_t cluster_size; /* bytes */
    uint64_t data_offset;  /* bytes; clusters lie at whole clusters behind it */
    uint64_t unit;         /* bytes that a table entry counts */
    uint64_t extension;    /* sector; 0: none */
    uint32_t entries;      /* of the table */
    uint32_t in_use, flags;
} ParallelsHeader;

typedef struct ParallelsDirectory ParallelsDirectory;

typedef struct ParallelsState {
    ParallelsHeader header;
    BlockTable *table;
    /* NULL: the image is one file. Else there is no table, and the header says no more than cluster_size and
     * in_use. */
    ParallelsDirectory *directory;

    /* Writers only. */
    uint64_t used_end;    /* host offset: the next cluster goes there */
    uint64_t fresh_start; /* from here on nothing was ever written */
    uint64_t size_at_open;
    atomic_bool dirty; /* flush has something to write */
} ParallelsState;

static inline ParallelsState *parallels_state(const Image *image)
{
    return image->state;
}

/* Bytes of a cluster that the disk has: the file may end behind them. 0 behind the end of the disk. */
static inline uint64_t parallels_needed(const Image *image, uint32_t block)
{
    uint64_t cluster = parallels_state(image)->header.cluster_size, start = block * cluster;
    return start < image->size ? min_u64(cluster, image->size - start) : 0;
}

/* ---- parallels-header.c ---- */

bool parallels_header_read(Store *store, const char *name, ParallelsHeader *header, GError **error);

/* Writes PARALLELS_IN_USE or PARALLELS_CLOSED. Durable when it returns 0. */
int parallels_set_in_use(Image *image, uint32_t in_use);

/* ---- parallels-write.c ---- */

int parallels_allocate(Image *image, Allocation **list, unsigned count);
int parallels_commit(Image *image, Allocation **list, unsigned count);
void parallels_abandon(Image *image, Allocation **list, unsigned count);
int parallels_unmap(Image *image, uint64_t offset, uint64_t length, UnmapFlags flags);
bool parallels_start_writing(Image *image, GError **error);
int parallels_flush(Image *image);
int parallels_finish(Image *image);
bool parallels_is_dirty(const Image *image);

/* Clusters from here on may be taken: behind all that the file has. */
void parallels_space_start(Image *image);
/* Takes whole clusters at the end of the file. [exclusive] */
int parallels_space_take(Image *image, uint64_t length, uint64_t *host);

/* ---- parallels-resize.c, parallels-create.c, parallels-check.c ---- */

bool parallels_resize(Image *image, uint64_t size, GError **error);

extern const FormatOption parallels_create_options[];
bool parallels_measure(const FormatCreate *how, FormatMeasure *measure, GError **error);
bool parallels_create_like(const Image *image, GHashTable *options, GError **error);
bool parallels_create(Store *store, const FormatCreate *how, GError **error);
bool parallels_check(Image *image, CheckRepair repair, CheckResult *result, GError **error);

/* An entry of the table and whose it is, as parallels_sorted lists them. */
typedef struct ParallelsPlace {
    uint32_t entry, block;
} ParallelsPlace;

/* All entries that are not 0, by place. g_free; NULL without memory. */
ParallelsPlace *parallels_sorted(const ParallelsState *s, uint32_t *count);

/* ---- parallels-descriptor.c: the text that says of which files a disk is made ---- */

#define PARALLELS_DESCRIPTOR_NAME "DiskDescriptor.xml"
#define PARALLELS_DESCRIPTOR_MAX  (1u << 20) /* bytes */
#define PARALLELS_STORAGES_MAX    1024u
#define PARALLELS_FILES_MAX       1024u /* of a storage */
#define PARALLELS_OPEN_MAX        256u /* of all storages and snapshots: descriptors of the process */

typedef struct ParallelsFile {
    char *guid; /* in small letters */
    char *name;
    bool plain; /* the bytes of the disk, without a header */
} ParallelsFile;

/* A part of the disk, with the files that hold it at one time or another. */
typedef struct ParallelsStorage {
    uint64_t offset, length; /* bytes, whole sectors, never empty */
    uint64_t cluster_size;   /* bytes, of its files that are not plain */
    GPtrArray *files;        /* of ParallelsFile, each of another GUID */
} ParallelsStorage;

typedef struct ParallelsDescriptor {
    uint64_t size;       /* bytes, below 2^63 */
    GPtrArray *storages; /* of ParallelsStorage: in order, without gaps, from 0 to size */
    GHashTable *parents; /* the tree of snapshots: GUID -> GUID of the parent */
    GPtrArray *shots;    /* the GUIDs of that, in the order of the text; not owned */
    char *top;           /* GUID: what the disk is now */
} ParallelsDescriptor;

/* True when text begins like a descriptor. */
bool parallels_descriptor_probe(const uint8_t *head, size_t n);
/* path is for messages. NULL with *error. */
ParallelsDescriptor *parallels_descriptor_parse(const char *text, size_t n, const char *path,
                                                GError **error);
void parallels_descriptor_free(ParallelsDescriptor *descriptor);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(ParallelsDescriptor, parallels_descriptor_free)

/* The GUIDs from this snapshot down to the root, IMAGE_CHAIN_MAX at most; they are the descriptor's. NULL with
 * *error. */
GPtrArray *parallels_descriptor_chain(const ParallelsDescriptor *descriptor, const char *guid,
                                      const char *path, GError **error);
/* NULL: there is none. */
const ParallelsFile *parallels_storage_file(const ParallelsStorage *storage, const char *guid);

/* ---- parallels-directory.c: a disk of several files. Only read ---- */

/* image->store is a descriptor: opens what it names. Fills in what image says of the disk, and in header what
 * ParallelsState says. NULL with *error. */
ParallelsDirectory *parallels_directory_open(Image *image, ParallelsHeader *header, GError **error);
void parallels_directory_free(ParallelsDirectory *directory);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(ParallelsDirectory, parallels_directory_free)

/* The disk is what it was at that snapshot from now on, and as long; called by its GUID or its number in the list. */
bool parallels_directory_show(Image *image, const char *name, ParallelsHeader *header,
                              GError **error);
/* As Format.snapshots: all but what the disk is now. */
unsigned parallels_directory_snapshots(const Image *image, unsigned most, GVariantBuilder *list);

int parallels_directory_map(Image *image, uint64_t offset, uint64_t length, ExtentList *list);
bool parallels_directory_check(Image *image, CheckResult *result, GError **error);
void parallels_directory_info(const Image *image, GVariantBuilder *data);
uint64_t parallels_directory_allocated_bytes(const Image *image);

#endif
