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
typedef enum { VMDK_TYPE_FLAT, VMDK_TYPE_VMFS, VMDK_TYPE_ZERO, VMDK_TYPE_SPARSE } VmdkType;

typedef struct VmdkLine { /* RW 4192256 SPARSE "disk-s001.vmdk" */
    VmdkAccess access;
    VmdkType type;
    uint64_t length; /* bytes, a multiple of VMDK_SECTOR, never 0 */
    uint64_t offset; /* bytes, where a FLAT extent begins in its file */
    char *name;      /* NULL for ZERO */
} VmdkLine;

typedef struct VmdkDescriptor {
    uint32_t cid;
    uint32_t parent_cid;
    char *create_type; /* one of the supported ones */
    char *parent_name; /* parentFileNameHint, or NULL */
    GArray *lines;     /* of VmdkLine */
    uint64_t size;     /* the sum of the lines, bytes, below 2^63 */
} VmdkDescriptor;

/* True when text begins like a descriptor file. */
bool vmdk_descriptor_probe(const uint8_t *head, size_t n);

/* Reads n bytes of text, which end early at a NUL. path is for messages. NULL with *error. */
VmdkDescriptor *vmdk_descriptor_parse(const char *text, size_t n, const char *path, GError **error);
void vmdk_descriptor_free(VmdkDescriptor *descriptor);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmdkDescriptor, vmdk_descriptor_free)

/* --- vmdk-sparse.c: one sparse extent, its grain directory and grain tables --- */

typedef struct VmdkSparse {
    Store *store; /* not owned */
    MetaCache *cache;
    uint64_t size;             /* guest bytes */
    uint64_t grain;            /* bytes */
    uint64_t directory_offset; /* bytes */
    uint32_t entries_per_table;
    bool has_zero_grains; /* entry 1 is a grain of zeroes */
    bool compressed;
    bool has_markers;           /* before each compressed grain */
    uint64_t descriptor_offset; /* bytes; the embedded descriptor, length 0 when there is none */
    uint64_t descriptor_length;
} VmdkSparse;

#define VMDK_MAGIC      0x564d444bu /* "KDMV", as the file has it, read in little endian */
#define VMDK_COWD_MAGIC 0x44574f43u /* "COWD" */

/* Reads and checks the header (and footer) of the extent that is all of store, which must stay open
 * until vmdk_sparse_close. NULL with *error. */
VmdkSparse *vmdk_sparse_open(Store *store, uint64_t cache_limit, GError **error);
void vmdk_sparse_close(VmdkSparse *sparse);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmdkSparse, vmdk_sparse_close)

/* Appends extents for a range of this extent; guest_base is added to every offset. Like
 * format->map. */
int vmdk_sparse_map(const VmdkSparse *sparse, uint64_t guest_base, uint64_t offset, uint64_t length,
                    ExtentList *list);

#endif
