/*
 * A device that an earlier server made: which of its lines are right?
 *
 * The kernel goes on with the lines that it has when the server dies. Before anything is allocated,
 * each is compared with the image's metadata:
 *
 *      map    | data at x .. writable  |  not there   | data at y .. writable |
 *      lines  [ linear loop0 x         ][ linear nbd ][ linear loop0 z        ]
 *               right                     right         wrong
 *
 * A mapping is durable before its line is loaded, so a wrong line means that somebody else has
 * changed the image, or the table. It is taken out by the first round, which suspends the device:
 * from that moment on nothing new goes to the wrong place. It ends when what had been sent to the
 * server that died is answered, that is, after nbd is connected again.
 */
#include "fastpath/linear-impl.h"

#include <string.h>
#include <sys/sysmacros.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/errors.h"
#include "base/log.h"
#include "map/encryption.h"
#include "store/store-file.h"

typedef struct Adoption {
    Linear *linear;
    DmTableOptions options;
    DmLines lines;
    bool *is_wrong;
    unsigned at;         /* the first line that does not lie before the extents seen so far */
    GArray *runs;        /* DmRun: lines on files, and zeroes; store filled in as it is found */
    int *run_of;         /* by line: its index in runs, or -1 */
    GHashTable *flushed; /* devices that flushes are sent to */
} Adoption;

static uint64_t line_end(const DmLine *line)
{
    return line->start + line->length;
}

/* A run must be of whole units, as those that we make are. */
static bool is_whole(const DmTableOptions *options, const DmLine *line)
{
    uint64_t unit = max_u64(options->unit, options->alignment), end = line_end(line);
    return line->start % unit == 0 && (end % unit == 0 || end == options->size);
}

static void look_for_flushed(Adoption *adoption)
{
    for (unsigned i = 0; i < adoption->lines.count; i++) {
        const DmLine *line = &adoption->lines.items[i];
        dev_t device;
        uint64_t offset;
        if (strcmp(line->target, "linear") == 0 && dm_line_parse(line, &device, &offset)) {
            g_hash_table_add(adoption->flushed, GSIZE_TO_POINTER(device));
        }
    }
}

static bool is_flushed(const Adoption *adoption, dev_t device)
{
    return g_hash_table_contains(adoption->flushed, GSIZE_TO_POINTER(device));
}

/* The earlier server wrote through, and from now on this one does. */
static void stay_untold(Linear *linear)
{
    linear->is_untold = true;
    lease_write_through(linear->disk, true);
}

/* What the lines say by themselves. */
static void look_at_lines(Adoption *adoption)
{
    bool is_untold = false;
    look_for_flushed(adoption);
    for (unsigned i = 0; i < adoption->lines.count; i++) {
        const DmLine *line = &adoption->lines.items[i];
        DmRun run = {.start = line->start, .length = line->length};
        dev_t device;
        adoption->run_of[i] = -1;
        if (line_end(line) > adoption->options.size) {
            adoption->is_wrong[i] = true;
        } else if (strcmp(line->target, "zero") == 0) {
            adoption->is_wrong[i] = !adoption->options.fixed;
        } else if (!dm_line_parse(line, &device, &run.host_offset) ||
                   (device != adoption->linear->nbd && !is_flushed(adoption, device))) {
            adoption->is_wrong[i] = true;
        } else if (device == adoption->linear->nbd) {
            adoption->is_wrong[i] = run.host_offset != line->start;
            is_untold = is_untold || !is_flushed(adoption, device);
            continue;
        } else {
            adoption->is_wrong[i] = !is_whole(&adoption->options, line);
        }
        if (!adoption->is_wrong[i]) {
            adoption->run_of[i] = adoption->runs->len;
            g_array_append_val(adoption->runs, run);
        }
    }
    if (is_untold) {
        stay_untold(adoption->linear);
    }
}

static LinearFile *adopt_file(Linear *linear, Store *store, dev_t device)
{
    autofd int fd = store_file_reopen(store);
    LinearFile file = {.store = store, .discards = 0};
    if (fd < 0 || !loop_adopt(&file.loop, device, fd, 0, NULL)) {
        return NULL;
    }
    LinearFile *kept = g_memdup2(&file, sizeof file);
    g_ptr_array_add(linear->files, kept);
    linear->alignment = max_u64(linear->alignment, file.loop.block_size);
    return kept;
}

/* True when the device lies on the file of the store. */
static bool leads_to(Linear *linear, Store *store, dev_t device)
{
    for (unsigned i = 0; i < linear->files->len; i++) {
        LinearFile *file = linear->files->pdata[i];
        if (file->store == store) {
            return !file->refused && file->loop.device == device;
        }
    }
    return adopt_file(linear, store, device) != NULL;
}

