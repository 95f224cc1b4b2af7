/*
 * A run: seeded random requests on a disk.
 *
 * The requests are dealt to lanes, one a worker. A lane keeps some of its requests in flight and
 * starts the next when one is done; how many changes with the seed. The main thread waits until all
 * lanes have ended.
 *
 * A request's tasks are made before the run, so that nothing but the tasks themselves is shared
 * between threads.
 */
#include "run.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "base/cleanup.h"
#include "engine/disk.h"
#include "tests/lib/random.h"
#include "workload.h"

typedef struct Lane Lane;

typedef struct Task {
    Request request;
    Lane *lane;
    ModelOp op;
    uint8_t *buffer;
    unsigned depth; /* requests in flight from here on */
} Task;

typedef struct Lanes {
    pthread_mutex_t lock;
    pthread_cond_t ended;
    unsigned running;
    Lane *lanes;
} Lanes;

struct Lane {
    WorkerMessage pump;
    bool pump_posted;
    Worker *worker;
    Node *node;
    Store *store;
    Lanes *all;
    GPtrArray *tasks;
    guint next;
    unsigned in_flight, depth;
};

static void pump_run(WorkerMessage *message);

static void lane_ended(Lane *lane)
{
    Lanes *all = lane->all;
    with_mutex(&all->lock);
    if (--all->running == 0) {
        pthread_cond_signal(&all->ended);
    }
}

static void lane_pump_later(Lane *lane)
{
    if (!lane->pump_posted) {
        lane->pump_posted = true;
        lane->pump.run = pump_run;
        worker_post(lane->worker, &lane->pump);
    }
}

/* The parts that the answer calls zero were not written to the buffer. */
static void fill_holes(Request *request)
{
    for (unsigned i = 0; i < request->extents.count; i++) {
        const Extent *extent = &request->extents.items[i];
        if (extent_is_zero(extent)) {
            memset(request->buffer + (extent->offset - request->offset), 0, extent->length);
        }
    }
}

/* The disk has lost its end; it gets one back that reads as zeroes. */
static void grow_again(Task *task)
{
    task->request.length = task->op.offset + task->op.length;
    task->request.flags = 0;
    node_submit(task->lane->node, &task->request);
}

static void task_done(Request *request)
{
    Task *task = (Task *)request;
    if (request->type == REQUEST_RESIZE && request->result == 0 &&
        request->length == task->op.offset) {
        grow_again(task);
        return;
    }
    task->op.end = request->result == 0 ? record_tick(task->lane->store) : TICK_NEVER;
    if (request->type == REQUEST_READ && request->result == 0 &&
        (request->flags & REQUEST_HOLES_OK)) {
        fill_holes(request);
    }
    request_clear(request);
    task->lane->in_flight--;
    lane_pump_later(task->lane);
}

static void pump_run(WorkerMessage *message)
{
    Lane *lane = (Lane *)message;
    lane->pump_posted = false;
    while (lane->next < lane->tasks->len && lane->in_flight < lane->depth) {
        Task *task = lane->tasks->pdata[lane->next++];
        lane->depth = task->depth ? task->depth : lane->depth;
        lane->in_flight++;
        task->request.worker = lane->worker;
        task->op.start = record_tick(lane->store);
        node_submit(lane->node, &task->request);
    }
    if (lane->next == lane->tasks->len && lane->in_flight == 0 && !lane->pump_posted) {
        lane_ended(lane);
    }
}

static Task *task_new(Lane *lane, const WorkloadRequest *what, uint32_t value)
{
    Task *task = g_new0(Task, 1);
    request_init(&task->request);
    task->lane = lane;
    task->op = (ModelOp){.type = what->type,
                         .offset = what->offset,
                         .length = what->length,
                         .value = value,
                         .fua = what->flags & REQUEST_FUA,
                         .end = TICK_NEVER};
    task->request.type = what->type;
    task->request.flags = what->flags;
    task->request.offset = what->offset;
    task->request.length = what->length;
    task->request.done = task_done;
    if (what->type == REQUEST_RESIZE) {
        task->op.type = REQUEST_ZERO;
        task->op.fua = true;
        task->request.offset = 0;
        task->request.length = what->offset;
    }
    if (what->type == REQUEST_READ || what->type == REQUEST_WRITE) {
        if (posix_memalign((void **)&task->buffer, 4096, what->length) != 0) {
            abort();
        }
        memset(task->buffer, 0x5a, what->length);
        task->request.buffer = task->buffer;
    }
    if (what->type == REQUEST_WRITE) {
        task->request.flags |= value % 2 ? REQUEST_MAY_BLOCK : 0;
        stamp_fill(task->buffer, what->offset, what->length, value);
    }
    return task;
}

static void task_free(gpointer data)
{
    Task *task = data;
    free(task->buffer);
    g_free(task);
}

