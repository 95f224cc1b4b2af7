/*
 * The requests of a run. The mix changes from time to time: mostly writes, mostly trims and zeroes,
 * growth, or small overwrites of what is there.
 */
#include "workload.h"

#include "base/bytes.h"
#include "model.h"

enum { MOOD_MIXED, MOOD_GROW, MOOD_FREE, MOOD_OVERWRITE, MOODS };

/* Percent of WRITE, TRIM, ZERO, FLUSH; the rest READs. */
static const unsigned mixes[MOODS][4] = {
    [MOOD_MIXED] = {45, 15, 12, 8},
    [MOOD_GROW] = {80, 2, 3, 5},
    [MOOD_FREE] = {30, 30, 20, 8},
    [MOOD_OVERWRITE] = {60, 5, 5, 10},
};

void workload_init(Workload *workload, uint64_t seed, uint64_t disk_size, unsigned unit)
{
    *workload = (Workload){.random = random_new(seed), .disk_size = disk_size, .unit = unit};
    for (unsigned i = 0; i < G_N_ELEMENTS(workload->hot); i++) {
        workload->hot[i] = random_below(&workload->random, disk_size);
    }
}

static RequestType pick_type(Workload *workload)
{
    static const RequestType types[] = {REQUEST_WRITE, REQUEST_TRIM, REQUEST_ZERO, REQUEST_FLUSH};
    if (workload->mood_left-- == 0) {
        workload->mood = random_below(&workload->random, MOODS);
        workload->mood_left = 10 + random_below(&workload->random, 60);
    }
    uint64_t dice = random_below(&workload->random, 100);
    for (unsigned i = 0; i < G_N_ELEMENTS(types); i++) {
        if (dice < mixes[workload->mood][i]) {
            return types[i];
        }
        dice -= mixes[workload->mood][i];
    }
    return REQUEST_READ;
}

static unsigned pick_flags(Workload *workload, RequestType type)
{
    Random *random = &workload->random;
    unsigned flags = 0;
    if (type != REQUEST_READ && type != REQUEST_FLUSH && random_percent(random, 12)) {
        flags |= REQUEST_FUA;
    }
    if (type == REQUEST_ZERO && random_percent(random, 40)) {
        flags |= REQUEST_NO_HOLE;
    }
    if (type == REQUEST_READ && random_percent(random, 30)) {
        flags |= REQUEST_HOLES_OK;
    }
    return flags;
}

static uint64_t pick_offset(Workload *workload)
{
    Random *random = &workload->random;
    if (random_percent(random, 60)) {
        uint64_t hot = workload->hot[random_below(random, G_N_ELEMENTS(workload->hot))];
        return hot + random_below(random, 6u * workload->unit);
    }
    return random_below(random, workload->disk_size);
}

static uint64_t pick_length(Workload *workload, bool aligned)
{
    Random *random = &workload->random;
    uint64_t dice = random_below(random, 100);
    if (!aligned && dice < 60) {
        return 1 + random_below(random, 1500);
    }
    if (dice < 70) {
        return workload->unit;
    }
    if (dice < 95) {
        return workload->unit * (1 + random_below(random, 6));
    }
    return 1 + random_below(random, 128u << 10);
}

static void append_range(Workload *workload, WorkloadRequest *request)
{
    request->offset = workload->append;
    request->length = 16384;
    workload->append = (workload->append + request->length) % workload->disk_size;
}

/* Sizes are whole sectors. */
static WorkloadRequest resize_request(Workload *workload)
{
    uint64_t size = align_down(random_below(&workload->random, workload->disk_size), 512);
    return (WorkloadRequest){.type = REQUEST_RESIZE,
                             .flags = REQUEST_MAY_SHRINK,
                             .offset = size,
                             .length = workload->disk_size - size};
}

WorkloadRequest workload_next(Workload *workload)
{
    if (workload->resizes && random_percent(&workload->random, 5)) {
        return resize_request(workload);
    }
    WorkloadRequest request = {.type = pick_type(workload)};
    request.flags = pick_flags(workload, request.type);
    if (request.type == REQUEST_FLUSH) {
        return request;
    }
    bool grows = request.type == REQUEST_WRITE && workload->mood == MOOD_GROW;
    if (grows && random_percent(&workload->random, 70)) {
        append_range(workload, &request);
    } else {
        unsigned likes = request.type == REQUEST_WRITE || request.type == REQUEST_READ ? 45 : 80;
        bool aligned = random_percent(&workload->random, likes);
        unsigned alignment = aligned ? workload->unit : CELL;
        request.offset = align_down(pick_offset(workload) % workload->disk_size, alignment);
        request.length = align_up(pick_length(workload, aligned), alignment);
    }
    request.length = min_u64(request.length, workload->disk_size - request.offset);
    return request;
}
