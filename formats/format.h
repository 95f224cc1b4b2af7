/*
 * The contract of a format.
 *
 * A format answers "where are these bytes?". It reads and writes its own tables; it never reads or
 * writes guest data (creating, checking and decoding apart), and it never sees a socket, an event
 * loop, a lock, a callback or a thread. It may block.
 *
 * How the engine calls it, for one image:
 *
 *     map                                      many at once, beside flush             [pool]
 *     allocate, commit, abandon, unmap, resize one at a time, alone                   [pool]
 *     flush                                    one at a time, beside map only         [pool]
 *     snapshot_create, snapshot_delete         one at a time, alone, with no writes under way [pool]
 *
 * Every number read from an image is hostile: check it before it becomes an offset, a size, a shift
 * or a loop bound. Data-path functions return 0 or a negative errno and log the details once
 * (log_limited) where they are known.
 *
 * A read-only format is four functions: probe, open, close, map (and decode where data is encoded).
 * Adding one is formats/foo.c, one line in formats.c, its name in formats/meson.build, golden
 * images, and a unit test of headers that must be refused.
 */
#ifndef FORMATS_FORMAT_H
#define FORMATS_FORMAT_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/dirtymap.h"
#include "map/extent.h"
#include "map/image.h"
#include "store/store.h"

/* A range for which space is wanted. The engine rounds it out to the allocation unit (clipped at the
 * end of the disk; to the largest unit where unit_at says so) and guarantees that no other request
 * uses or changes any of it until commit or abandon. */
typedef struct Allocation {
    uint64_t offset, length; /* guest range, whole units; in */
    /* Not 0: the range is one largest unit, and encode has made this many bytes of it; in. Only for formats
     * with encode, and only tools ask for it. */
    uint32_t stored_length;
    ExtentList extents; /* where the data goes: DATA|NEW, FRESH where true; covers the range; out.
                           One ENCODED|NEW extent where stored_length is not 0 */
    int result;         /* 0 or -errno, out */
} Allocation;

typedef enum {
    UNMAP_ZERO = 1 << 0, /* must read as zeroes afterwards (else: unallocated will do, as long as
                            what a backing holds does not come back: discard on an overlay reads as
                            zeroes) */
    UNMAP_KEEP_SPACE = 1 << 1, /* keep the host space where the format can (NO_HOLE) */
    UNMAP_BACKING = 1 << 2,    /* alone: the image has nothing there afterwards, what the backing
                                  holds is seen again. -ENOTSUP where the format cannot say that */
} UnmapFlags;

typedef struct FormatOption {
    const char *name; /* as in qemu-img create -o */
    const char *help;
} FormatOption;

/* Makes the files of an image that lie beside its main one (extents of vmdk, the data file of qcow2).
 * Whoever calls create gives it, and sees to it that none of them is left when the image does not
 * become whole. */
typedef struct FormatFiles FormatFiles;
struct FormatFiles {
    const char *base_name; /* the last part of the image's path: what other names are made of */
    /* A new, empty file in place of what has this name, which is as the image will name it:
     * absolute, or from the image's directory on. The caller owns the store; NULL with *error. */
    Store *(*make)(FormatFiles *files, const char *name, GError **error);
};

typedef struct FormatCreate {
    uint64_t size;              /* virtual size, bytes */
    const char *backing_name;   /* written into the image as given; NULL for none */
    const char *backing_format; /* NULL only together with backing_name */
    const Image *backing;       /* the same, opened; NULL when it was not looked at */
    const Secret *secret;       /* of an encrypted image; NULL: none was given */
    GHashTable *options; /* char * -> char *: only names of format->create_options; may be NULL */
    FormatFiles *files;  /* NULL: there can be no file but the store */
    /* The image for which create_like gave the options: what its children and its parent know it by, and what else
     * stands in it besides the disk, is taken over; no backing is needed for that. NULL: all is new. */
    const Image *like;
} FormatCreate;

