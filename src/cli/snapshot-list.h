/*
 * What is shown of the internal snapshots of an image, by info and snapshot. [main]
 */
#ifndef CLI_SNAPSHOT_LIST_H
#define CLI_SNAPSHOT_LIST_H

#include <json-glib/json-glib.h>

#include "map/image.h"

/* One object a snapshot, with the keys of qemu-img info; NULL: there are none. Of more than `most`, which take some KiB
 * each, the rest is counted in *more (if more is not NULL). */
JsonArray *snapshot_list(const Image *image, unsigned most, unsigned *more);

/* The same for people, as qemu-img prints it. */
void snapshot_list_print(JsonArray *snapshots);

#endif
