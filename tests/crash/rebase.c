/*
 * Another backing and the power: of each format that can have one.
 *
 * An image over `base` is put over `other`, then over nothing, then over `base` again. Wherever it is cut off, it is known
 * by its old backing or its new one, and over that it reads as before.
 */
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/log.h"
#include "formats/format.h"
#include "map/image.h"
#include "replay.h"
#include "setups.h"
#include "tests/lib/random.h"
#include "tests/lib/scale.h"
#include "tests/lib/store-memory.h"
#include "tests/lib/store-record.h"
#include "tools/copy.h"
#include "tools/merge.h"

#define UNIT         4096u
#define DISK         (UINT64_C(320) << 10)
#define STATES_A_CUT 24

typedef struct Family {
    const Format *format;
    const char *option, *value; /* of create */
} Family;

typedef struct Below { /* what an image may lie over */
    const char *name;  /* NULL: nothing */
    Image *image;
} Below;

enum { BASE, OTHER, NOTHING, BELOWS };

/* Some units of it hold data in all of their sectors, some in one. */
static uint8_t *contents(uint64_t seed)
{
    Random random = random_new(seed);
    uint8_t *bytes = g_malloc0(DISK);
    for (uint64_t at = 0; at < DISK; at += UNIT) {
        uint64_t kind = random_below(&random, 4);
        memset(bytes + at, 1 + random_below(&random, 255), kind == 0 ? UNIT : kind == 1 ? 512 : 0);
    }
    return bytes;
}

static void fatal(const char *what, const GError *error)
{
    g_error("%s: %s", what, error ? error->message : "");
}

static Image *open_over(Store *store, const Format *format, Image *backing, bool write)
{
    ImageOpen how = {.format = format, .write = write, .keep_identity = true};
    return image_open_store(store, &how, backing, NULL);
}

static void create(Store *store, const Family *family, const Below *below)
{
    g_autoptr(GHashTable) options = g_hash_table_new(g_str_hash, g_str_equal);
    g_autoptr(GError) error = NULL;
    g_hash_table_insert(options, (gpointer)family->option, (gpointer)family->value);
    FormatCreate how = {
        .size = DISK,
        .backing_name = below ? below->name : NULL,
        .backing_format = below ? family->format->name : NULL,
        .backing = below ? below->image : NULL,
        .options = options,
    };
    if (!family->format->create(store, &how, &error)) {
        fatal("create", error);
    }
}

static void fill(Image *target, const uint8_t *bytes)
{
    ImageOpen how = {.format = &format_raw};
    g_autoptr(Store) store = store_memory_new("plain", bytes, DISK);
    g_autoptr(Image) source = image_open_store(store, &how, NULL, NULL);
    CopyOptions options = {.length = DISK, .backing = target->backing, .threads = 1};
    CopyFailure failure;
    if (copy_disk(source, target, &options, &failure) < 0 || image_finish(target) < 0) {
        fatal("copy", NULL);
    }
}

static Image *make_below(const Family *family, const char *name, uint64_t seed)
{
    g_autofree uint8_t *bytes = contents(seed);
    g_autoptr(Store) store = store_memory_new(name, NULL, 0);
    create(store, family, NULL);
    g_autoptr(Image) image = open_over(store, family->format, NULL, true);
    fill(image, bytes);
    g_clear_pointer(&image, image_unref);
    return open_over(store, family->format, NULL, false);
}

static int rebase(Store *store, const Family *family, const Below *from, const Below *to)
{
    g_autoptr(Image) top = open_over(store, family->format, from->image, true);
    g_autoptr(GError) error = NULL;
    MergeOptions options = {.threads = 1};
    MergeFailure failure;
    if (!top) {
        return -EIO;
    }
    g_autoptr(Image) old = g_steal_pointer(&top->backing);
    top->backing = to->image ? image_ref(to->image) : NULL;
    int r = merge_up(top, old, &options, &failure);
    r = r < 0 ? r : image_finish(top);
    if (r == 0 && !family->format->set_backing(
                      top, to->name, to->name ? family->format->name : NULL, to->image, &error)) {
        return -EIO;
    }
    return r;
}

/* Formats that know a backing by an identity refuse another one; the others have its name. */
static bool is_over(Store *store, const Family *family, const Below *below, const uint8_t *want)
{
    g_autofree uint8_t *got = g_malloc(DISK);
    g_autoptr(Image) image = open_over(store, family->format, below->image, false);
    if (!image ||
        (!family->format->knows_backing && g_strcmp0(image->backing_name, below->name) != 0)) {
        return false;
    }
    return chain_read(image, got, DISK, 0) == 0 && memcmp(got, want, DISK) == 0;
}

