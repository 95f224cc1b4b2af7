/*
 * An image: one opened disk image, its format, its stores, its backing. A chain: an image and all
 * below it.
 *
 * Opening and closing are [main] or [pool] and block. image_map and chain_map are [pool], together
 * with other maps, never beside allocate/commit/unmap of the same image (the gate of engine/gate.h
 * sees to that; a tool with one thread needs no gate).
 */
#ifndef MAP_IMAGE_H
#define MAP_IMAGE_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "map/extent.h"
#include "base/secret.h"
#include "store/store.h"

typedef struct Encryption Encryption;
typedef struct Format Format;
typedef struct Image Image;

#define IMAGE_CHAIN_MAX  500 /* images in a chain */
#define IMAGE_PROBE_SIZE 4096

/* A file beside an image, with this at the end of its name: what was written to a snapshot of the
 * image and is not in the image yet (fastpath/cowstore.h). Such an image is not opened for writing,
 * for what the store holds would not fit any more; who reads it is warned that it is old. */
#define IMAGE_UNFOLDED_SUFFIX ".cownbd-cow"

/* Which of the two sizes in the footer of a vhd counts. */
typedef enum {
    VHD_SIZE_OF_CREATOR, /* the one that the program takes which made the image */
    VHD_SIZE_CHS,        /* cylinders, heads, sectors */
    VHD_SIZE_CURRENT,
} VhdSize;

typedef struct ImageOpen {
    const Format *format; /* NULL: found from the first bytes */
    bool write;           /* the top image; its backing is always opened read-only */
    unsigned write_depth; /* not 0: the image so far below the top is opened for writing, too */
    bool no_backing;      /* leave the backing closed (info without --chain, check) */
    bool no_lock;         /* look although another process writes */
    bool repair;          /* opened by check --repair: dirty and corrupt images open for writing */
    const char
        *snapshot; /* show this internal snapshot of the top image; not with write; NULL: none */
    bool fold;     /* opened by who knows of a store of unfolded writes, see below */
    /* Directories in which named files may lie; NULL-terminated, may be NULL. */
    const char *const *allow_paths;
    uint64_t metadata_cache; /* bytes an image; 0: the default of 32 MiB */
    /* char * -> Store *: files that the top image names and that are open already, used in place of
     * looking for them; may be NULL. For who makes an image, whose files have no names yet. An image on a store gets
     * new files from here, too, which then must live as long as it does. */
    GHashTable *parts;
    const Secrets *secrets; /* for the encrypted ones of the chain; may be NULL */
    const Secret
        *secret; /* of the top image, in place of the one that secrets has for it; may be NULL */
    bool no_secrets; /* only metadata is looked at: an encrypted image opens without its secret */
    /* Whatever is written, children know the image by what they knew it by (UUIDs, CID). For tools that leave what
     * the children read as it is. */
    bool keep_identity;
    VhdSize vhd_size; /* of all of the chain that are vhd */
} ImageOpen;

#define IMAGE_METADATA_CACHE_DEFAULT (32u << 20)

struct Image {
    const Format *format;
    bool format_guessed;  /* found by probing */
    char *path;           /* as given or as resolved; for messages and "filename" */
    Store *store;         /* the main file; the format may hold others */
    Image *backing;       /* NULL when there is none (or no_backing) */
    char *backing_name;   /* as written in the image, or NULL */
    char *backing_format; /* as written in the image, or NULL */
    char *backing_path;   /* as resolved, or NULL */
    /* Tried beside the image when backing_name is not there or not allowed, or NULL (vmdk: the hint
     * may be an absolute path of another system). */
    char *backing_substitute;
    uint64_t size; /* virtual size, bytes */
    /* Bytes, a power of two; 1 where the format allocates nothing (raw). */
    uint64_t allocation_unit;
    /* A power of two, at least as much: in some places space can only be allocated in units of this (Format.unit_at). */
    uint64_t largest_unit;
    /* Set by open: part of a unit can be the image's own, the rest what lies below. */
    bool partial_units;
    bool write;
    bool repair;
    VhdSize vhd_size;
    bool no_lock;
    bool keep_identity;             /* ImageOpen.keep_identity */
    bool marks;                     /* has bitmaps that follow what is written: format->mark */
    bool unwritable;                /* set by open: can never be written, though the format can */
    bool plain_only;                /* set by open: holds no encoded data, though the format can */
    bool no_names;                  /* not opened by a path: what it names is never opened */
    uint64_t metadata_cache;        /* bytes */
    const char *const *allow_paths; /* valid during format->open only */
    GHashTable *parts;              /* ImageOpen.parts; with a path, during format->open only */
    const Secret *secret;           /* the same; NULL: there is none */
    bool no_secrets;                /* ImageOpen.no_secrets */
    Encryption *encryption;         /* set by format->open; NULL: the data is not encrypted */
    _Atomic int refs;
    void *state; /* the format's */
};

