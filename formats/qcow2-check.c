/*
 * qcow2 check: finds damage and mends it.
 *
 *     scan -> bad entries out -> scan -> shared data apart -> scan -> refcounts up -> scan
 *          -> refcounts down -> scan -> COPIED flags -> scan -> header
 *
 * Each step is synced before the next, and each leaves an image that is no worse than before: an
 * entry is gone before what it pointed to is given up, a refcount is raised before anybody may rely
 * on it, COPIED is set when the refcount says one. A scan stands between the steps, so that each
 * acts on what is really there.
 *
 * While a repair runs, the corrupt bit keeps writers away from what is half mended.
 *
 * What was fixed is what the first scan found and the last one does not find any more.
 */
#include "formats/qcow2-check.h"

#include "base/errors.h"

#define MARKS (QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT)

/* One repair of one image. */
typedef struct Repair {
    Image *image;
    CheckRepair mode;
    Qcow2Check check;   /* the last scan */
    CheckResult result; /* its counts */
    bool changed;       /* something was written */
    uint64_t marks;     /* incompatible_features before */
    bool tables_lost;   /* an L1 entry was given up: what looks leaked may be its table's */
} Repair;

static bool repair_scan(Repair *repair, bool skip_refcounts, GError **error)
{
    CheckResult first = repair->result;
    check_clear(&repair->check);
    repair->check = (Qcow2Check){
        .quiet = true,
        .whole_blocks = true,
        .skip_refcounts = skip_refcounts,
    };
    repair->result = (CheckResult){.message = first.message, .opaque = first.opaque};
    bool ok = check_scan(&repair->check, repair->image, &repair->result, error);
    repair->check.quiet = false;
    /* What could not be read may refer to anything: what looks leaked now may not be. */
    if (ok && repair->result.check_errors > 0) {
        return error_set(error, EIO,
                         "%s: a table could not be read while the image was mended: repair once "
                         "more",
                         repair->image->path);
    }
    return ok;
}

/* The result of a step that wrote: synced, and looked at again. */
static bool repair_wrote(Repair *repair, int result, const char *what, GError **error)
{
    repair->changed = true;
    if (result == 0) {
        result = store_sync(repair->image->store);
    }
    if (result < 0) {
        return error_set_errno(error, -result, "%s: cannot repair %s", repair->image->path, what);
    }
    return repair_scan(repair, false, error);
}

static bool mend_entries(Repair *repair, GError **error)
{
    if (repair->check.bad_entries == 0) {
        return true;
    }
    /* Nothing of a data file that was cut short comes back; without this, its entries would go, too. */
    int grown = qcow2_data_extend(repair->image, repair->image->size);
    if (grown < 0) {
        return error_set_errno(error, -grown, "%s: cannot repair the data file",
                               repair->image->path);
    }
    int result = check_mend_entries(&repair->check, &repair->tables_lost);
    return repair_wrote(repair, result, "L1 and L2 entries", error);
}

static bool mend_shared(Repair *repair, GError **error)
{
    if (repair->check.overused == 0) {
        return true;
    }
    bool changed = false;
    int result = check_unshare(&repair->check, &changed);
    return result == 0 && !changed ? true
                                   : repair_wrote(repair, result, "data that is shared", error);
}

static bool mend_refcounts(Repair *repair, GError **error)
{
    if (check_needs_rebuild(&repair->check)) {
        return repair_scan(repair, true, error) &&
               repair_wrote(repair, check_rebuild(&repair->check, repair->tables_lost), "refcounts",
                            error);
    }
    int result = check_write_refcounts(&repair->check, CHECK_RAISE);
    return repair_wrote(repair, result, "refcounts that are too low", error);
}

static bool mend_leaks(Repair *repair, GError **error)
{
    if (repair->result.leaks == 0 && repair->check.stale == 0) {
        return true;
    }
    if (repair->tables_lost) {
        check_say(&repair->check,
                  "Leaked clusters are kept: they may belong to the L2 tables that were given up. "
                  "Repair once more to free them.");
        return true;
    }
    int result = check_write_refcounts(&repair->check, CHECK_LOWER);
    return repair_wrote(repair, result, "leaked clusters", error);
}

