/*
 * Device-mapper devices, through libdevmapper.
 *
 * All functions block for as long as the kernel does. dm_swap_table waits for the device's I/O that
 * is under way, so it must not be called from a thread that serves that I/O. Names and UUIDs are
 * those of devices that cownbd makes: letters, digits and "_-.+", less than 128 bytes.
 *
 * A device is never left suspended: dm_swap_table resumes it with the old table when the kernel
 * refuses the new one.
 */
#ifndef FASTPATH_DM_H
#define FASTPATH_DM_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define DM_SECTOR    512u
#define DM_LINES_MAX (1u << 20) /* in one table: the kernel's limit */

/* One line of a table. */
typedef struct DmLine {
    uint64_t start, length; /* bytes, multiples of DM_SECTOR */
    const char *target;     /* "linear", "switch", "zero", "error", "snapshot"; a constant */
    char params[80];        /* as the target reads them */
} DmLine;

typedef struct DmLines {
    DmLine *items;
    unsigned count;
} DmLines;

/* target linear on device, from byte offset on. */
DmLine dm_line_linear(uint64_t start, uint64_t length, dev_t device, uint64_t offset);
/* The same place by target switch with a single path: a line that no flush is sent to. So a table
 * needs a linear line on the same device as well, for the flushes. */
DmLine dm_line_switch(uint64_t start, uint64_t length, dev_t device, uint64_t offset);
/* Where a line of these two kinds leads; false when it is none. */
bool dm_line_parse(const DmLine *line, dev_t *device, uint64_t *offset);
DmLine dm_line(uint64_t start, uint64_t length, const char *target, const char *params);

/* True when the kernel has device-mapper (and, unless NULL, the target; loads its module where that
 * is possible). The error says what is missing. [any] */
bool dm_available(const char *target, GError **error);

/* Makes the device and its node /dev/mapper/NAME. EEXIST: one of that name or UUID is there. */
bool dm_create(const char *name, const char *uuid, const DmLines *lines, bool read_only,
               GError **error);

/* EBUSY: it is open. True also when it is not there any more: somebody was faster. */
bool dm_remove(const char *name, GError **error);

typedef struct DmInfo {
    bool exists, suspended, read_only;
    bool has_inactive; /* a table was loaded and is not in use yet */
    dev_t device;
    int32_t open_count;
    char name[128], uuid[129];
} DmInfo;

/* False with *error only when the kernel cannot be asked. */
bool dm_info(const char *name, DmInfo *info, GError **error);
/* The device with this UUID; info->exists is false when there is none. */
bool dm_find(const char *uuid, DmInfo *info, GError **error);

/* The live table; free items with g_free. Targets that cownbd does not know are named "". */
bool dm_table(const char *name, DmLines *lines, GError **error);
/* The status of the line at index 0 ("16/2048 32" of a snapshot); g_free. NULL with *error. */
char *dm_status(const char *name, GError **error);

/* What one change of the table took, in microseconds. */
typedef struct DmTiming {
    uint64_t load_us;
    uint64_t drain_us; /* no new I/O, what was under way ended */
    uint64_t still_us; /* no I/O at all */
} DmTiming;

/* Called while the device is suspended and none of its I/O is under way. False: the old table is
 * resumed. Must not wait for anything that may need memory or the device. */
typedef bool DmConfirm(void *argument);

/* Loads the table, suspends, asks confirm (may be NULL), resumes with the new table. False with
 * *error when the device runs on with the old one; ECANCELED: confirm said so. */
bool dm_swap_table(const char *name, const DmLines *lines, bool read_only, DmConfirm *confirm,
                   void *argument, DmTiming *timing, GError **error);

/* Resumes a device that somebody left suspended, with the table that it had. */
bool dm_resume(const char *name, GError **error);
/* Drops a table that was loaded and is not in use. */
bool dm_clear(const char *name, GError **error);

#endif
