/*
 * parallels: check and repair.
 *
 *     a cluster that is not in the file, or on the table ...... the entry is cleared
 *     one that lies on top of another ......................... it gets a copy of its own
 *     clusters that nobody uses: at the end of the file ....... cut off
 *                                elsewhere .................... counted; nothing can be done
 *     the mark of a writer that was cut off ................... cleared, when all is sound
 *
 * What is written follows the order of a flush: copies of clusters before the table.
 */
#include "formats/parallels.h"

#include "base/errors.h"
#include "formats/check-result.h"
#include "formats/space.h"

typedef struct Check {
    Image *image;
    ParallelsState *s;
    CheckResult *result;
    CheckRepair repair;
    uint64_t size;   /* of the file at the start: copies lie behind it */
    uint64_t end;    /* of the last cluster so far; of the table */
    uint64_t used;   /* clusters that lie where the file had them */
    uint64_t copied; /* bytes */
} Check;

static void clear_entry(Check *check, ParallelsPlace place)
{
    check_result_say(check->result, "cluster %u is at %u: not in the file, or on the table",
                     place.block, place.entry);
    if (check_result_corruption(check->result, check->repair)) {
        block_table_set(check->s->table, place.block, 0);
    }
}

/* In all no more than the file has: a small file could make a huge one otherwise. */
static int copy_cluster(Check *check, ParallelsPlace place)
{
    const ParallelsHeader *header = &check->s->header;
    uint64_t from = place.entry * header->unit, to;
    uint64_t there = min_u64(header->cluster_size, check->size - from);
    check->copied += there;
    if (check->copied > check->size) {
        return -EFBIG;
    }
    int r = parallels_space_take(check->image, header->cluster_size, &to);
    r = r < 0 ? r : space_copy(check->image->store, from, to, there);
    if (r == 0) {
        block_table_set(check->s->table, place.block, to / header->unit);
    }
    return r;
}

static int check_place(Check *check, ParallelsPlace place)
{
    const ParallelsHeader *header = &check->s->header;
    uint64_t host = place.entry * header->unit;
    check->result->allocated_clusters++;
    if (host < header->data_offset ||
        !range_within(host, parallels_needed(check->image, place.block), check->size)) {
        clear_entry(check, place);
        return 0;
    }
    if (host >= check->end) {
        check->end = host + header->cluster_size;
        check->used++;
        return 0;
    }
    check_result_say(check->result, "cluster %u is at %u, on top of another", place.block,
                     place.entry);
    return check_result_corruption(check->result, check->repair) ? copy_cluster(check, place) : 0;
}

/* Of an image with extensions nobody can say: they have clusters of their own. */
static int check_unused(Check *check)
{
    const ParallelsHeader *header = &check->s->header;
    uint64_t inner = (check->end - header->data_offset) / header->cluster_size - check->used;
    uint64_t tail =
        check->size > check->end ? div_round_up(check->size - check->end, header->cluster_size) : 0;
    if (header->extension != 0 || inner + tail == 0) {
        return 0;
    }
    check_result_say(check->result, "%" PRIu64 " clusters of the file are not used", inner + tail);
    check->result->leaks += inner;
    /* What was copied lies behind the tail. */
    if (tail == 0 || check->repair == CHECK_REPORT_ONLY || check->copied > 0) {
        check->result->leaks += tail;
        return 0;
    }
    check->result->leaks_fixed += tail;
    int r = store_truncate(check->image->store, check->end);
    return r < 0 ? r : store_sync(check->image->store);
}

static int close_image(Check *check)
{
    const CheckResult *result = check->result;
    bool sound = result->corruptions == 0 && result->check_errors == 0;
    bool marked = check->s->header.in_use == PARALLELS_IN_USE;
    if (check->repair == CHECK_REPORT_ONLY || !sound || !marked) {
        return 0;
    }
    return parallels_set_in_use(check->image, PARALLELS_CLOSED);
}

static int run(Check *check, const ParallelsPlace *places, uint32_t count)
{
    int r = 0;
    for (uint32_t i = 0; r == 0 && i < count; i++) {
        r = check_place(check, places[i]);
    }
    if (r == 0 && check->repair != CHECK_REPORT_ONLY) {
        r = parallels_flush(check->image);
    }
    r = r < 0 ? r : check_unused(check);
    return r < 0 ? r : close_image(check);
}

bool parallels_check(Image *image, CheckRepair repair, CheckResult *result, GError **error)
{
    ParallelsState *s = image->state;
    if (s->directory) {
        return parallels_directory_check(image, result, error);
    }
    Check check = {.image = image, .s = s, .result = result, .repair = repair};
    uint32_t count;
    g_autofree ParallelsPlace *places = parallels_sorted(s, &count);
    if (!places) {
        return error_set_errno(error, ENOMEM, "%s: cannot check", image->path);
    }
    check.size = store_size(image->store);
    check.end = s->header.data_offset;
    if (repair != CHECK_REPORT_ONLY) {
        parallels_space_start(image);
    }
    result->total_clusters = div_round_up(image->size, s->header.cluster_size);
    int r = run(&check, places, count);
    result->image_end_offset = check.end;
    return r == 0 || error_set_errno(error, -r, "%s: cannot check", image->path);
}
