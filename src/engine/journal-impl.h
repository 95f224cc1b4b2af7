/*
 * The journal file, and what the engine tells the journal of a disk.
 *
 *      0       header, one page
 *      4096    records; after the last one of CONTENTS: the bytes that they point to
 *
 * POINTERS is what a server writes: a record points into the host file of the image. A server that
 * takes over makes CONTENTS of it, a file of its own, before it allocates anything: what was not
 * flushed lies in space that the tables on the disk call free, and the first allocation may take it.
 *
 * The numbers are in the machine's own order: the file does not outlive the machine.
 */
#ifndef ENGINE_JOURNAL_IMPL_H
#define ENGINE_JOURNAL_IMPL_H

#include <stdatomic.h>

#include "engine/disk-impl.h"

#define JOURNAL_MAGIC   0x316c6e6a64626e77u
#define JOURNAL_HEAD    4096u
#define JOURNAL_RECORDS 65536u      /* a file of 1.5 MiB; past that, a flush */
#define JOURNAL_BYTES   (64u << 20) /* that records may point to; past that, a flush */
#define JOURNAL_ZERO    UINT64_MAX  /* in place of a place: the range reads as zeroes */

typedef enum { JOURNAL_POINTERS = 1, JOURNAL_CONTENTS = 2 } JournalKind;

typedef struct JournalHeader {
    uint64_t magic;
    uint64_t kind;
    uint64_t disk_size, unit;
    uint64_t device, inode; /* of the image file */
    _Atomic uint64_t count; /* records; those behind are not there */
} JournalHeader;

typedef struct JournalRecord {
    uint64_t offset, length; /* guest range, whole units */
    uint64_t place;          /* in the image's store, in CONTENTS in this file; or JOURNAL_ZERO */
} JournalRecord;

/* Of an image as it is now; all but count and kind. */
void journal_header_init(JournalHeader *header, const Disk *disk);

/* The range now lies at place of the image's own store. Inside the exclusive gate, after the format
 * has been told; journal_secure comes before anybody is answered. [pool] */
void journal_note(Disk *disk, const Extent *extent);
/* The range reads as zeroes by what the tables say; length 0: it is not known which range does. */
void journal_note_zero(Disk *disk, uint64_t offset, uint64_t length);
/* Flushes where the journal could not take what it was told, or has enough. */
void journal_secure(Disk *disk);

/* A flush has made everything durable. Inside the gate of the flush. [pool] */
void journal_empty(Disk *disk);
/* The disk has another size; the journal is empty. Inside the exclusive gate. [pool] */
void journal_resized(Disk *disk);
bool journal_is_kept(const Disk *disk);     /* [any] */
bool journal_has_records(const Disk *disk); /* [any] */

/* At the end of the disk; clean: all is in the image. */
void journal_end(Disk *disk, bool clean);

#endif
