/*
 * The journal of a disk: so that a server which is killed has forgotten nothing that it answered.
 *
 * What a client wrote is in its host file, but where it lies there is known to this process alone
 * until a flush writes the format's tables. A client of a socket loses its server and knows that a
 * write since its last flush may be gone. The kernel, with a device that outlives its server, does
 * not know: it would read zeroes where it has written. So while a disk is attached, each change of
 * its map that was not flushed yet stands in a file in memory (tmpfs), which outlives the process
 * but not the machine; losing the machine means losing the page cache, too, and is another matter
 * (docs/architecture.md, section 7).
 *
 *      commit, unmap ---append---> [ record | record | record ]     a few stores to memory each
 *      flush         ---empty----> [ ]                              all is in the tables now
 *
 *      next server:  copy what the records point to -> write it again -> flush -> remove
 *
 * Only one disk of an image uses its journal at a time; the lock on the image sees to that.
 */
#ifndef ENGINE_JOURNAL_H
#define ENGINE_JOURNAL_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/worker.h"
#include "engine/disk.h"

/* Does again what the journal at path says that an earlier server of this image did, and removes
 * it. True when there is none, and when it belongs to another file of that path (with a warning:
 * the image was replaced). The disk is open for writing and nobody has made a request of it;
 * worker, which runs, makes those of the replay. Blocks. [main] */
bool journal_replay(Disk *disk, Worker *worker, const char *path, GError **error);

/* False with *error when an earlier server of the image left a journal with something in it: who
 * only reads would see old bytes. [main] */
bool journal_check_empty(const char *path, GError **error);

/* From now on the disk keeps a journal at path, until disk_close. Nothing to do, and true, for a
 * disk that needs none: read-only, or a format without tables. Blocks. Not from a worker. */
bool journal_start(Disk *disk, const char *path, GError **error);

#endif