static bool mend_copied(Repair *repair, GError **error)
{
    if (repair->check.bad_copied == 0) {
        return true;
    }
    return repair_wrote(repair, check_mend_copied(&repair->check), "COPIED flags", error);
}

static bool write_marks(Repair *repair, uint64_t incompatible, GError **error)
{
    const Qcow2Header *header = &qcow2_state(repair->image)->header;
    if (header->incompatible_features == incompatible) {
        return true;
    }
    int result = qcow2_header_set_features(repair->image, incompatible, header->autoclear_features);
    repair->changed = true;
    return result == 0 ||
           error_set_errno(error, -result, "%s: cannot write the header", repair->image->path);
}

/*
 * So that nobody writes to what is half mended. Version 2 has no such bit. The dirty bit says as
 * much, and who opens a dirty image mends it first: with the corrupt bit, a power cut during that
 * would need somebody to repair by hand.
 */
static bool mark_corrupt(Repair *repair, GError **error)
{
    const Qcow2Header *header = &qcow2_state(repair->image)->header;
    return header->version < 3 || repair->result.corruptions == 0 ||
           (header->incompatible_features & QCOW2_INCOMPAT_DIRTY) ||
           write_marks(repair, header->incompatible_features | QCOW2_INCOMPAT_CORRUPT, error);
}

/* Nothing is wrong any more: the header may say so. Else it says what it said before. */
static bool mend_marks(Repair *repair, GError **error)
{
    bool clean = repair->result.corruptions == 0 && repair->result.check_errors == 0;
    return write_marks(repair, clean ? repair->marks & ~MARKS : repair->marks, error);
}

static bool mend(Repair *repair, GError **error)
{
    if (repair->mode == CHECK_REPAIR_LEAKS) {
        return mend_leaks(repair, error) && mend_marks(repair, error);
    }
    return mark_corrupt(repair, error) && mend_entries(repair, error) &&
           mend_shared(repair, error) && mend_refcounts(repair, error) &&
           mend_leaks(repair, error) && mend_copied(repair, error) && mend_marks(repair, error);
}

static bool repair_image(Image *image, CheckRepair mode, Qcow2Check *found, CheckResult *result,
                         GError **error)
{
    Repair repair = {.image = image, .mode = mode, .check = *found, .result = *result};
    repair.check.result = &repair.result;
    repair.marks = qcow2_state(image)->header.incompatible_features;
    bool ok = mend(&repair, error);
    *found = repair.check; /* for the caller to clear */
    if (repair.changed && !qcow2_reload(image, ok ? error : NULL)) {
        ok = false;
    }
    CheckResult last = repair.result;
    last.corruptions_fixed = result->corruptions - min_u64(last.corruptions, result->corruptions);
    last.leaks_fixed = result->leaks - min_u64(last.leaks, result->leaks);
    *result = last;
    return ok;
}

static bool needs_repair(const Image *image, const CheckResult *result)
{
    return result->corruptions > 0 || result->leaks > 0 ||
           (qcow2_state(image)->header.incompatible_features & MARKS);
}

bool qcow2_check(Image *image, CheckRepair repair, CheckResult *result, GError **error)
{
    if (repair != CHECK_REPORT_ONLY && !image->write) {
        return error_set(error, EACCES, "%s: is open for reading only: cannot be repaired",
                         image->path);
    }
    Qcow2Check check = {.whole_blocks = repair != CHECK_REPORT_ONLY};
    CheckResult counts = {.message = result->message, .opaque = result->opaque};
    bool ok = check_scan(&check, image, &counts, error);
    /* What could not be read may refer to anything: nothing is safe to change. */
    if (ok && repair != CHECK_REPORT_ONLY && counts.check_errors == 0 &&
        needs_repair(image, &counts)) {
        ok = repair_image(image, repair, &check, &counts, error);
    }
    check_clear(&check);
    *result = counts;
    return ok;
}
