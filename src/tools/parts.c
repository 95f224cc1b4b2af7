/*
 * Parts: what is to be done with each range of a piece.
 */
#include "tools/writer.h"

#include "base/bytes.h"

GArray *parts_new(void)
{
    return g_array_new(false, false, sizeof(Part));
}

void parts_add(GArray *parts, uint64_t offset, uint64_t length, PartKind kind)
{
    Part *last = parts->len > 0 ? &g_array_index(parts, Part, parts->len - 1) : NULL;
    if (length == 0) {
        return;
    }
    if (last && last->kind == kind) {
        g_assert(last->offset + last->length == offset);
        last->length += length;
        return;
    }
    g_array_append_val(parts, ((Part){offset, length, kind}));
}

void parts_add_data(GArray *parts, uint64_t offset, uint64_t length, const uint8_t *bytes,
                    uint64_t grain, PartKind kind)
{
    if (grain == 0) {
        parts_add(parts, offset, length, kind);
        return;
    }
    for (uint64_t at = offset, end = offset + length; at < end;) {
        uint64_t next = min_u64(at - at % grain + grain, end);
        bool zero = bytes_are_zero(bytes + (at - offset), next - at);
        parts_add(parts, at, next - at, zero ? PART_ZERO : kind);
        at = next;
    }
}

/* Appends the part of `parts` that lies in [from, to); *p: where to begin to look. */
static void copy_range(GArray *copy, const GArray *parts, guint *p, uint64_t from, uint64_t to)
{
    while (from < to) {
        const Part *part = &g_array_index(parts, Part, *p);
        uint64_t end = min_u64(part->offset + part->length, to);
        if (end > from) {
            parts_add(copy, from, end - from, part->kind);
            from = end;
        }
        *p += from < to;
    }
}

GArray *parts_without_equal(const GArray *parts, uint64_t unit, const uint8_t *a, const uint8_t *b)
{
    GArray *left = parts_new();
    uint64_t start = g_array_index(parts, Part, 0).offset;
    const Part *last = &g_array_index(parts, Part, parts->len - 1);
    uint64_t end = last->offset + last->length, next;
    guint p = 0;
    for (uint64_t at = start; at < end; at = next) {
        next = min_u64(align_down(at, unit) + unit, end);
        if (memcmp(a + (at - start), b + (at - start), next - at) == 0) {
            parts_add(left, at, next - at, PART_KEEP);
        } else {
            copy_range(left, parts, &p, at, next);
        }
    }
    return left;
}

bool parts_all(const GArray *parts, PartKind kind)
{
    for (guint i = 0; i < parts->len; i++) {
        if (g_array_index(parts, Part, i).kind != kind) {
            return false;
        }
    }
    return true;
}
