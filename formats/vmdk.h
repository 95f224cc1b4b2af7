/*
 * vmdk, shared between its files: what a descriptor says, and an open sparse extent.
 */
#ifndef FORMATS_VMDK_H
#define FORMATS_VMDK_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "map/extent.h"
#include "store/metacache.h"
#include "store/store.h"

#define VMDK_SECTOR         512u
#define VMDK_DESCRIPTOR_MAX (1u << 20) /* bytes */
#define VMDK_EXTENTS_MAX    4096u      /* each holds a file open */
#define VMDK_NO_PARENT      UINT32_MAX /* parentCID of an image without a parent */

/* --- vmdk-descriptor.c: the text --- */

typedef enum { VMDK_ACCESS_RW, VMDK_ACCESS_RDONLY, VMDK_ACCESS_NOACCESS } VmdkAccess;
typedef enum {
    VMDK_TYPE_FLAT,
    VMDK_TYPE_VMFS,
    VMDK_TYPE_ZERO,
    VMDK_TYPE_SPARSE,
    VMDK_TYPE_VMFSSPARSE,
    VMDK_TYPE_SESPARSE,
} VmdkType;

extern const char *const vmdk_type_names[]; /* as descriptors have them */

typedef struct VmdkSpan { /* where something stands in the text: bytes; length 0: nowhere */
    uint64_t at, length;
} VmdkSpan;

typedef struct VmdkLine { /* RW 4192256 SPARSE "disk-s001.vmdk" */
    VmdkAccess access;
    VmdkType type;
    uint64_t length; /* bytes, a multiple of VMDK_SECTOR, never 0 */
    uint64_t offset; /* bytes, where a FLAT extent begins in its file */
    char *name;      /* NULL for ZERO */
    VmdkSpan span;   /* the line, without its end */
} VmdkLine;

typedef struct VmdkDescriptor {
    uint32_t cid;
    uint32_t cid_at, cid_digits; /* where the text has it: bytes */
    uint32_t parent_cid;
    VmdkSpan cid_line, parent_cid_line, parent_name_line;
    char *create_type; /* one of the supported ones */
    char *parent_name; /* parentFileNameHint, or NULL */
    GArray *lines;     /* of VmdkLine */
    char *text;        /* as it was read; NULL: there is none */
    uint64_t size;     /* the sum of the lines, bytes, below 2^63 */
} VmdkDescriptor;

/* True when text begins like a descriptor file. */
bool vmdk_descriptor_probe(const uint8_t *head, size_t n);

/* Reads n bytes of text, which end early at a NUL. path is for messages. NULL with *error. */
VmdkDescriptor *vmdk_descriptor_parse(const char *text, size_t n, const char *path, GError **error);
/* What stands for the descriptor of an image that can have none: no extents, no parent. */
VmdkDescriptor *vmdk_descriptor_new(const char *create_type);
void vmdk_descriptor_free(VmdkDescriptor *descriptor);
/* Adds an extent's line, without an end. */
void vmdk_line_append(GString *text, const VmdkLine *line);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmdkDescriptor, vmdk_descriptor_free)

/* --- vmdk-sparse.c: one sparse extent, its grain directory and grain tables --- */

typedef struct VmdkSparse VmdkSparse;

/* What a header says that changes with the size of the disk, or with its descriptor. In bytes. */
typedef struct VmdkOutline {
    uint64_t size;
    uint64_t directory_offset, directory_length;
    uint64_t redundant_offset;  /* 0: there is none */
    uint64_t descriptor_offset; /* 0: there is none */
    uint64_t free_offset;       /* COWD: from where on space is free */
} VmdkOutline;

typedef struct VmdkGrain {
    ExtentType type;      /* UNALLOCATED, ZERO or DATA */
    uint64_t host_offset; /* DATA: bytes */
} VmdkGrain;

