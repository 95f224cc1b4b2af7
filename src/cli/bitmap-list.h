/*
 * What is shown of the persistent dirty bitmaps of an image. [main]
 */
#ifndef CLI_BITMAP_LIST_H
#define CLI_BITMAP_LIST_H

#include <json-glib/json-glib.h>

#include "map/image.h"

/* One object a bitmap, with the keys of qemu-img info; empty where there are none. json_array_unref */
JsonArray *bitmap_list(const Image *image);

/* Whether one of its flags is this ("auto", "in-use"). */
bool bitmap_has_flag(JsonObject *bitmap, const char *flag);

#endif
