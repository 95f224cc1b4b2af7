/*
 * vmdk: an open image, shared between vmdk.c and the files that write, make and check.
 *
 *     vmdk.c          open, map, info
 *     vmdk-write.c    allocate, commit, abandon, unmap
 *     vmdk-flush.c    start of writing, flush, finish
 *     vmdk-entry.c    directory, tables and space of a sparse extent that is written
 *     vmdk-cid.c      the content ID
 *     vmdk-text.c     the descriptor, changed; vmdk-edit.c how
 *     vmdk-backing.c  another parent
 *     vmdk-resize.c   another size: vmdk-directory.c of a sparse extent, vmdk-extend.c by more extents
 *     vmdk-scan.c     who uses which part of a sparse extent: for writers and for check
 *     vmdk-plan.c     what a new image shall be
 *     vmdk-stream.c   a new image made from its front to its end
 *     vmdk-cowd.c     the header of extents of ESX, a new one too
 *     vmdk-create.c, vmdk-check.c
 */
#ifndef FORMATS_VMDK_IMPL_H
#define FORMATS_VMDK_IMPL_H

#include <inttypes.h>
#include <stdatomic.h>

#include "formats/format.h"
#include "formats/vmdk.h"

typedef struct VmdkExtent {
    VmdkAccess access;
    VmdkType type;
    uint64_t offset, length; /* guest bytes */
    uint64_t host_offset;    /* FLAT, VMFS: of its first byte */
    Store *store;            /* NULL: ZERO, or not accessible */
    VmdkSparse *sparse;      /* SPARSE, VMFSSPARSE, SESPARSE */
    char *path;              /* of its file, or NULL */
} VmdkExtent;

typedef struct VmdkState {
    VmdkDescriptor *descriptor;
    VmdkExtent *extents;
    atomic_uint count; /* grows while others go through them */
    bool embedded;     /* one extent, which is the image's own file */

    /* Writers only. */
    /* Stores of extents that were taken back, as a sync may be at them; or NULL. */
    GPtrArray *removed;
    bool started; /* the CID of this session is durable: guest data may be changed */
    /* What counts in a header or descriptor is not known: nothing is changed any more. */
    bool broken;
    int write_error;   /* an implicit flush failed: changes answer this until one succeeds */
    atomic_bool dirty; /* flush has something to write */
} VmdkState;

static inline VmdkState *vmdk_state(const Image *image)
{
    return image->state;
}

static inline VmdkExtent *vmdk_last_extent(const VmdkState *state)
{
    return &state->extents[state->count - 1];
}

/* ---- vmdk.c ---- */

void vmdk_extent_clear(VmdkExtent *extent);

const VmdkExtent *vmdk_extent_at(const VmdkState *state, uint64_t offset);
int vmdk_map(Image *image, uint64_t offset, uint64_t length, ExtentList *list);

/* ---- vmdk-entry.c: of one sparse extent ---- */

/* Where an entry of a grain table and its copy lie in the file; 0: there is none. */
typedef struct VmdkPlace {
    uint64_t entry, copy;
} VmdkPlace;

/* The entry of the grain with this number. -EIO when a table is not in the file. [shared] */
int vmdk_entry_find(const VmdkSparse *sparse, uint64_t grain, VmdkPlace *place);

/* An entry at a place of the file; 0 where the place is 0. [shared] */
int vmdk_entry_get(const VmdkSparse *sparse, uint64_t place, uint32_t *entry);

/* What the grain has. [shared] */
int vmdk_entry_look(const VmdkSparse *sparse, uint64_t grain, VmdkPlace *place, uint32_t *entry);

/* Changes an entry of the file; does nothing where the place is 0. [exclusive] */
int vmdk_entry_set(VmdkSparse *sparse, uint64_t place, uint32_t entry, MetaOrder order);

/* Changes a grain's entry, and the copy of it: as soon as the disk may show them. [exclusive] */
int vmdk_grain_set(VmdkSparse *sparse, uint64_t grain, const VmdkPlace *place, uint32_t entry);

/* Sees to it that the grains from first to last have tables. [exclusive] */
int vmdk_tables_make(VmdkSparse *sparse, uint64_t first, uint64_t last);

/* A table of its own, all entries 0, with its place in a directory. [exclusive] */
int vmdk_table_make(VmdkSparse *sparse, uint64_t directory, uint64_t index, uint64_t *table);

/* Makes a table again from its copy, in a new place. [exclusive] */
int vmdk_table_renew(VmdkSparse *sparse, uint64_t index);
/* Makes the copy of a table say what the table says. [exclusive] */
int vmdk_copy_renew(VmdkSparse *sparse, uint64_t index);

/* Takes bytes (whole sectors) at the end of the file. *fresh: they read as zeroes. [exclusive] */
int vmdk_space_take(VmdkSparse *sparse, uint64_t length, uint64_t *offset, bool *fresh);
/* Writes down where free space begins, for who goes by it, before the next sync. [exclusive] */
int vmdk_space_record(VmdkSparse *sparse);
/* Gives back what was taken last; it may have been written to. [exclusive] */
void vmdk_space_give_back(VmdkSparse *sparse, uint64_t offset, uint64_t length);

