/* src/fastpath/dmtable.c: maps become tables. The random test compares every sector with the map. */
#include <string.h>

#include "fastpath/dmtable.h"
#include "tests/lib/random.h"
#include "tests/lib/store-memory.h"
#include "tests/unit/suite.h"

#define S    512u
#define UNIT 4096u

static Store *files[3];

static void open_files(void)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(files); i++) {
        files[i] = store_memory_new("file", NULL, 1 << 20);
    }
}

static void close_files(void)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(files); i++) {
        store_unref(files[i]);
    }
}

/* A table in the making, from extents given one by one. */
typedef struct Maker {
    DmPlan *plan;
    uint64_t at;
} Maker;

static Maker begin(uint64_t size, uint64_t unit, unsigned lines_max, bool fixed)
{
    DmTableOptions options = {size, unit, S, lines_max, fixed};
    return (Maker){dmplan_new(&options), 0};
}

static void add(Maker *maker, uint64_t length, ExtentType type, unsigned flags, Store *store,
                uint64_t host_offset)
{
    Extent extent = {.offset = maker->at,
                     .length = length,
                     .type = type,
                     .flags = flags,
                     .store = store,
                     .host_offset = host_offset};
    dmplan_add(maker->plan, &extent);
    maker->at += length;
}

static void data(Maker *maker, uint64_t length, Store *store, uint64_t host_offset)
{
    add(maker, length, EXTENT_DATA, EXTENT_WRITABLE, store, host_offset);
}

static void hole(Maker *maker, uint64_t length)
{
    add(maker, length, EXTENT_ZERO, 0, NULL, 0);
}

static DmTable finish(Maker *maker)
{
    DmTable table;
    RangeSet none = {0};
    dmplan_finish(maker->plan, &none, &table, NULL);
    return table;
}

static void expect_text(DmTable *table, const char *want)
{
    g_autoptr(GString) text = g_string_new(NULL);
    dmtable_print(table, text);
    ck_assert_str_eq(text->str, want);
    dmtable_clear(table);
}

START_TEST(dmtable_prints_lines_that_dmsetup_reads)
{
    Maker maker = begin(16 * UNIT, UNIT, 100, false);
    data(&maker, UNIT, files[0], 5 * UNIT);
    data(&maker, UNIT, files[0], 6 * UNIT);
    data(&maker, UNIT, files[0], 2 * UNIT);
    hole(&maker, 3 * UNIT);
    add(&maker, UNIT, EXTENT_DATA, 0, files[1], 0); /* a backing's */
    data(&maker, 2 * UNIT, files[1], 0);
    add(&maker, 7 * UNIT, EXTENT_ENCODED, 0, files[0], 0);
    DmTable table = finish(&maker);
    ck_assert_uint_eq(table.mapped_bytes, 5 * UNIT);
    ck_assert_uint_eq(table.lines, 5);
    expect_text(&table, "# LOOP0 is \"file\"\n"
                        "# LOOP1 is \"file\"\n"
                        "0 16 linear LOOP0 40\n"
                        "16 8 linear LOOP0 16\n"
                        "24 32 linear NBD 24\n"
                        "56 16 linear LOOP1 0\n"
                        "72 56 linear NBD 72\n");
}
END_TEST

START_TEST(dmtable_of_a_fixed_image_maps_backings_and_zeroes)
{
    Maker maker = begin(8 * UNIT, S, 100, true);
    add(&maker, UNIT, EXTENT_DATA, 0, files[1], 0);
    hole(&maker, UNIT);
    add(&maker, UNIT, EXTENT_UNALLOCATED, 0, NULL, 0);
    add(&maker, UNIT, EXTENT_ENCODED, 0, files[0], 0);
    add(&maker, 4 * UNIT, EXTENT_DATA, 0, files[0], UNIT);
    DmTable table = finish(&maker);
    expect_text(&table, "# LOOP0 is \"file\"\n"
                        "# LOOP1 is \"file\"\n"
                        "0 8 linear LOOP0 0\n"
                        "8 16 zero\n"
                        "24 8 linear NBD 24\n"
                        "32 32 linear LOOP1 8\n");
}
END_TEST