static void deal_tasks(Lane *lanes, unsigned lane_count, const Fixture *fixture,
                       const RunOptions *options, Run *run)
{
    Workload workload;
    workload_init(&workload, options->seed, fixture->setup->disk_size, fixture->unit);
    workload.resizes = fixture->setup->resizes;
    Random random = random_new(options->seed ^ 0x6c616e65);
    unsigned depth_max = options->depth_max ? options->depth_max : 8;
    for (unsigned i = 0; i < options->requests; i++) {
        Lane *lane = &lanes[random_below(&random, lane_count)];
        WorkloadRequest what = workload_next(&workload);
        Task *task = task_new(lane, &what, run->next_value++);
        if (lane->tasks->len % 16 == 0) {
            task->depth = 1 + random_below(&random, depth_max);
        }
        g_ptr_array_add(lane->tasks, task);
    }
}

static void lanes_go(Lanes *all, unsigned lane_count)
{
    with_mutex(&all->lock);
    all->running = lane_count;
    for (unsigned i = 0; i < lane_count; i++) {
        lane_pump_later(&all->lanes[i]);
    }
    while (all->running > 0) {
        pthread_cond_wait(&all->ended, &all->lock);
    }
}

static void collect(Run *run, Lane *lane, bool promise_nothing)
{
    for (guint i = 0; i < lane->tasks->len; i++) {
        Task *task = lane->tasks->pdata[i];
        task->op.data = task->buffer;
        task->op.fua &= !promise_nothing;
        run->failed += task->request.result != 0;
        if (task->op.type != REQUEST_FLUSH || !promise_nothing) {
            model_add(run->model, &task->op);
        }
    }
}

static void run_requests(Run *run, const Fixture *fixture, Machine *machine,
                         const RunOptions *options, Disk *disk, Findings *findings)
{
    Lane lanes[MACHINE_WORKERS] = {0};
    Lanes all = {
        .lock = PTHREAD_MUTEX_INITIALIZER, .ended = PTHREAD_COND_INITIALIZER, .lanes = lanes};
    unsigned lane_count = options->one_worker ? 1 : MACHINE_WORKERS;
    for (unsigned i = 0; i < lane_count; i++) {
        lanes[i] = (Lane){.worker = machine->workers[i],
                          .node = disk_node(disk),
                          .store = run->store,
                          .all = &all,
                          .depth = 1,
                          .tasks = g_ptr_array_new_with_free_func(task_free)};
    }
    deal_tasks(lanes, lane_count, fixture, options, run);
    lanes_go(&all, lane_count);
    ModelOp close = {.type = REQUEST_FLUSH, .start = record_tick(run->store), .end = TICK_NEVER};
    run->close_result = disk_close(disk);
    run->close_tick = record_tick(run->store);
    if (run->close_result == 0 && !options->promise_nothing) {
        close.end = run->close_tick;
        model_add(run->model, &close);
    }
    for (unsigned i = 0; i < lane_count; i++) {
        collect(run, &lanes[i], options->promise_nothing);
    }
    model_finish(run->model, findings);
    for (unsigned i = 0; i < lane_count; i++) {
        g_ptr_array_free(lanes[i].tasks, TRUE);
    }
}

static ImageFiles files_recorded(const ImageBytes *bytes, const RecordOptions *options)
{
    ImageFiles files = {0};
    for (unsigned i = 0; i < bytes->count; i++) {
        const FileBytes *file = &bytes->files[i];
        Store *store =
            i == 0 ? store_record_new(file->name, file->bytes, file->size, options)
                   : store_record_beside(files.stores[0], file->name, file->bytes, file->size);
        image_files_add(&files, store);
    }
    return files;
}

Run *run_new(const Fixture *fixture, Machine *machine, const RunOptions *options,
             Findings *findings)
{
    Run *run = g_new0(Run, 1);
    RecordOptions record = options->record;
    record.pool = machine->io_pool;
    run->files = files_recorded(options->content ? options->content : &fixture->content, &record);
    run->store = run->files.stores[0];
    run->model =
        model_new(fixture->setup->disk_size, options->content ? options->values : fixture->values);
    run->next_value = options->first_value ? options->first_value : VALUE_FIRST;
    g_autoptr(GError) error = NULL;
    Image *image = fixture_open_whole(fixture, &run->files, &error);
    if (!image) {
        /* What a cut has left smaller may have no room to grow again. */
        bool is_full = record.capacity && fixture->setup->created_size && error->code == ENOSPC;
        if (!record.faults && !is_full) {
            findings->corrupt++;
            findings_say(findings, "the image does not open for the run: %s", error->message);
        }
        model_finish(run->model, findings);
        return run;
    }
    run->opened = true;
    Disk *disk = disk_new(image, machine->pool, false);
    image_unref(image);
    run_requests(run, fixture, machine, options, disk, findings);
    return run;
}

void run_free(Run *run)
{
    model_free(run->model);
    image_files_clear(&run->files);
    g_free(run);
}