static inline bool vmdk_entry_has_place(const VmdkSparse *sparse, uint32_t entry)
{
    return entry != 0 && !(entry == 1 && sparse->has_zero_grains);
}

/* ---- vmdk-cid.c ---- */

uint32_t vmdk_cid(const Image *image);

/* A random one that is no special value and not `other`. */
uint32_t vmdk_cid_new(uint32_t other);

/* Gives the image another CID, which is written and not synced. 0 or -errno: then it has its old one. */
int vmdk_cid_change(Image *image);

/* ---- vmdk-scan.c ---- */

typedef enum { VMDK_HEAD, VMDK_TABLE, VMDK_TABLE_COPY, VMDK_GRAIN } VmdkUser;

/* Who uses a place of the file. */
typedef struct __attribute__((packed)) VmdkClaim {
    uint32_t sector;
    uint64_t user : 2;
    uint64_t index : 62; /* of the table or grain; HEAD: sectors */
} VmdkClaim;

typedef enum {
    VMDK_OUTSIDE, /* not in the file */
    VMDK_TAKEN,   /* on top of something else */
} VmdkFault;

typedef struct VmdkScan {
    const VmdkSparse *sparse;
    /* Told of each claim that cannot be; what it returns other than 0 ends the scan. */
    int (*fault)(struct VmdkScan *scan, VmdkFault fault, const VmdkClaim *claim);
    GArray *claims; /* of VmdkClaim, those that are right; ascending at the end */
    uint64_t end;   /* one past the last byte that is used */
} VmdkScan;

/* Goes through the extent. 0 or -errno. Free the claims. */
int vmdk_scan(VmdkScan *scan);
uint64_t vmdk_claim_length(const VmdkSparse *sparse, const VmdkClaim *claim); /* bytes */

/* From `end` on, rounded to a grain, space is free. [exclusive] */
void vmdk_space_begin(VmdkSparse *sparse, uint64_t end);

/* Refuses an extent in which anything lies outside the file or on something else, and finds out where
 * free space begins. */
bool vmdk_scan_for_writing(VmdkSparse *sparse, GError **error);

/* ---- vmdk-edit.c ---- */

typedef struct VmdkEdit {
    const GArray
        *lines;  /* of VmdkLine: all of them, with those that are new last; NULL: they stay */
    bool parent; /* becomes: */
    uint32_t parent_cid;
    const char *parent_name; /* NULL: none */
} VmdkEdit;

/* The text of `old` as edit has it. NULL with *error. path is for messages. */
GString *vmdk_descriptor_edit(const GString *text, const VmdkDescriptor *old, const VmdkEdit *edit,
                              const char *path, GError **error);

/* ---- vmdk-text.c ---- */

/* Changes the descriptor, durably; a cut leaves the old or the new one. [exclusive] */
bool vmdk_text_change(Image *image, const VmdkEdit *edit, GError **error);

/* ---- vmdk-directory.c: of one sparse extent ---- */

VmdkOutline vmdk_outline(const VmdkSparse *sparse);
/* Durable, and in one piece. Where it fails, the state is broken. Nothing in the cache is dirty. [exclusive] */
int vmdk_outline_write(Image *image, VmdkSparse *sparse, const VmdkOutline *outline);
/* Makes what a capacity of size bytes needs, durable, and tells where it is; the header does not say so yet. Grains
 * below `hidden` that are in none of the old tables become zero grains. Nothing in the cache is dirty. [exclusive] */
int vmdk_directory_grow(VmdkSparse *sparse, uint64_t size, uint64_t hidden, VmdkOutline *outline);
/* What the tables of a capacity have behind `from` goes; below `hidden` zero grains take its place. Adds the sectors
 * of what was there to dropped. [exclusive] */
int vmdk_grains_drop(VmdkSparse *sparse, uint64_t from, uint64_t capacity, uint64_t hidden,
                     GArray *dropped);

/* ---- vmdk-extend.c, vmdk-resize.c ---- */

/* Up to here, in bytes of the extent, a backing that is longer than the disk must not show; 0 when there is none. */
uint64_t vmdk_hidden_end(const Image *image, const VmdkExtent *extent);

/* A copy of the descriptor's lines, the last of them with another length. */
GArray *vmdk_lines(const VmdkState *state, uint64_t last_length);
/* Makes extents until the disk has size bytes, each at most limit; durable, and adds their lines. [exclusive] */
bool vmdk_extents_add(Image *image, GArray *lines, uint64_t size, uint64_t limit, GError **error);
void vmdk_extents_remove(Image *image, unsigned kept); /* those behind, which no descriptor names */
bool vmdk_resize(Image *image, uint64_t size, GError **error);

/* ---- vmdk-backing.c ---- */