static bool agrees(Adoption *adoption, unsigned i, const Extent *extent)
{
    const DmLine *line = &adoption->lines.items[i];
    DmRun *run = &g_array_index(adoption->runs, DmRun, adoption->run_of[i]);
    bool fixed = adoption->options.fixed;
    if (line->target[0] == 'z') {
        return extent_is_zero(extent);
    }
    if (extent->type != EXTENT_DATA || extent_is_encrypted(extent) ||
        !(fixed || (extent->flags & EXTENT_WRITABLE))) {
        return false;
    }
    dev_t device;
    uint64_t offset;
    dm_line_parse(line, &device, &offset);
    if (run->store != extent->store && !leads_to(adoption->linear, extent->store, device)) {
        return false;
    }
    run->store = extent->store;
    return offset - line->start == extent->host_offset - extent->offset;
}

/* Called for the whole map in order, as the lines are. */
static void compare(void *argument, const Extent *extent)
{
    Adoption *adoption = argument;
    const DmLines *lines = &adoption->lines;
    for (unsigned i = adoption->at; i < lines->count; i++) {
        if (lines->items[i].start >= extent_end(extent)) {
            return;
        }
        if (line_end(&lines->items[i]) <= extent->offset) {
            adoption->at = i + 1;
        } else if (adoption->run_of[i] >= 0 && !agrees(adoption, i, extent)) {
            adoption->is_wrong[i] = true;
            adoption->run_of[i] = -1;
        }
    }
}

/* The right lines as a table that is held. */
static unsigned keep_right(Adoption *adoption)
{
    Linear *linear = adoption->linear;
    DmTable table = {.options = adoption->options};
    RangeSet none = {0};
    unsigned wrong = 0;
    table.runs = g_new(DmRun, adoption->lines.count + 1);
    for (unsigned i = 0; i < adoption->lines.count; i++) {
        const DmLine *line = &adoption->lines.items[i];
        if (adoption->is_wrong[i]) {
            log_warning("/dev/mapper/%s: the line '%" G_GUINT64_FORMAT " %" G_GUINT64_FORMAT
                        " %s %s' is not what the image says: it is taken out",
                        linear->name, line->start / DM_SECTOR, line->length / DM_SECTOR,
                        line->target, line->params);
            wrong++;
        } else if (adoption->run_of[i] >= 0) {
            table.runs[table.count++] = g_array_index(adoption->runs, DmRun, adoption->run_of[i]);
        }
    }
    table.options.lines_max = max_u64(table.options.lines_max, 2 * table.count + 1);
    dmtable_exclude(&table, &none); /* counts */
    table.options.lines_max = adoption->options.lines_max;
    for (unsigned i = 0; linear->has_leases && i < table.count; i++) {
        Range range = {table.runs[i].start, table.runs[i].length};
        lease_adopt(linear->disk, &range, 1);
    }
    linear_set_table(linear, &table);
    return wrong;
}

static bool compare_all(Adoption *adoption, unsigned *wrong, GError **error)
{
    Linear *linear = adoption->linear;
    uint64_t end = 0;
    look_at_lines(adoption);
    int r = lease_map(linear->disk, compare, adoption);
    if (r < 0) {
        return error_set_errno(error, -r, "%s: the map cannot be read", linear->name);
    }
    *wrong = keep_right(adoption);
    if (adoption->lines.count > 0) {
        end = line_end(&adoption->lines.items[adoption->lines.count - 1]);
    }
    *wrong += end != linear->size; /* the image has another size now */
    return true;
}

bool linear_adopt(Linear *linear, unsigned *wrong, GError **error)
{
    Adoption adoption = {.linear = linear};
    if (!linear_find_size(linear, error) || !dm_table(linear->name, &adoption.lines, error)) {
        return false;
    }
    adoption.options = linear_table_options(linear);
    adoption.is_wrong = g_new0(bool, adoption.lines.count + 1);
    adoption.run_of = g_new0(int, adoption.lines.count + 1);
    adoption.runs = g_array_new(false, true, sizeof(DmRun));
    adoption.flushed = g_hash_table_new(NULL, NULL);
    bool done = compare_all(&adoption, wrong, error);
    g_hash_table_unref(adoption.flushed);
    g_array_free(adoption.runs, true);
    g_free(adoption.run_of);
    g_free(adoption.is_wrong);
    g_free(adoption.lines.items);
    return done;
}
