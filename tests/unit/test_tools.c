/*
 * src/tools and what it asks of qcow2: compressed clusters, another backing, and data that moves
 * between an image and what lies below it; with every call of the store failing in turn.
 */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "formats/format.h"
#include "formats/qcow2.h"
#include "map/image.h"
#include "tests/lib/random.h"
#include "tests/lib/store-record.h"
#include "tests/unit/suite.h"
#include "tools/copy.h"
#include "tools/merge.h"

#define CLUSTER UINT64_C(4096)
#define SIZE    (64 * CLUSTER + 512)

static Store *store_with(const uint8_t *content, uint64_t size, FaultPlan *faults)
{
    RecordOptions options = {.faults = faults, .discard = true, .seed = 1};
    return store_record_new("image", content, size, &options);
}

/* The same content in a store of its own, as after a restart. */
static Store *copy_of(Store *store, FaultPlan *faults)
{
    uint64_t size;
    const uint8_t *content = record_content(store, &size);
    return store_with(content, size, faults);
}

static Store *create(const char *backing, const char *compression)
{
    g_autoptr(GHashTable) options = g_hash_table_new(g_str_hash, g_str_equal);
    g_hash_table_insert(options, "cluster_size", "4k");
    g_hash_table_insert(options, "compression_type", (gpointer)compression);
    FormatCreate how = {
        .size = SIZE,
        .backing_name = backing,
        .backing_format = backing ? "qcow2" : NULL,
        .options = options,
    };
    Store *store = store_with(NULL, 0, NULL);
    ck_assert(format_qcow2.create(store, &how, NULL));
    return store;
}

static Image *open_store(Store *store, bool write, Image *backing)
{
    GError *error = NULL;
    ImageOpen how = {.format = &format_qcow2, .write = write};
    Image *image = image_open_store(store, &how, backing, &error);
    ck_assert_msg(image != NULL, "%s", error ? error->message : "");
    return image;
}

/* Clusters of one letter, of noise, and holes, as the seed says. */
static uint8_t *contents(uint64_t seed)
{
    Random random = random_new(seed);
    uint8_t *bytes = g_malloc0(SIZE);
    for (uint64_t at = 0; at < SIZE; at += CLUSTER) {
        uint64_t length = min_u64(CLUSTER, SIZE - at), kind = random_below(&random, 3);
        if (kind == 0) {
            memset(bytes + at, 'a' + at / CLUSTER % 26, length);
        }
        for (uint64_t i = 0; kind == 1 && i < length; i++) {
            bytes[at + i] = random_below(&random, 256);
        }
    }
    return bytes;
}

static void check_clean(Store *store)
{
    CheckResult result = {0};
    g_autoptr(Image) image = open_store(store, false, NULL);
    ck_assert(format_qcow2.check(image, CHECK_REPORT_ONLY, &result, NULL));
    ck_assert_uint_eq(result.corruptions, 0);
    ck_assert_uint_eq(result.leaks, 0);
    ck_assert_uint_eq(result.check_errors, 0);
}

static bool reads_as(Image *image, const uint8_t *want)
{
    g_autofree uint8_t *got = g_malloc(SIZE);
    return chain_read(image, got, SIZE, 0) == 0 && memcmp(got, want, SIZE) == 0;
}

static Image *raw_of(const uint8_t *bytes)
{
    ImageOpen how = {.format = &format_raw};
    g_autoptr(Store) store = store_with(bytes, SIZE, NULL);
    return image_open_store(store, &how, NULL, NULL);
}

static int copy_into(Image *target, const uint8_t *bytes, bool blank, bool compress)
{
    g_autoptr(Image) source = raw_of(bytes);
    CopyOptions options = {
        .length = SIZE, .grain = 512, .blank = blank, .compress = compress, .threads = 2};
    CopyFailure failure;
    int r = copy_disk(source, target, &options, &failure);
    return r < 0 ? r : image_finish(target);
}

/* Packed, written over in part by plain clusters and by other packed ones, and emptied: the counts
 * are right each time. */