typedef enum {
    BITMAP_ADD,
    BITMAP_REMOVE,
    BITMAP_CLEAR,
    BITMAP_ENABLE,
    BITMAP_DISABLE,
    BITMAP_MERGE,
} BitmapVerb;

typedef struct BitmapChange {
    BitmapVerb verb;
    const char *name;
    uint64_t granularity;    /* ADD: bytes; 0: the format's choice */
    bool disabled;           /* ADD: does not follow what is written */
    Image *source;           /* MERGE: where source_name is; NULL: the same image */
    const char *source_name; /* MERGE */
} BitmapChange;

/* How large the file of an image would be. */
typedef struct FormatMeasure {
    /* How many bytes of the disk lie in units (bytes, a power of two) that hold data, whole units
     * counted; in. */
    uint64_t (*data)(void *opaque, uint64_t unit);
    void *opaque;
    Image *source;            /* what the data comes from; NULL: from nowhere; in */
    uint64_t required;        /* with that data */
    uint64_t fully_allocated; /* with data everywhere */
    uint64_t bitmaps;         /* for those of the source, besides */
    bool has_bitmaps;         /* source and image may have some */
} FormatMeasure;

typedef enum { CHECK_REPORT_ONLY, CHECK_REPAIR_LEAKS, CHECK_REPAIR_ALL } CheckRepair;

/* The counts of `qemu-img check --output=json`, with its meanings. */
typedef struct CheckResult {
    uint64_t corruptions, leaks; /* still there at the end */
    uint64_t corruptions_fixed, leaks_fixed;
    uint64_t check_errors; /* what could not be checked (I/O errors) */
    uint64_t total_clusters, allocated_clusters, fragmented_clusters, compressed_clusters;
    uint64_t image_end_offset;
    void (*message)(void *opaque, const char *text); /* one line a finding; may be NULL; in */
    void *opaque;
    unsigned messages; /* so far; check_result_say counts them */
} CheckResult;

/* Images that are made in one go, from their front to their end, so that they can go into a pipe. The
 * mover gives those units that hold data, in order; it writes what the format makes of them one behind
 * the other. Memory only. */
typedef struct FormatStream FormatStream; /* one that is being made: the format's own */

typedef struct FormatStreaming {
    /* Whether create would make such an image. */
    bool (*wanted)(const FormatCreate *how);
    FormatStream *(*begin)(const FormatCreate *how, GError **error);
    uint32_t (*unit)(const FormatStream *stream); /* bytes, a power of two */
    /* Appends what is stored of the unit at this offset of the disk, a whole one. 0 or -errno. Any
     * number at once, beside all else. */
    int (*encode)(const FormatStream *stream, uint64_t offset, const uint8_t *unit,
                  GByteArray *out);
    /* Next comes this unit, with so many bytes: appends what must stand before it. 0 or -errno. */
    int (*place)(FormatStream *stream, uint64_t offset, uint64_t length, GByteArray *out);
    /* Appends what comes last. 0 or -errno. */
    int (*end)(FormatStream *stream, GByteArray *out);
    void (*free)(FormatStream *stream);
} FormatStreaming;

struct Format {
    const char *name;
    /* An image may be a directory, in which this file is what is opened, and names the others. NULL: it may not. */
    const char *directory_file;

    /* How sure, 0 (no) to 100, that the file is of this format, from its first bytes (n <=
     * IMAGE_PROBE_SIZE). */
    int (*probe)(const uint8_t *head, size_t n, const char *path);

    /* Reads and checks headers from image->store, fills in size, allocation_unit, backing_name,
     * backing_format and state. The caller opens the backing afterwards (unless check_backing says
     * more). On failure frees what it made. */
    bool (*open)(Image *image, GError **error);

    /* Called with image->backing open, when there is one; may refuse it (vmdk: CID). May be NULL. */
    bool (*check_backing)(Image *image, GError **error);

