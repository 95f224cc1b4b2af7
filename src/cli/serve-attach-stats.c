/*
 * What `stats` says of an image's block device: counts as they are, and the shares of what the
 * kernel did without the server, in per cent.
 */
#include "cli/serve-attach-stats.h"

#include "cli/output.h"

static double percent(uint64_t part, uint64_t whole)
{
    return whole > 0 ? part * 100.0 / whole : 0;
}

static void add_linear(JsonObject *object, const LinearStats *stats)
{
    uint64_t through_nbd = MIN(stats->io_nbd_bytes, stats->io_bytes);
    json_object_set_int_member(object, "reloads", stats->reloads);
    json_object_set_int_member(object, "failed-reloads", stats->failed_reloads);
    json_object_set_int_member(object, "recalls", stats->recalls);
    json_object_set_int_member(object, "suspended-us", stats->suspended_us);
    json_object_set_int_member(object, "suspended-max-us", stats->suspended_max_us);
    json_object_set_int_member(object, "lines", stats->lines);
    json_object_set_int_member(object, "mapped-bytes", stats->mapped_bytes);
    json_object_set_double_member(object, "mapped-percent",
                                  percent(stats->mapped_bytes, stats->size));
    json_object_set_int_member(object, "io-bytes", stats->io_bytes);
    json_object_set_int_member(object, "io-server-bytes", stats->io_nbd_bytes);
    json_object_set_double_member(object, "io-kernel-percent",
                                  percent(stats->io_bytes - through_nbd, stats->io_bytes));
    json_object_set_int_member(object, "reclaimed-bytes", stats->reclaimed_bytes);
}

static void add_snapshot(JsonObject *object, const SnapshotStats *stats)
{
    json_object_set_int_member(object, "chunk-size", stats->chunk);
    json_object_set_int_member(object, "store-size", stats->store_size);
    json_object_set_int_member(object, "store-used", stats->store_used);
    json_object_set_int_member(object, "store-grown", stats->grown);
    json_object_set_boolean_member(object, "host-full", stats->host_full);
    json_object_set_boolean_member(object, "overflowed", stats->overflowed);
    json_object_set_boolean_member(object, "invalid", stats->invalid);
}

JsonObject *serve_attach_stats(const AttachmentStats *stats)
{
    JsonObject *object = json_object_new();
    json_object_set_string_member(object, "mode", attachment_mode_name(stats->mode));
    output_add_string(object, "nbd-device", stats->nbd_device);
    json_object_set_int_member(object, "sockets", stats->connections);
    json_object_set_int_member(object, "reconnects", stats->reconnects);
    json_object_set_int_member(object, "resizes", stats->resizes);
    if (stats->mode == ATTACH_LINEAR) {
        add_linear(object, &stats->linear);
    } else if (stats->mode == ATTACH_SNAPSHOT) {
        add_snapshot(object, &stats->snapshot);
    }
    return object;
}
