/*
 * qcow2: what lies on the disk: numbers, bits, limits, and the header.
 */
#ifndef FORMATS_QCOW2_DISK_H
#define FORMATS_QCOW2_DISK_H

#include <stdint.h>

#define QCOW2_MAGIC                    0x514649fbu /* "QFI\xfb" */
#define QCOW2_MIN_CLUSTER_BITS         9
#define QCOW2_MAX_CLUSTER_BITS         21
#define QCOW2_MAX_REFCOUNT_ORDER       6
#define QCOW2_MAX_L1_BYTES             (32u << 20)
#define QCOW2_MAX_REFCOUNT_TABLE_BYTES (8u << 20)
#define QCOW2_MAX_SNAPSHOTS            65536
#define QCOW2_SNAPSHOT_HEAD            40 /* of an entry of their table, before what varies */
#define QCOW2_MAX_SNAPSHOT_EXTRA       1024
#define QCOW2_MAX_SNAPSHOT_TABLE_BYTES (64u << 20)
#define QCOW2_MAX_BITMAPS              65535
#define QCOW2_MAX_BACKING_NAME         1023
#define QCOW2_MAX_DATA_FILE_NAME       1023
#define QCOW2_V2_HEADER_LENGTH         72
#define QCOW2_V3_HEADER_LENGTH         104 /* the least of version 3; 112: compression type */

/* incompatible_features */
#define QCOW2_INCOMPAT_DIRTY       (UINT64_C(1) << 0)
#define QCOW2_INCOMPAT_CORRUPT     (UINT64_C(1) << 1)
#define QCOW2_INCOMPAT_DATA_FILE   (UINT64_C(1) << 2)
#define QCOW2_INCOMPAT_COMPRESSION (UINT64_C(1) << 3)
#define QCOW2_INCOMPAT_EXTENDED_L2 (UINT64_C(1) << 4)
#define QCOW2_INCOMPAT_KNOWN       UINT64_C(0x1f)
/* compatible_features */
#define QCOW2_COMPAT_LAZY_REFCOUNTS (UINT64_C(1) << 0)
/* autoclear_features */
#define QCOW2_AUTOCLEAR_BITMAPS  (UINT64_C(1) << 0)
#define QCOW2_AUTOCLEAR_DATA_RAW (UINT64_C(1) << 1)

/* header extensions */
#define QCOW2_EXT_END            0x00000000u
#define QCOW2_EXT_BACKING_FORMAT 0xe2792acau
#define QCOW2_EXT_FEATURE_NAMES  0x6803f857u
#define QCOW2_EXT_BITMAPS        0x23852875u
#define QCOW2_BITMAPS_EXT_LENGTH 24
#define QCOW2_EXT_CRYPTO         0x0537be77u
#define QCOW2_CRYPTO_EXT_LENGTH  16
#define QCOW2_EXT_DATA_FILE      0x44415441u

/* crypt_method */
#define QCOW2_CRYPT_NONE       0
#define QCOW2_CRYPT_AES        1
#define QCOW2_CRYPT_LUKS       2

#define QCOW2_COMPRESSION_ZLIB 0
#define QCOW2_COMPRESSION_ZSTD 1

/* Extended L2 entries have a bitmap of the parts of a cluster: which are allocated (bits 0 to 31), which read as zeroes
 * (bits 32 to 63). */
#define QCOW2_SUBCLUSTERS           32
#define QCOW2_SUBCLUSTERS_ALL       UINT32_MAX
#define QCOW2_EXTENDED_CLUSTER_BITS 14 /* the least: a subcluster of 512 bytes */

/* L1 and L2 entries, refcount table entries */
#define QCOW2_COPIED          (UINT64_C(1) << 63) /* refcount is 1: may be changed in place */
#define QCOW2_COMPRESSED      (UINT64_C(1) << 62) /* L2 only */
#define QCOW2_ZERO            (UINT64_C(1) << 0)  /* L2 only, version 3 */
#define QCOW2_OFFSET_MASK     UINT64_C(0x00fffffffffffe00)
#define QCOW2_L1_RESERVED     UINT64_C(0x7f000000000001ff)
#define QCOW2_L2_RESERVED     UINT64_C(0x3f000000000001fe) /* without COPIED, COMPRESSED, ZERO */
#define QCOW2_TABLE_RESERVED  UINT64_C(0x1ff)              /* refcount table entries */
#define QCOW2_MAX_HOST_OFFSET (UINT64_C(1) << 56)          /* one past what an L2 entry can say */

/* The header as it lies at offset 0, big endian. Version 2 ends before incompatible_features. */
typedef struct __attribute__((packed)) Qcow2HeaderDisk {
    uint32_t magic;                   /*   0 */
    uint32_t version;                 /*   4 */
    uint64_t backing_file_offset;     /*   8 */
    uint32_t backing_file_size;       /*  16 */
    uint32_t cluster_bits;            /*  20 */
    uint64_t size;                    /*  24 */
    uint32_t crypt_method;            /*  32 */
    uint32_t l1_size;                 /*  36 entries */
    uint64_t l1_table_offset;         /*  40 */
    uint64_t refcount_table_offset;   /*  48 */
    uint32_t refcount_table_clusters; /*  56 */
    uint32_t nb_snapshots;            /*  60 */
    uint64_t snapshots_offset;        /*  64 */
    uint64_t incompatible_features;   /*  72 */
    uint64_t compatible_features;     /*  80 */
    uint64_t autoclear_features;      /*  88 */
    uint32_t refcount_order;          /*  96 */
    uint32_t header_length;           /* 100 */
    uint8_t compression_type;         /* 104 */
    uint8_t padding[7];               /* 105 */
} Qcow2HeaderDisk;

_Static_assert(sizeof(Qcow2HeaderDisk) == 112, "the header of version 3 with its compression type");

/* The same, checked, in the machine's order; for version 2 the later fields have their defaults. */
typedef struct Qcow2Header {
    uint32_t version;
    uint64_t backing_file_offset;
    uint32_t backing_file_size;
    uint32_t cluster_bits;
    uint64_t size;
    uint32_t crypt_method;
    uint32_t l1_size;
    uint64_t l1_table_offset;
    uint64_t refcount_table_offset;
    uint32_t refcount_table_clusters;
    uint32_t nb_snapshots;
    uint64_t snapshots_offset;
    uint64_t incompatible_features;
    uint64_t compatible_features;
    uint64_t autoclear_features;
    uint32_t refcount_order;
    uint32_t header_length;
    uint8_t compression_type;
} Qcow2Header;

#endif