bool vmdk_set_backing(Image *image, const char *name, const char *format, const Image *backing,
                      GError **error);

/* ---- vmdk-write.c ---- */

/* Before anything is changed. 0 or -errno. [exclusive] */
int vmdk_before_change(Image *image);

int vmdk_allocate(Image *image, Allocation **list, unsigned count);
int vmdk_commit(Image *image, Allocation **list, unsigned count);
void vmdk_abandon(Image *image, Allocation **list, unsigned count);
int vmdk_unmap(Image *image, uint64_t offset, uint64_t length, UnmapFlags flags);

/* ---- vmdk-flush.c ---- */

/* Refuses an image that can never be written, by what its headers and its descriptor say. */
bool vmdk_writable(const Image *image, const VmdkState *state, GError **error);
bool vmdk_start_writing(Image *image, GError **error);
/* Before the first change of a session. 0 or -errno. [exclusive] */
int vmdk_start_session(Image *image);
/* Writes the mark of sparse extents in which it is another. 0 or -errno. */
int vmdk_mark_extents(const VmdkState *state, uint8_t mark);
int vmdk_flush(Image *image);
void vmdk_flush_if_full(Image *image);
int vmdk_sync(Image *image);
int vmdk_finish(Image *image);
int vmdk_trim(VmdkSparse *sparse); /* cuts off what was grown ahead of need */
bool vmdk_is_dirty(const Image *image);
void vmdk_update_dirty(VmdkState *state);

/* ---- vmdk-plan.c: what a new image shall be ---- */

#define VMDK_DISK_SIZE_MAX          (UINT64_C(62) << 40) /* as VMware's */
#define VMDK_NEW_ENTRIES            512u                 /* of a table */
#define VMDK_NEW_TABLE_SECTORS      (VMDK_NEW_ENTRIES * 4 / VMDK_SECTOR)
#define VMDK_NEW_DESCRIPTOR         1u /* sector of an embedded one */
#define VMDK_NEW_DESCRIPTOR_SECTORS 20u

typedef struct VmdkSubformat {
    const char *name;
    bool sparse;
    bool split;
    bool compressed;
    bool cowd;          /* of ESX */
    const char *suffix; /* of an extent's name; NULL: the image itself is the extent */
} VmdkSubformat;

typedef struct VmdkPlan {
    const VmdkSubformat *subformat;
    uint64_t size, grain, extent_size;
    const char *adapter, *hw_version, *tools_version;
    bool zeroed_grain;
    const VmdkState *like; /* its extents keep their names and lengths; NULL: the image is new */
} VmdkPlan;

/* Where the parts of a sparse extent lie, in sectors. */
typedef struct VmdkLayout {
    uint64_t capacity, tables, directory_sectors;
    uint64_t redundant, directory, grains;
} VmdkLayout;

/* What a BIOS is told. */
typedef struct VmdkGeometry {
    uint64_t cylinders;
    uint32_t heads, sectors;
} VmdkGeometry;

extern const FormatOption vmdk_create_options[];
/* The plan points into how. */
bool vmdk_plan_make(VmdkPlan *plan, const FormatCreate *how, GError **error);
/* How many extents, and how many bytes of the disk one of them has. */
uint64_t vmdk_plan_extents(const VmdkPlan *plan);
uint64_t vmdk_plan_length(const VmdkPlan *plan, uint64_t number);
VmdkLayout vmdk_plan_layout(const VmdkPlan *plan, uint64_t length);
VmdkGeometry vmdk_plan_geometry(const VmdkPlan *plan);
/* names: of the extents, in order. */
GString *vmdk_descriptor_text(const VmdkPlan *plan, const FormatCreate *how,
                              const GPtrArray *names);
/* For an image that is its own extent. */
GString *vmdk_descriptor_embedded(const VmdkPlan *plan, const FormatCreate *how, const char *path);

/* ---- vmdk-cowd.c ---- */

/* The header, VMDK_COWD_HEAD bytes, of a new extent. parent: its name, or NULL. */
void vmdk_cowd_pack(const VmdkPlan *plan, const VmdkLayout *layout, const char *parent,
                    uint8_t *head);
/* The same in place of an old extent: all but the places is as it was there. 0 or -errno. */
int vmdk_cowd_pack_like(const VmdkSparse *old, const VmdkLayout *layout, uint8_t *head);

/* ---- vmdk-create.c, vmdk-stream.c, vmdk-check.c ---- */

extern const FormatStreaming vmdk_streaming;
/* Another extent, in an empty store, like a sparse one (NULL: flat); synced. 0 or -errno. */
int vmdk_extent_write(Store *store, const VmdkSparse *like, uint64_t length);
bool vmdk_create_like(const Image *image, GHashTable *options, GError **error);
bool vmdk_create(Store *store, const FormatCreate *how, GError **error);
bool vmdk_measure(const FormatCreate *how, FormatMeasure *measure, GError **error);
bool vmdk_check(Image *image, CheckRepair repair, CheckResult *result, GError **error);

#endif