    /* Called last, with the whole chain open, when image->write: makes the image ready for writing. The first call that
     * may change the file, so that an open that is refused changes nothing. May be NULL. */
    bool (*start_writing)(Image *image, GError **error);

    void (*close)(Image *image);

    /* Appends extents from offset on: in order, without gaps, at least one, not past offset +
     * length, and the longest run that costs nothing more. The range lies inside the disk. Never
     * sets depth. */
    int (*map)(Image *image, uint64_t offset, uint64_t length, ExtentList *list);

    /* The unit in which space at a guest offset can be allocated now: image->allocation_unit, or image->largest_unit
     * where data is shared or compressed, so that a part of it cannot go elsewhere alone. No byte of a unit that must
     * be whole is WRITABLE. Exclusive, like allocate. NULL: always allocation_unit. */
    int (*unit_at)(Image *image, uint64_t offset, uint64_t *unit);

    /* Reserves space for each range, all of them new or not WRITABLE now. Fills in extents and
     * result of each; returns the first error, with nothing reserved for those whose result is an
     * error. Until commit a crash leaves at worst leaked space. The store has grown to hold the
     * space before this returns. NULL: read-only, or (raw) never needed because all that map shows
     * is WRITABLE. */
    int (*allocate)(Image *image, Allocation **list, unsigned count);

    /* The data of these is written (not synced): makes them visible. After this, map shows
     * DATA|WRITABLE. Changes memory only, unless the metadata cache is full. */
    int (*commit)(Image *image, Allocation **list, unsigned count);

    /* Gives back what was allocated and not committed. Never fails. */
    void (*abandon)(Image *image, Allocation **list, unsigned count);

    /* Drops or zeroes the range: whole units (or up to the end of the disk). -ENOTSUP: cannot
     * without writing zeroes, nothing was changed; the engine writes zeroes then. Freed space is
     * not reused before it is safe. */
    int (*unmap)(Image *image, uint64_t offset, uint64_t length, UnmapFlags flags);

    /* Everything committed so far is on stable storage when this returns 0, data included. */
    int (*flush)(Image *image);

    /* Syncs every store that may hold data of the image, and no more: runs beside anything. NULL: there
     * is only image->store. Call image_sync. */
    int (*sync)(Image *image);

    /* Orderly end of writing, after the last flush: apply pending frees, clear the dirty bit, trim
     * the file, sync. May be NULL. */
    int (*finish)(Image *image);

    /* True when a flush would have metadata to write; else the engine only syncs the data. [any],
     * atomic reads. */
    bool (*is_dirty)(const Image *image);

    /* Turns stored bytes (extent->stored_length of them; fewer when the store ended) into the whole
     * unit, extent->unit_length bytes. Memory only, any number at once. */
    int (*decode)(Image *image, const Extent *extent, const uint8_t *stored, size_t stored_length,
                  uint8_t *unit);

    /* The other way: a whole unit into at most `room` stored bytes, in the image's way of
     * compression. Their number; 0: it does not get that small, write it plain; or -errno. Memory
     * only, any number at once. What it made goes where allocate says (Allocation.stored_length). */
    int (*encode)(Image *image, const uint8_t *unit, uint32_t unit_length, uint8_t *stored,
                  uint32_t room);

    /* Writes another name (and format) of a backing into the image, or none (NULL), durably and so
     * that a crash leaves the old or the new one. image->backing is not touched; backing is the new
     * one, opened, or NULL when nobody looked at it. Called after finish: an image that becomes one of another kind by
     * it must be opened again before anything else is asked of it. May be NULL. */
    bool (*set_backing)(Image *image, const char *name, const char *format, const Image *backing,
                        GError **error);
    /* An image knows its backing by an identity in it: set_backing and create want one that is opened. */
    bool knows_backing;