static bool is_clean(Store *store, const Family *family)
{
    CheckResult result = {0};
    g_autoptr(Image) image = open_over(store, family->format, NULL, false);
    return image && family->format->check(image, CHECK_REPORT_ONLY, &result, NULL) &&
           result.corruptions == 0 && result.check_errors == 0;
}

/* Each cut of one rebase, in some of its states. Returns how many were bad. */
static uint64_t try_cuts(const Family *family, Store *record, const uint8_t *before, uint64_t size,
                         const Below *from, const Below *to, const uint8_t *want, uint64_t *tried)
{
    size_t count;
    const RecordEntry *entries = record_entries(record, &count);
    uint64_t last = record_tick(record), bad = 0;
    uint64_t numbers = max_u64(scaled(STATES_A_CUT), 2);
    ImageBytes start = image_bytes_of(before, size);
    Replay *replay = replay_new(entries, count, &start, 1);
    for (uint64_t cut = 0; cut <= last; cut++) {
        for (unsigned number = 0; number < numbers; number++) {
            replay_state(replay, cut, number, NULL);
            Store *state = replay_store(replay);
            bool good = is_over(state, family, from, want) || is_over(state, family, to, want);
            if (!good && bad++ == 0) {
                printf("%s: from %s to %s: cut %lu, state %u is neither\n", family->format->name,
                       from->name ? from->name : "nothing", to->name ? to->name : "nothing", cut,
                       number);
            }
            (*tried)++;
        }
    }
    replay_free(replay);
    return bad;
}

/* The image goes from one to the next; *content becomes what it is then. */
static uint64_t try_one(const Family *family, uint8_t **content, uint64_t *size, const Below *from,
                        const Below *to, const uint8_t *want, uint64_t *tried)
{
    RecordOptions options = {.seed = 1};
    g_autoptr(Store) record = store_record_new("top", *content, *size, &options);
    uint64_t bad = 0;
    if (rebase(record, family, from, to) < 0 || !is_over(record, family, to, want) ||
        !is_clean(record, family)) {
        printf("%s: from %s to %s: is not there, or not clean\n", family->format->name,
               from->name ? from->name : "nothing", to->name ? to->name : "nothing");
        bad++;
    }
    bad += try_cuts(family, record, *content, *size, from, to, want, tried);
    uint64_t new_size;
    const uint8_t *bytes = record_content(record, &new_size);
    g_free(*content);
    *content = g_memdup2(bytes, new_size);
    *size = new_size;
    return bad;
}

static uint64_t try_family(const Family *family, uint64_t *tried)
{
    static const unsigned ways[][2] = {{BASE, OTHER}, {OTHER, NOTHING}, {NOTHING, BASE}};
    g_autofree char *base = g_strconcat("base.", family->format->name, NULL);
    g_autofree char *other = g_strconcat("other.", family->format->name, NULL);
    Below belows[BELOWS] = {{base, make_below(family, base, 1)},
                            {other, make_below(family, other, 2)}};
    g_autofree uint8_t *want = contents(3), *below = contents(1);
    memcpy(want, below, DISK / 2); /* which is left to the base */
    g_autoptr(Store) made = store_memory_new("top", NULL, 0);
    create(made, family, &belows[BASE]);
    g_autoptr(Image) top = open_over(made, family->format, belows[BASE].image, true);
    fill(top, want);
    g_clear_pointer(&top, image_unref);
    uint64_t size = store_size(made), bad = 0;
    uint8_t *content = g_malloc(size);
    store_read(made, content, size, 0);
    for (unsigned i = 0; i < G_N_ELEMENTS(ways); i++) {
        bad +=
            try_one(family, &content, &size, &belows[ways[i][0]], &belows[ways[i][1]], want, tried);
    }
    g_free(content);
    image_unref(belows[BASE].image);
    image_unref(belows[OTHER].image);
    return bad;
}

int main(void)
{
    const Family families[] = {
        {&format_vhd, "block_size", "16k"},    {&format_vdi, "block_size", "16k"},
        {&format_vhdx, "block_size", "1M"},    {&format_qcow, "cluster_size", "4k"},
        {&format_qcow2, "cluster_size", "4k"}, {&format_qed, "cluster_size", "4k"},
    };
    uint64_t tried = 0, bad = 0;
    log_set_level(LOG_LEVEL_ERROR);
    watchdog_set(900, "crash-rebase");
    for (unsigned i = 0; i < G_N_ELEMENTS(families); i++) {
        uint64_t before = tried;
        bad += try_family(&families[i], &tried);
        printf("%s: states %lu\n", families[i].format->name, tried - before);
    }
    printf("states %lu, bad %lu\n", tried, bad);
    return bad ? 1 : 0;
}
