/*
 * Whether flushes go to the server, where the kernel has the target switch.
 *
 *      told    the first line on nbd takes the flushes: each is a trip to the server
 *      untold  no line on nbd takes any: the server writes through
 *
 *      told --many flushes, hardly a change that goes through the server--> untold
 *        ^                                                                    |
 *        +---changes go through the server; the table gets other lines--------+
 *
 * A device that writes and flushes in place flushes the server for nothing, and the trip takes
 * longer than the flush of the file, where that is fast.
 *
 * What must stay true: while the live table is untold, what the server answers is durable. So write
 * through is on, and what was answered before it was on is flushed, before such a table is loaded;
 * and write through goes off after it has gone. When lines go away, flushes of what the kernel wrote
 * there are the server's again (engine/lease.h): so other lines mean a table that is told.
 */
#include "fastpath/linear-impl.h"

#include <stdio.h>
#include <sys/sysmacros.h>

#include "base/bytes.h"
#include "base/errors.h"

#define INTERVAL_US UINT64_C(250000)
#define CALM_US     UINT64_C(500000)   /* without changes, before the server is left untold */
#define PAUSE_US    UINT64_C(10000000) /* the same, after it had been */
#define FLUSH_US    10000u             /* one flush in this time makes it worth a reload */
#define CHANGES_MAX 4u                 /* in an interval: each costs a flush of its own */

uint64_t linear_count_flushes(const Linear *linear, uint64_t *changes)
{
    g_autofree char *path =
        g_strdup_printf("/sys/dev/block/%u:%u/stat", major(linear->nbd), minor(linear->nbd));
    g_autofree char *text = NULL;
    uint64_t writes = 0, discards = 0, flushes = 0;
    if (g_file_get_contents(path, &text, NULL, NULL)) {
        sscanf(text,
               "%*s %*s %*s %*s %" G_GUINT64_FORMAT " %*s %*s %*s %*s %*s %*s %" G_GUINT64_FORMAT
               " %*s %*s %*s %" G_GUINT64_FORMAT,
               &writes, &discards, &flushes);
    }
    if (changes != NULL) {
        *changes = writes + discards - min_u64(flushes, writes); /* a flush is a write as well */
    }
    return flushes;
}

LinearFlush linear_flush_new(const Linear *linear)
{
    LinearFlush flush = {.looked_at = linear_now_us(), .changed_at = linear_now_us()};
    flush.flushes = linear_count_flushes(linear, &flush.changes);
    return flush;
}

static bool leave_untold(Linear *linear, GError **error)
{
    lease_write_through(linear->disk, true);
    int r = lease_flush(linear->disk);
    bool done = r == 0 ? linear_leave_untold(linear, error)
                       : error_set_errno(error, -r, "%s: cannot be flushed", linear->name);
    if (!done) {
        lease_write_through(linear->disk, false);
    }
    return done;
}

bool linear_flush_look(Linear *linear, LinearFlush *flush, GError **error)
{
    uint64_t now = linear_now_us(), passed = now - flush->looked_at, changes, flushes;
    if (!linear->has_leases || !linear->has_switch || passed < INTERVAL_US) {
        return true;
    }
    flushes = linear_count_flushes(linear, &changes);
    bool is_flushing = flushes - flush->flushes >= passed / FLUSH_US;
    bool is_changing = changes - flush->changes > CHANGES_MAX;
    flush->looked_at = now;
    flush->flushes = flushes;
    flush->changes = changes;
    if (is_changing) {
        flush->changed_at = now + (linear->is_untold ? PAUSE_US : 0);
        return !linear->is_untold || linear_repair(linear, error);
    }
    bool is_calm = now > flush->changed_at && now - flush->changed_at >= CALM_US;
    return linear->is_untold || !is_calm || !is_flushing || leave_untold(linear, error);
}