    /* "format-specific" data of info: adds "{sv}" entries, with qemu-img's keys, in qemu-img's
     * order. May be NULL. */
    void (*info)(const Image *image, GVariantBuilder *data);
    /* The "snapshots" of info: adds "a{sv}" entries with qemu-img's keys, `most` of them at most. Returns how many the
     * image has. May be NULL. */
    unsigned (*snapshots)(const Image *image, unsigned most, GVariantBuilder *list);
    /* Internal snapshots: older states of the disk, inside the image; each has a name and an ID, and may
     * be called by either. All NULL: the format has none. A change is whole and durable when it
     * returns true, or was not made. After a cut in the middle, the image is as before or as afterwards.
     *     show    the disk is that state from now on: called right after open, never when write
     *     apply   the disk is set back to that state, its size too; the snapshot stays */
    bool (*snapshot_show)(Image *image, const char *name, GError **error);
    bool (*snapshot_create)(Image *image, const char *name, GError **error);
    bool (*snapshot_apply)(Image *image, const char *name, GError **error);
    bool (*snapshot_delete)(Image *image, const char *name, GError **error);

    /* Persistent dirty bitmaps: which parts of the disk were written since a moment. All NULL: the format
     * has none. A change lasts from image_finish on; where that does not come, as after a cut, a bitmap
     * that was changed or is enabled is known to be of no use.
     *     mark    the range is being changed; called when image->marks, before the change is answered.
     *             Never blocks, beside anything [any]
     *     names   of all, also of those that are of no use; g_strfreev
     *     get     what is marked; valid until the image is closed or the bitmap removed */
    void (*mark)(Image *image, uint64_t offset, uint64_t length);
    char **(*bitmap_names)(Image *image);
    DirtyMap *(*bitmap_get)(Image *image, const char *name, GError **error);
    bool (*bitmap_change)(Image *image, const BitmapChange *change, GError **error);

    /* The "cluster-size" of info; 0: the key is left out. May be NULL. */
    uint64_t (*cluster_size)(const Image *image);
    bool (*dirty_flag)(const Image *image); /* "dirty-flag" of info. May be NULL (false). */
    /* Host space of all files of the image, bytes. NULL: there is only image->store. */
    uint64_t (*allocated_bytes)(const Image *image);

    /* Makes the disk `size` bytes, durably. What it gains reads as zeroes, also where the file or a backing holds
     * something there (of a luks image it is noise, as what nobody has written); what it loses is freed as unmap does.
     * image->size says which size is in force when this returns, with either result. Call image_resize. NULL: the size
     * is fixed. */
    bool (*resize)(Image *image, uint64_t size, GError **error);
    bool resize_moves; /* what stays may get other places: nothing of the disk is used meanwhile */

    /* What an image that create made that way would need. May be NULL. */
    bool (*measure)(const FormatCreate *how, FormatMeasure *measure, GError **error);

    /* The options with which create makes an image like this one: adds char * -> char *. False where
     * create cannot make one that loses nothing. NULL: for no image. */
    bool (*create_like)(const Image *image, GHashTable *options, GError **error);

    const FormatOption *create_options; /* ends with a NULL name; NULL when there is no create */
    /* Writes a new image into an empty store, and syncs it. */
    bool (*create)(Store *store, const FormatCreate *how, GError **error);
    const FormatStreaming *streaming; /* NULL: no images of this format are made that way */

    /* Looks at all metadata; with repair, mends it. False with *error: could not be checked at all. */
    bool (*check)(Image *image, CheckRepair repair, CheckResult *result, GError **error);
};

/* formats.c: the table. */
extern const Format *const formats[];        /* NULL-terminated */
const Format *format_find(const char *name); /* NULL when there is none */
const char *format_name_in_images(
    const char *name);    /* what an image says of its backing: qemu's name; NULL of NULL */
char *format_names(void); /* "raw, qcow2, vmdk"; g_free */
const Format *format_probe(const uint8_t *head, size_t n,
                           const char *path); /* never NULL: raw at worst */

extern const Format format_raw, format_qcow, format_qcow2, format_vmdk, format_vhd, format_vhdx,
    format_bochs, format_cloop, format_dmg, format_vdi, format_luks, format_qed, format_parallels;

#endif