struct VmdkSparse {
    Store *store; /* not owned */
    MetaCache *cache;
    uint32_t cache_block;      /* bytes */
    uint64_t size;             /* guest bytes */
    uint64_t grain;            /* bytes, a power of two */
    uint64_t directory_offset; /* bytes */
    uint32_t entries_per_table;
    uint32_t entry_size;  /* bytes, of the directory and of tables: 4 or 8 */
    bool has_zero_grains; /* entry 1 is a grain of zeroes */
    bool compressed;
    bool has_markers;           /* before each compressed grain */
    bool is_alone;              /* COWD: may be a disk without any descriptor */
    uint64_t descriptor_offset; /* bytes; the embedded descriptor, length 0 when there is none */
    uint64_t descriptor_length;
    uint64_t head_length;      /* bytes, of the header */
    uint64_t directory_length; /* bytes; may have more entries than the capacity needs */
    /* COWD: entries that the file has no room for, by the header; else 0. */
    uint32_t directory_claims;
    bool has_footer; /* which is the header that counts */
    /* Kinds that are written: */
    /* Puts an outline into the header's first sector. */
    void (*set_outline)(const VmdkSparse *sparse, const VmdkOutline *outline, uint8_t *sector);
    bool is_unclean;           /* uncleanShutdown: the last writer did not close it */
    uint64_t unclean_offset;   /* bytes, of that mark; 0: the kind is only read */
    uint64_t redundant_offset; /* bytes, of the copy of the directory; 0: there is none */
    GError *copy_error;        /* it is not in the file: only a repair writes; or NULL */
    uint64_t free_offset;      /* bytes, of COWD's freeSector; 0: nothing records what is free */
    /* Writers only. */
    uint64_t used_end;      /* everything from here on is free */
    uint64_t fresh_start;   /* from here on nothing was ever written */
    uint64_t size_at_open;  /* of the file */
    GHashTable *new_tables; /* set: indices of tables that no directory on the disk shows yet */
    bool second_pending;    /* tables were written that no sync has covered */
    bool writable;          /* what has a place may be written there */
    /* seSparse: entries are numbers within these areas of the file */
    uint64_t tables_offset, tables_length, grains_offset, grains_length;
    /* What an entry of the directory that is not 0 says: where its table lies, in bytes; and what an entry of a
     * table says. 0, or -EIO when it cannot be true. The place is not compared with the end of the file. */
    int (*find_table)(const VmdkSparse *sparse, uint64_t entry, uint64_t *offset);
    int (*find_grain)(const VmdkSparse *sparse, uint64_t entry, VmdkGrain *grain);
};

#define VMDK_MAGIC               0x564d444bu /* "KDMV", as the file has it, read in little endian */
#define VMDK_COWD_MAGIC          0x44574f43u /* "COWD" */
#define VMDK_COWD_ENTRIES        4096u       /* in a grain table of COWD */
#define VMDK_COWD_HEAD           (4 * VMDK_SECTOR)
#define VMDK_SESPARSE_MAGIC      UINT64_C(0xcafebabe)

#define VMDK_DIRECTORY_IN_FOOTER UINT64_MAX /* gdOffset of a stream's header */

#define VMDK_GRAIN_MAX           (16u << 20) /* bytes; 64 KiB is usual */

/* Whether a file that begins with these bytes is a sparse extent, of whatever kind. */
bool vmdk_sparse_probe(const uint8_t *head, size_t n);

/* Reads and checks the header (and footer) of the extent that is all of store, which must stay open
 * until vmdk_sparse_close. write: its tables may be changed. NULL with *error. */
VmdkSparse *vmdk_sparse_open(Store *store, uint64_t cache_limit, bool write, GError **error);
void vmdk_sparse_close(VmdkSparse *sparse);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmdkSparse, vmdk_sparse_close)

/* Appends extents for a range of this extent; guest_base is added to every offset. Like
 * format->map. */
int vmdk_sparse_map(const VmdkSparse *sparse, uint64_t guest_base, uint64_t offset, uint64_t length,
                    ExtentList *list);

typedef struct VmdkHeader { /* of a new hosted extent; in sectors */
    bool compressed, zero_grains;
    uint64_t capacity, grain;
    uint64_t descriptor, descriptor_sectors;
    uint32_t entries_per_table;
    uint64_t redundant, directory, overhead;
} VmdkHeader;

void vmdk_header_pack(const VmdkHeader *header, uint8_t *sector);

/* For the kinds: fills in find_table and find_grain for entries of 4 bytes that are sectors. */
void vmdk_sparse_set_sectors(VmdkSparse *sparse);
/* Reads `size` bytes of the store at offset that must be there; what: their name in messages. */
bool vmdk_sparse_read(Store *store, uint64_t offset, const char *what, void *bytes, size_t size,
                      GError **error);
/* A run of sectors that must lie in the file, as bytes. */
bool vmdk_sparse_range(const VmdkSparse *sparse, const char *field, uint64_t sector,
                       uint64_t length, uint64_t *offset, GError **error);
/* Fills in the size. */
bool vmdk_sparse_capacity(VmdkSparse *sparse, const char *field, uint64_t sectors, GError **error);
/* Fills in the grain, which has `least` bytes at least. */
bool vmdk_sparse_grain(VmdkSparse *sparse, uint64_t sectors, uint32_t least, GError **error);
/* Fills in where the directory lies; size, grain and entries are known. */
bool vmdk_sparse_directory(VmdkSparse *sparse, const char *field, uint64_t sector, GError **error);
/* How many entries the directory has. */
uint64_t vmdk_sparse_tables(const VmdkSparse *sparse);
/* Guest bytes that one table tells of. */
uint64_t vmdk_sparse_table_covers(const VmdkSparse *sparse);

/* --- vmdk-hosted.c, vmdk-cowd.c, vmdk-sesparse.c: the headers of the kinds. Fill in all but the cache. --- */

bool vmdk_hosted_open(VmdkSparse *sparse, GError **error);
/* The header says no more that there is a copy of the directory, durably. 0 or -errno. */
int vmdk_hosted_drop_copy(VmdkSparse *sparse);
bool vmdk_cowd_open(VmdkSparse *sparse, bool write, GError **error);
bool vmdk_sesparse_open(VmdkSparse *sparse, GError **error);

#endif
