/*
 * How many lines are good for the device, where the kernel lacks the target switch: a flush is sent
 * once for each line of target linear.
 *
 *      time of a flush = what the files take anyhow + lines x LINE_FLUSH_NS
 *
 * With few flushes that does not matter, and every line saves requests to the server. A device that
 * does little else than flush would spend most of its time on lines. So they may take half of the
 * time that is left between two flushes when theirs is taken off: who only writes and flushes takes
 * half as long again as with one line, at most.
 *
 * The bound falls at once and rises when it could have been twice as high for RISE_US: a table is
 * not swapped back and forth by a load that comes in waves.
 */
#include "fastpath/linear-impl.h"

#include "base/bytes.h"

#define LINE_FLUSH_NS UINT64_C(4000) /* measured: 3 to 5 us in a guest, less on real machines */
#define INTERVAL_US   UINT64_C(250000)
#define RISE_US       UINT64_C(10000000)
#define LINES_MIN     8u

LinearBound linear_bound_new(const Linear *linear)
{
    uint64_t now = linear_now_us();
    return (LinearBound){
        .flushes = linear_count_flushes(linear, NULL), .looked_at = now, .low_until = now};
}

static unsigned good_lines(const Linear *linear, uint64_t flushes, uint64_t us)
{
    if (flushes == 0) {
        return linear->lines_max;
    }
    uint64_t each = us * 1000 / flushes, by_lines = linear->table.lines * LINE_FLUSH_NS;
    uint64_t rest = max_u64(each - min_u64(by_lines, each), each / 8);
    uint64_t lines = rest / 2 / LINE_FLUSH_NS;
    return (unsigned)max_u64(min_u64(lines, linear->lines_max), MIN(LINES_MIN, linear->lines_max));
}

LinearBoundChange linear_bound_look(Linear *linear, LinearBound *bound)
{
    uint64_t now = linear_now_us(), passed = now - bound->looked_at;
    if (linear->fixed || linear->has_switch || passed < INTERVAL_US) {
        return LINEAR_BOUND_SAME;
    }
    uint64_t flushes = linear_count_flushes(linear, NULL);
    unsigned good = good_lines(linear, flushes - bound->flushes, passed);
    bound->flushes = flushes;
    bound->looked_at = now;
    if (good / 2 < linear->lines_bound) {
        bound->low_until = now;
    }
    if (good < linear->lines_bound && good < linear->table.lines - linear->table.lines / 4) {
        linear->lines_bound = good;
        return LINEAR_BOUND_FELL;
    }
    if (linear->lines_bound < linear->lines_max && now - bound->low_until >= RISE_US) {
        linear->lines_bound = good;
        bound->low_until = now;
        return LINEAR_BOUND_ROSE;
    }
    return LINEAR_BOUND_SAME;
}