/* A request through the rest of the device rounds out to units: a run must not share one with it. */
START_TEST(dmtable_takes_whole_units_only)
{
    Maker maker = begin(4 * UNIT + 2 * S, UNIT, 100, false);
    hole(&maker, S);
    data(&maker, 2 * UNIT - S, files[0], S); /* the first unit in part */
    hole(&maker, UNIT + S);
    data(&maker, UNIT - S, files[0], 3 * UNIT + S);
    data(&maker, 2 * S, files[0], 8 * UNIT); /* the last unit of the disk is short */
    DmTable table = finish(&maker);
    expect_text(&table, "# LOOP0 is \"file\"\n"
                        "0 8 linear NBD 0\n"
                        "8 8 linear LOOP0 8\n"
                        "16 16 linear NBD 16\n"
                        "32 2 linear LOOP0 64\n");
}
END_TEST

START_TEST(dmtable_leaves_out_what_the_file_does_not_reach)
{
    Maker maker = begin(3 * UNIT, UNIT, 100, false);
    data(&maker, 2 * UNIT, files[0], (1 << 20) - UNIT); /* the second one reads as zeroes */
    data(&maker, UNIT, files[0], 3 * UNIT + 100);       /* no sector of the file */
    DmTable table = finish(&maker);
    expect_text(&table, "# LOOP0 is \"file\"\n"
                        "0 8 linear LOOP0 2040\n"
                        "8 16 linear NBD 8\n");
}
END_TEST

START_TEST(dmtable_keeps_the_longest_runs)
{
    Maker maker = begin(12 * UNIT, UNIT, 5, false);
    hole(&maker, UNIT);
    data(&maker, 2 * UNIT, files[0], 0);
    hole(&maker, UNIT);
    data(&maker, UNIT, files[0], 9 * UNIT);
    hole(&maker, UNIT);
    data(&maker, 3 * UNIT, files[0], 20 * UNIT);
    hole(&maker, UNIT);
    data(&maker, UNIT, files[0], 30 * UNIT);
    hole(&maker, UNIT);
    DmTable table = finish(&maker);
    ck_assert_uint_eq(table.lines, 5);
    ck_assert_uint_eq(table.count, 2);
    ck_assert_uint_eq(table.mapped_bytes, 5 * UNIT);
    dmtable_clear(&table);
}
END_TEST

/* A million runs of one unit: a thousand lines would make every flush dearer and map nothing. */
START_TEST(dmtable_of_a_fragmented_image_is_not_worth_a_line)
{
    Maker maker = begin(UINT64_C(1000000) * UNIT, UNIT, 1000, false);
    gint64 start = g_get_monotonic_time();
    for (unsigned i = 0; i < 1000000; i++) {
        data(&maker, UNIT, files[0], (i * 7 % 250) * UNIT);
    }
    DmTable table = finish(&maker);
    ck_assert_uint_eq(table.lines, 1);
    ck_assert_int_lt(g_get_monotonic_time() - start, 20 * G_USEC_PER_SEC);
    dmtable_clear(&table);
}
END_TEST

START_TEST(dmtable_excludes_ranges_rounded_out_to_units)
{
    Maker maker = begin(8 * UNIT, UNIT, 100, false);
    data(&maker, 8 * UNIT, files[0], 0);
    DmTable table = finish(&maker);
    RangeSet except = {0};
    rangeset_add(&except, 2 * UNIT + 5, 10);
    rangeset_add(&except, 5 * UNIT - 1, 2);
    rangeset_add(&except, 7 * UNIT, UNIT);
    dmtable_exclude(&table, &except);
    rangeset_clear(&except);
    expect_text(&table, "# LOOP0 is \"file\"\n"
                        "0 16 linear LOOP0 0\n"
                        "16 8 linear NBD 16\n"
                        "24 8 linear LOOP0 24\n"
                        "32 16 linear NBD 32\n"
                        "48 8 linear LOOP0 48\n"
                        "56 8 linear NBD 56\n");
}
END_TEST

/* The model: for each sector where it may lie; store NULL and place 0: only the server knows. */
#define MODEL_SECTORS 2048u

typedef struct Sector {
    Store *store;
    uint64_t place;
    bool zero, excluded;
} Sector;

typedef struct Model {
    Sector sectors[MODEL_SECTORS];
    bool fixed;
    uint64_t at;
    unsigned lines;
} Model;

