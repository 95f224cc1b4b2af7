/*
 * The walker: header, refcount table and blocks, snapshot table, and every L1 -> L2 -> data.
 *
 * First all references are counted, then counts and COPIED flags are compared with the stored
 * refcounts.
 */
#include "tests/lib/qcow2-walk.h"

#include <glib.h>

#include "base/bytes.h"

#define OFFSET_MASK 0x00fffffffffffe00u

typedef struct Walk {
    const uint8_t *bytes;
    uint64_t size, cluster_size, count;
    unsigned entry_size; /* of L2 tables */
    uint32_t *references;
    bool comparing; /* the second round */
    bool leaks_ok;
    char *problem;
} Walk;

static void complain(Walk *w, const char *what, uint64_t where)
{
    if (w->problem == NULL) {
        w->problem = g_strdup_printf("%s at %" G_GUINT64_FORMAT, what, where);
    }
}

/* False when the range does not lie in the file. */
static bool refer(Walk *w, uint64_t offset, uint64_t length)
{
    if (!range_within(offset, length, w->count * w->cluster_size) || length == 0) {
        if (length > 0) {
            complain(w, "a reference beyond the end of the file", offset);
        }
        return length == 0;
    }
    if (!w->comparing) {
        for (uint64_t c = offset / w->cluster_size; c <= (offset + length - 1) / w->cluster_size;
             c++) {
            w->references[c]++;
        }
    }
    return true;
}

static uint64_t stored_refcount(const Walk *w, uint64_t cluster)
{
    unsigned bits = 1u << (load_be32(w->bytes + 4) == 2 ? 4 : load_be32(w->bytes + 96));
    uint64_t per_block = w->cluster_size * 8 / bits, region = cluster / per_block;
    if (region >= load_be32(w->bytes + 56) * w->cluster_size / 8) {
        return 0;
    }
    uint64_t block = load_be64(w->bytes + load_be64(w->bytes + 48) + region * 8);
    uint64_t index = cluster % per_block;
    const uint8_t *p = w->bytes + block + index * bits / 8;
    if (block == 0) {
        return 0;
    }
    switch (bits) {
    case 8:
        return *p;
    case 16:
        return load_be16(p);
    case 32:
        return load_be32(p);
    case 64:
        return load_be64(p);
    default:
        return (*p >> (index * bits % 8)) & ((1u << bits) - 1);
    }
}

/* One entry of L1 or L2: counts its cluster, or compares its COPIED flag. False when it refers to
 * nothing usable. */
static bool visit(Walk *w, uint64_t entry, bool active)
{
    uint64_t host = entry & OFFSET_MASK;
    if (host == 0 || !refer(w, host, w->cluster_size)) {
        return false;
    }
    bool copied = entry >> 63, alone = stored_refcount(w, host / w->cluster_size) == 1;
    if (w->comparing && active && (w->leaks_ok ? copied && !alone : copied != alone)) {
        complain(w, "COPIED is wrong for the cluster", host);
    }
    return true;
}

/* The parts of a cluster: none is allocated and zero, none is allocated without a cluster. */
static void visit_bitmap(Walk *w, uint64_t entry, uint64_t bitmap)
{
    uint32_t allocated = bitmap, zero = bitmap >> 32;
    if ((allocated & zero) != 0 || (allocated != 0 && (entry & OFFSET_MASK) == 0)) {
        complain(w, "the bitmap is impossible of the cluster", entry & OFFSET_MASK);
    }
}

static void visit_l1(Walk *w, uint64_t l1, uint64_t l1_size, bool active)
{
    if (!refer(w, l1, l1_size * 8)) {
        return;
    }
    for (uint64_t i = 0; i < l1_size; i++) {
        uint64_t entry = load_be64(w->bytes + l1 + i * 8);
        bool has_table = visit(w, entry, active);
        const uint8_t *l2 = w->bytes + (entry & OFFSET_MASK);
        for (uint64_t n = 0; has_table && n < w->cluster_size; n += w->entry_size) {
            visit(w, load_be64(l2 + n), active);
            if (w->entry_size > 8) {
                visit_bitmap(w, load_be64(l2 + n), load_be64(l2 + n + 8));
            }
        }
    }
}

static void visit_all(Walk *w)
{
    const uint8_t *b = w->bytes;
    refer(w, 0, w->cluster_size);
    uint64_t table = load_be64(b + 48), table_size = load_be32(b + 56) * w->cluster_size;
    uint64_t entries = refer(w, table, table_size) ? table_size / 8 : 0;
    for (uint64_t i = 0; i < entries; i++) {
        uint64_t block = load_be64(b + table + i * 8);
        refer(w, block, block != 0 ? w->cluster_size : 0);
    }
    visit_l1(w, load_be64(b + 40), load_be32(b + 36), true);
    uint64_t start = load_be64(b + 64), at = start;
    for (uint32_t i = 0; i < load_be32(b + 60); i++) {
        const uint8_t *e = b + at;
        visit_l1(w, load_be64(e), load_be32(e + 8), false);
        at += align_up(40 + load_be32(e + 36) + load_be16(e + 12) + load_be16(e + 14), 8);
    }
    refer(w, start, at - start);
}

char *qcow2_walk(const uint8_t *bytes, uint64_t size, bool leaks_ok)
{
    Walk w = {.bytes = bytes, .size = size, .leaks_ok = leaks_ok};
    w.cluster_size = UINT64_C(1) << load_be32(bytes + 20);
    bool extended = load_be32(bytes + 4) > 2 && (load_be64(bytes + 72) & 16) != 0;
    w.entry_size = extended ? 16 : 8;
    w.count = div_round_up(size, w.cluster_size);
    g_autofree uint32_t *references = w.references = g_new0(uint32_t, w.count);
    visit_all(&w);
    for (uint64_t c = 0; c < w.count && w.problem == NULL; c++) {
        uint64_t stored = stored_refcount(&w, c);
        if (stored < references[c] || (stored > references[c] && !leaks_ok)) {
            w.problem = g_strdup_printf("cluster %" G_GUINT64_FORMAT ": refcount %" G_GUINT64_FORMAT
                                        ", references %u",
                                        c, stored, references[c]);
        }
    }
    w.comparing = true;
    if (w.problem == NULL) {
        visit_all(&w);
    }
    return w.problem;
}
