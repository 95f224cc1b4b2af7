/*
 * What `stats` says of an image's block device. [any]
 */
#ifndef CLI_SERVE_ATTACH_STATS_H
#define CLI_SERVE_ATTACH_STATS_H

#include <json-glib/json-glib.h>

#include "fastpath/attachment.h"

JsonObject *serve_attach_stats(const AttachmentStats *stats);

#endif
