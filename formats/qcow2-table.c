/*
 * qcow2: space for tables of more than one cluster, and the growth of the refcount table.
 *
 * A table, and the blocks that describe the space where it lies, go to the end of the file:
 *
 *     ... used | new table (n clusters) | new blocks (k clusters) | free ...
 *
 * A new refcount table is made in memory; flush writes blocks and table, syncs, points the header to the
 * table, syncs, and frees the old one. So a crash leaves the old table, and leaked space at worst.
 */
#include "formats/qcow2.h"

#include "base/log.h"

/* Where the new table goes, how long it is, and how many blocks its space needs. */
typedef struct Plan {
    uint64_t at;            /* cluster */
    uint64_t entries;       /* of the table; whole clusters */
    uint64_t table, blocks; /* clusters */
} Plan;

static bool has_block(const Qcow2State *s, uint64_t region)
{
    return region < s->table_count && s->table[region] != 0;
}

/* How many regions of the plan's space have no block yet. The blocks' own space counts, so count
 * until it is stable. */
static uint64_t missing_blocks(const Qcow2State *s, const Plan *plan)
{
    uint64_t missing = 0, counted = plan->at >> s->block_bits;
    for (;;) {
        uint64_t last = (plan->at + plan->table + missing - 1) >> s->block_bits;
        if (counted > last) {
            return missing;
        }
        missing += !has_block(s, counted++);
    }
}

static int make_plan(const Qcow2State *s, uint64_t region, Plan *plan)
{
    uint64_t per_cluster = s->cluster_size / 8, most = QCOW2_MAX_REFCOUNT_TABLE_BYTES / 8;
    uint64_t wanted = region + 1;
    *plan = (Plan){.at = s->used_end};
    while (wanted <= most) {
        /* Half as much again: tables grow seldom, and cost three syncs when they do. */
        plan->entries = min_u64(most, align_up(wanted + wanted / 2, per_cluster));
        plan->table = plan->entries / per_cluster;
        plan->blocks = missing_blocks(s, plan);
        uint64_t last = (plan->at + plan->table + plan->blocks - 1) >> s->block_bits;
        if (last < plan->entries) {
            return 0;
        }
        wanted = last + 1;
    }
    return -EFBIG;
}

/* Makes the blocks, behind the table. */
static int link_blocks(Image *image, const Plan *plan, bool fresh)
{
    Qcow2State *s = image->state;
    uint64_t block = plan->at + plan->table, end = block + plan->blocks;
    for (uint64_t region = plan->at >> s->block_bits; block < end; region++) {
        if (!has_block(s, region)) {
            int r = qcow2_refcount_link_block(image, region, block++, fresh);
            if (r < 0) {
                return r;
            }
        }
    }
    return 0;
}

/* The space of the plan, prepared, is in use from now on. */
static int take_plan(Image *image, const Plan *plan, bool fresh)
{
    Qcow2State *s = image->state;
    Qcow2Run run = {plan->at, plan->table + plan->blocks};
    qcow2_space_used(s, run);
    int r = link_blocks(image, plan, fresh);
    if (r == 0) {
        r = qcow2_refcount_raise(image, run);
    }
    if (r < 0) {
        /* Half of the new structure is in memory: it must never reach the disk. */
        log_error("%s: no space for a table: %s", image->path, g_strerror(-r));
        s->broken = r;
    }
    return r;
}

/* At the end of the file, with the blocks that it needs. */
static int alloc_at_end(Image *image, uint64_t clusters, Qcow2Run *run)
{
    Qcow2State *s = image->state;
    Plan plan;
    int r = 0;
    for (bool fits = false; r == 0 && !fits;) {
        plan = (Plan){.at = s->used_end, .table = clusters};
        plan.blocks = missing_blocks(s, &plan);
        uint64_t last = (plan.at + plan.table + plan.blocks - 1) >> s->block_bits;
        fits = last < s->table_entries;
        r = fits ? 0 : qcow2_table_grow(image, last);
    }
    bool fresh;
    if (r == 0) {
        r = qcow2_space_prepare(image, (Qcow2Run){plan.at, plan.table + plan.blocks}, &fresh);
    }
    if (r == 0) {
        *run = (Qcow2Run){plan.at, clusters};
        r = take_plan(image, &plan, fresh);
    }
    return r;
}

int qcow2_alloc_table(Image *image, uint64_t clusters, Qcow2Run *run)
{
    bool fresh;
    int r = qcow2_alloc_run(image, clusters, run, &fresh);
    if (r == 0 && run->count < clusters) {
        qcow2_alloc_return(image, *run);
        r = alloc_at_end(image, clusters, run);
    }
    qcow2_update_dirty(image->state);
    return r;
}

int qcow2_table_grow(Image *image, uint64_t region)
{
    Qcow2State *s = image->state;
    Plan plan;
    int r = make_plan(s, region, &plan);
    if (r < 0) {
        log_limited(LOG_LEVEL_ERROR, "%s: the refcount table would be larger than 8 MiB",
                    image->path);
        return r;
    }
    bool fresh;
    r = qcow2_space_prepare(image, (Qcow2Run){plan.at, plan.table + plan.blocks}, &fresh);
    if (r < 0) {
        return r;
    }
    Qcow2Run old = {s->table_offset >> s->cluster_bits, s->table_entries * 8 >> s->cluster_bits};
    bool old_on_disk = s->table_offset == s->header.refcount_table_offset;
    s->table_offset = plan.at << s->cluster_bits;
    s->table_entries = plan.entries;
    r = take_plan(image, &plan, fresh);
    if (r == 0 && !old_on_disk) {
        qcow2_alloc_return(image, old);
    }
    return r;
}