START_TEST(compressed_clusters_are_counted_right)
{
    static const char *const types[] = {"zlib", "zstd"};
    for (unsigned i = 0; i < G_N_ELEMENTS(types); i++) {
        g_autoptr(Store) store = create(NULL, types[i]);
        for (uint64_t seed = 1; seed <= 6; seed++) {
            g_autofree uint8_t *bytes = contents(seed);
            g_autoptr(Image) image = open_store(store, true, NULL);
            ck_assert_int_eq(copy_into(image, bytes, seed == 1, seed % 3 != 0), 0);
            ck_assert(reads_as(image, bytes));
            g_clear_pointer(&image, image_unref);
            check_clean(store);
        }
        g_autoptr(Image) image = open_store(store, true, NULL);
        ck_assert_int_eq(format_qcow2.unmap(image, 0, SIZE, UNMAP_ZERO), 0);
        ck_assert_int_eq(image_finish(image), 0);
        g_clear_pointer(&image, image_unref);
        check_clean(store);
    }
}
END_TEST

/* What was reserved for compressed clusters and not committed goes back. */
START_TEST(abandoned_compressed_clusters_leave_nothing)
{
    g_autoptr(Store) store = create(NULL, "zlib");
    g_autoptr(Image) image = open_store(store, true, NULL);
    Allocation items[8] = {0}, *list[8];
    for (unsigned i = 0; i < 8; i++) {
        items[i] = (Allocation){.offset = i * CLUSTER, .length = CLUSTER, .stored_length = 3000};
        extent_list_init(&items[i].extents);
        list[i] = &items[i];
    }
    ck_assert_int_eq(format_qcow2.allocate(image, list, 8), 0);
    for (unsigned i = 1; i < 8; i++) { /* each begins where the one before it ends */
        ck_assert_uint_eq(items[i].extents.items[0].host_offset,
                          items[i - 1].extents.items[0].host_offset + 3000);
    }
    format_qcow2.abandon(image, list, 8);
    ck_assert_int_eq(format_qcow2.allocate(image, list, 2), 0);
    format_qcow2.abandon(image, list, 2);
    ck_assert_int_eq(image_finish(image), 0);
    g_clear_pointer(&image, image_unref);
    check_clean(store);
    for (unsigned i = 0; i < 8; i++) {
        extent_list_clear(&items[i].extents);
    }
}
END_TEST

/* Every call that a change of the name makes fails in turn, writes with some of their sectors done:
 * the header says the old name or the new one, and nothing else is lost. */
START_TEST(the_backing_is_the_old_or_the_new_one)
{
    static const char *const names[] = {"new", "a/much/longer/name/than/the/old/one.qcow2", NULL};
    static const FaultKind kinds[] = {FAULT_WRITE, FAULT_SYNC};
    g_autoptr(Store) made = create("old", "zlib");
    for (unsigned n = 0; n < G_N_ELEMENTS(names); n++) {
        for (unsigned k = 0; k < 2 * 4; k++) {
            FaultPlan plan;
            fault_plan_init(&plan, kinds[k % 2], 0, true, -EIO);
            g_autoptr(Store) store = copy_of(made, &plan);
            g_autoptr(Image) image = open_store(store, true, NULL);
            plan.counts[kinds[k % 2]] = 0;
            plan.at = k / 2 + 1;
            bool done =
                format_qcow2.set_backing(image, names[n], names[n] ? "raw" : NULL, NULL, NULL);
            ck_assert_int_eq(done, plan.fired == 0);
            g_clear_pointer(&image, image_unref);
            g_autoptr(Store) after = copy_of(store, NULL);
            g_autoptr(Image) again = open_store(after, false, NULL);
            bool old = g_strcmp0(again->backing_name, "old") == 0 &&
                       g_strcmp0(again->backing_format, "qcow2") == 0;
            bool new = g_strcmp0(again->backing_name, names[n]) == 0 &&
                       g_strcmp0(again->backing_format, names[n] ? "raw" : NULL) == 0;
            ck_assert(done ? new : old || new);
            check_clean(after);
            fault_plan_clear(&plan);
        }
    }
}
END_TEST

/* base and top, each with data of its own; *want: what top reads as. */
static void make_chain(Store **base, Store **top, uint8_t **want)
{
    g_autofree uint8_t *below = contents(11), *above = contents(12);
    *base = create(NULL, "zlib");
    *top = create("base", "zlib");
    g_autoptr(Image) base_image = open_store(*base, true, NULL);
    ck_assert_int_eq(copy_into(base_image, below, true, true), 0);
    memcpy(above, below, SIZE / 3); /* which top leaves to the base */
    g_autoptr(Image) source = raw_of(above), top_image = open_store(*top, true, base_image);
    CopyOptions options = {.length = SIZE, .grain = 512, .backing = base_image, .threads = 1};
    CopyFailure failure;
    ck_assert_int_eq(copy_disk(source, top_image, &options, &failure), 0);
    ck_assert_int_eq(image_finish(top_image), 0);
    ck_assert(reads_as(top_image, above));
    *want = g_steal_pointer(&above);
}