static void check_line(void *argument, uint64_t start, uint64_t length, const DmRun *run)
{
    Model *model = argument;
    ck_assert_uint_eq(start, model->at);
    ck_assert_uint_gt(length, 0);
    ck_assert_uint_eq(length % S, 0);
    model->at += length;
    model->lines++;
    for (uint64_t at = start; run != NULL && at < start + length; at += S) {
        const Sector *sector = &model->sectors[at / S];
        ck_assert(!sector->excluded);
        if (run->store == NULL) {
            ck_assert(model->fixed && sector->zero);
        } else {
            ck_assert_ptr_eq(sector->store, run->store);
            ck_assert_uint_eq(sector->place, run->host_offset + (at - start));
        }
    }
}

static void add_random(Random *random, Maker *maker, Model *model, bool fixed)
{
    uint64_t length = (1 + random_below(random, 64)) * S;
    uint64_t place = random_below(random, 1500) * S;
    Store *store = files[random_below(random, 3)];
    unsigned kind = random_below(random, 5);
    bool writable = random_below(random, 4) != 0;
    length = MIN(length, MODEL_SECTORS * S - maker->at);
    for (uint64_t at = maker->at; kind < 3 && at < maker->at + length; at += S) {
        model->sectors[at / S].zero = kind == 2;
        if (kind < 2 && (writable || fixed)) {
            model->sectors[at / S].store = store;
            model->sectors[at / S].place = place + (at - maker->at);
        }
    }
    if (kind < 2) {
        add(maker, length, EXTENT_DATA, writable ? EXTENT_WRITABLE : 0, store, place);
    } else {
        add(maker, length, kind == 2 ? EXTENT_ZERO : EXTENT_ENCODED, 0, store, place);
    }
}

static void exclude_random(Random *random, Model *model, RangeSet *except)
{
    for (unsigned i = random_below(random, 6); i > 0; i--) {
        uint64_t start = random_below(random, MODEL_SECTORS), count = 1 + random_below(random, 40);
        count = MIN(count, MODEL_SECTORS - start);
        rangeset_add(except, start * S, count * S);
        for (uint64_t at = start; at < start + count; at++) {
            model->sectors[at].excluded = true;
        }
    }
}

START_TEST(dmtable_sends_every_sector_to_its_place)
{
    Random random = random_new(_i);
    Model *model = g_new0(Model, 1);
    RangeSet except = {0};
    bool fixed = _i % 2 != 0;
    unsigned lines_max = 1 + random_below(&random, _i % 3 != 0 ? 200 : 12);
    Maker maker = begin(MODEL_SECTORS * S, S << random_below(&random, 5), lines_max, fixed);
    DmTable table;
    model->fixed = fixed;
    while (maker.at < MODEL_SECTORS * S) {
        add_random(&random, &maker, model, fixed);
    }
    exclude_random(&random, model, &except);
    dmplan_finish(maker.plan, &except, &table, NULL);
    dmtable_lines(&table, check_line, model);
    ck_assert_uint_eq(model->at, MODEL_SECTORS * S);
    ck_assert_uint_eq(model->lines, table.lines);
    ck_assert_uint_le(table.lines, lines_max);
    rangeset_clear(&except);
    dmtable_clear(&table);
    g_free(model);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("dmtable");
    tcase_set_timeout(tcase, 120);
    tcase_add_checked_fixture(tcase, open_files, close_files);
    tcase_add_test(tcase, dmtable_prints_lines_that_dmsetup_reads);
    tcase_add_test(tcase, dmtable_of_a_fixed_image_maps_backings_and_zeroes);
    tcase_add_test(tcase, dmtable_takes_whole_units_only);
    tcase_add_test(tcase, dmtable_leaves_out_what_the_file_does_not_reach);
    tcase_add_test(tcase, dmtable_keeps_the_longest_runs);
    tcase_add_test(tcase, dmtable_of_a_fragmented_image_is_not_worth_a_line);
    tcase_add_test(tcase, dmtable_excludes_ranges_rounded_out_to_units);
    tcase_add_loop_test(tcase, dmtable_sends_every_sector_to_its_place, 0, 200);
    return suite_run("dmtable", tcase);
}