/* Opens path and everything below it; a directory that is an image by the file in it. Refuses loops, chains over IMAGE_CHAIN_MAX, names outside the
 * allowed directories, locked files. When write and the top image is raw by guess, see
 * format_guessed. */
Image *image_open(const char *path, const ImageOpen *how, GError **error);

/* The same on a store (which the image then refs), with a backing that is already open (ref taken;
 * may be NULL) in place of the one that the image names. For tests and tools. */
Image *image_open_store(Store *store, const ImageOpen *how, Image *backing, GError **error);

Image *image_ref(Image *image);
/* With the last reference: format->close, backing, stores. Does not flush: a writer calls
 * image_finish before. */
void image_unref(Image *image);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Image, image_unref)

/* What a writer does last: format->flush until nothing is pending, format->finish. 0 or -errno.
 * [pool]/[main] */
int image_finish(Image *image);

/* All that was written to the image's files is on stable storage when this returns 0; metadata that is
 * still in memory is not. [pool]/[main] */
int image_sync(Image *image);

/* Gives the disk another size; formats/format.h, resize, says what is promised. Refuses what the image
 * cannot: EACCES not open for writing, ENOTSUP the format, EFBIG or EINVAL the size. Nothing else uses the image
 * meanwhile. [pool]/[main] */
bool image_resize(Image *image, uint64_t size, GError **error);

/* Host space that the image's own files use, bytes. [pool]/[main] */
uint64_t image_allocated_bytes(const Image *image);

/* Asks the format, checks the answer (order, gaps, range inside the store, flags) in this one
 * place. At least one extent; may end before the range does, never after. Appends to the list,
 * which must be empty or end at offset. The range lies inside the disk. 0 or -errno; -EIO for an
 * answer that cannot be true. */
int image_map(Image *image, uint64_t offset, uint64_t length, ExtentList *list);

/* The whole chain's answer for all of the range: UNALLOCATED never appears, what no image has is
 * ZERO (with image = NULL and depth of the last image asked); depth is filled in; only depth 0 may
 * be WRITABLE. Appends to the list, which must be empty or end at offset. Stops early, after at
 * least one extent, when the list reaches max_extents (0: no limit). The range lies inside the
 * disk. 0 or -errno. */
int chain_map(Image *top, uint64_t offset, uint64_t length, unsigned max_extents, ExtentList *list);

/* Blocking read through chain_map, decode included; for tools and tests. 0 or -errno. [pool]/[main] */
int chain_read(Image *top, void *buffer, uint64_t length, uint64_t offset);

/* The bytes of one extent of a chain's map, decode included. 0 or -errno. [pool]/[main] */
int chain_read_extent(const Extent *extent, uint8_t *buffer);

/* The rest is for formats. What the image says of its backing from now on; NULL: it has none, or does not say the
 * format. */
void image_name_backing(Image *image, const char *name, const char *format);

/* Opens a file that the image names, beneath the directory of the image or
 * the allowed ones (openat2, RESOLVE_BENEATH); absolute names must lie in one of these. One that
 * ImageOpen.parts has is that store. *resolved (may be NULL): free with g_free. */
Store *image_open_named(Image *image, const char *name, bool write, char **resolved,
                        GError **error);

/* Makes an empty file which the image is going to name, beneath its own directory; durable, and open for writing.
 * EEXIST when there is one. *resolved: free with g_free. */
Store *image_make_named(Image *image, const char *name, char **resolved, GError **error);
/* Removes a file that was made so, and that the image does not name. */
void image_remove_named(const Image *image, Store *store, const char *resolved);

#endif