/* Brings top down into base, as commit does. */
static int commit(Store *base, Store *top)
{
    g_autoptr(Image) base_image = open_store(base, true, NULL);
    g_autoptr(Image) top_image = open_store(top, true, base_image);
    MergeOptions options = {.threads = 2};
    MergeFailure failure;
    int r = merge_down(top_image, 1, &options, &failure);
    r = r < 0 ? r : image_finish(base_image);
    r = r < 0 ? r : format_qcow2.unmap(top_image, 0, SIZE, UNMAP_BACKING);
    return r < 0 ? r : image_finish(top_image);
}

/* Makes top need no backing, as rebase does. */
static int rebase(Store *base, Store *top)
{
    g_autoptr(Image) base_image = open_store(base, false, NULL);
    g_autoptr(Image) top_image = open_store(top, true, base_image);
    g_autoptr(Image) old = g_steal_pointer(&top_image->backing);
    MergeOptions options = {.threads = 2};
    MergeFailure failure;
    int r = merge_up(top_image, old, &options, &failure);
    r = r < 0 ? r : image_finish(top_image);
    return r < 0 ? r : format_qcow2.set_backing(top_image, NULL, NULL, NULL, NULL) ? 0 : -EIO;
}

static bool chain_reads_as(Store *base, Store *top, const uint8_t *want)
{
    g_autoptr(Image) base_image = open_store(base, false, NULL);
    g_autoptr(Image) alone = open_store(top, false, NULL);
    if (!alone->backing_name) {
        return reads_as(alone, want);
    }
    g_autoptr(Image) top_image = open_store(top, false, base_image);
    return reads_as(top_image, want);
}

/* Runs it with the at-th call of a kind failing, in the base or in the top; afterwards, as after a
 * restart, top reads as before, and a second run goes on to the end. False: nothing failed any more. */
static bool survives(int (*run)(Store *, Store *), Store *base, Store *top, const uint8_t *want,
                     FaultKind kind, uint64_t at, bool in_base)
{
    FaultPlan plan;
    fault_plan_init(&plan, kind, at, true, -EIO);
    g_autoptr(Store) bad_base = copy_of(base, in_base ? &plan : NULL);
    g_autoptr(Store) bad_top = copy_of(top, in_base ? NULL : &plan);
    int r = run(bad_base, bad_top);
    bool fired = plan.fired > 0;
    ck_assert(fired || r == 0);
    g_autoptr(Store) cut_base = copy_of(bad_base, NULL), cut_top = copy_of(bad_top, NULL);
    ck_assert(chain_reads_as(cut_base, cut_top, want));
    if (r < 0) {
        ck_assert_int_eq(run(cut_base, cut_top), 0);
        ck_assert(chain_reads_as(cut_base, cut_top, want));
    }
    fault_plan_clear(&plan);
    return fired;
}

static void check_all_faults(int (*run)(Store *, Store *))
{
    static const FaultKind kinds[] = {FAULT_WRITE, FAULT_SYNC};
    g_autoptr(Store) base = NULL, top = NULL;
    g_autofree uint8_t *want = NULL;
    make_chain(&base, &top, &want);
    ck_assert(chain_reads_as(base, top, want));
    for (unsigned k = 0; k < G_N_ELEMENTS(kinds); k++) {
        for (uint64_t at = 1; survives(run, base, top, want, kinds[k], at, true); at++) {
        }
        for (uint64_t at = 1; survives(run, base, top, want, kinds[k], at, false); at++) {
        }
    }
}

START_TEST(a_commit_that_fails_anywhere_loses_nothing)
{
    check_all_faults(commit);
}
END_TEST

START_TEST(a_rebase_that_fails_anywhere_loses_nothing)
{
    check_all_faults(rebase);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("tools");
    tcase_set_timeout(tcase, 200);
    tcase_add_test(tcase, compressed_clusters_are_counted_right);
    tcase_add_test(tcase, abandoned_compressed_clusters_leave_nothing);
    tcase_add_test(tcase, the_backing_is_the_old_or_the_new_one);
    tcase_add_test(tcase, a_commit_that_fails_anywhere_loses_nothing);
    tcase_add_test(tcase, a_rebase_that_fails_anywhere_loses_nothing);
    return suite_run("tools", tcase);
}
