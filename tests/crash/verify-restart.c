/*
 * A server starts on what a power cut left, writes a little, and ends in order. Nothing but what it
 * wrote may change, and the image must be sound afterwards.
 */
#include "verify.h"

#include <pthread.h>
#include <string.h>

#include "base/cleanup.h"
#include "engine/disk.h"
#include "workload.h"

#define REQUESTS      12
#define VALUE_RESTART 0x40000000u

typedef struct Call {
    Request request;
    WorkerMessage submit;
    Node *node;
    pthread_mutex_t lock;
    pthread_cond_t ended;
    bool done;
} Call;

static void call_done(Request *request)
{
    Call *call = (Call *)request;
    with_mutex(&call->lock);
    call->done = true;
    pthread_cond_signal(&call->ended);
}

static void call_submit(WorkerMessage *message)
{
    Call *call = (Call *)((char *)message - offsetof(Call, submit));
    node_submit(call->node, &call->request);
}

/* One request, start to end. */
static int call_run(Disk *disk, Worker *worker, const WorkloadRequest *what, uint8_t *buffer)
{
    Call call = {.node = disk_node(disk),
                 .lock = PTHREAD_MUTEX_INITIALIZER,
                 .ended = PTHREAD_COND_INITIALIZER,
                 .submit.run = call_submit};
    request_init(&call.request);
    call.request.type = what->type;
    call.request.flags = what->flags;
    call.request.offset = what->offset;
    call.request.length = what->length;
    call.request.buffer = buffer;
    call.request.worker = worker;
    call.request.done = call_done;
    worker_post(worker, &call.submit);
    pthread_mutex_lock(&call.lock);
    while (!call.done) {
        pthread_cond_wait(&call.ended, &call.lock);
    }
    pthread_mutex_unlock(&call.lock);
    request_clear(&call.request);
    return call.request.result;
}

static int write_and_expect(Verifier *verifier, Disk *disk, const WorkloadRequest *what,
                            unsigned number, uint8_t *expected)
{
    uint32_t value = what->type == REQUEST_WRITE ? VALUE_RESTART + number : 0;
    g_autofree uint8_t *buffer = what->type == REQUEST_WRITE ? g_malloc(what->length) : NULL;
    if (buffer) {
        stamp_fill(buffer, what->offset, what->length, value);
    }
    int r = call_run(disk, verifier->machine->workers[number % MACHINE_WORKERS], what, buffer);
    stamp_fill(expected + what->offset, what->offset, what->length, value);
    return r;
}

static int use_disk(Verifier *verifier, Disk *disk, uint64_t seed, uint8_t *expected)
{
    Workload workload;
    workload_init(&workload, seed, verifier->fixture->setup->disk_size, verifier->fixture->unit);
    int error = 0;
    for (unsigned done = 0; done < REQUESTS && error == 0;) {
        WorkloadRequest what = workload_next(&workload);
        if (what.type == REQUEST_WRITE || what.type == REQUEST_ZERO) {
            error = write_and_expect(verifier, disk, &what, done++, expected);
        }
    }
    WorkloadRequest flush = {.type = REQUEST_FLUSH};
    return error ? error : call_run(disk, verifier->machine->workers[0], &flush, NULL);
}

static bool fails(Findings *findings, const char *what, const char *detail)
{
    findings->corrupt++;
    findings_say(findings, "after a restart: %s: %s", what, detail);
    return false;
}

static bool holds_expected(const Verifier *verifier, const ImageFiles *files,
                           const uint8_t *expected, Findings *findings)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Image) image = fixture_open(verifier->fixture, files, false, &error);
    if (!image) {
        return fails(findings, "does not open", error->message);
    }
    g_autofree uint8_t *disk = g_malloc(image->size);
    int r = chain_read(image, disk, image->size, 0);
    if (r != 0) {
        return fails(findings, "cannot be read", g_strerror(-r));
    }
    for (uint64_t cell = 0; cell < image->size / CELL; cell++) {
        if (memcmp(disk + cell * CELL, expected + cell * CELL, CELL) != 0) {
            findings->lost++;
            findings_say(findings, "after a restart: the bytes at %#lx changed", cell * CELL);
            return false;
        }
    }
    return true;
}

static bool is_sound(const Verifier *verifier, const ImageFiles *files, Findings *findings)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Image) image = fixture_open(verifier->fixture, files, false, &error);
    if (!image) {
        return fails(findings, "does not open", error->message);
    }
    CheckResult result = {0};
    if (image->format->check && !image->format->check(image, CHECK_REPORT_ONLY, &result, &error)) {
        return fails(findings, "cannot be checked", error->message);
    }
    return (result.corruptions == 0 && result.check_errors == 0) ||
           fails(findings, "check", "finds corruption");
}

bool verify_restart(Verifier *verifier, const ImageFiles *files, uint64_t seed, Findings *findings)
{
    g_autoptr(GError) error = NULL;
    Image *image = fixture_open_whole(verifier->fixture, files, &error);
    if (!image) {
        return fails(findings, "does not open for writing", error->message);
    }
    verifier->restarts++;
    g_autofree uint8_t *expected = g_memdup2(verifier->disk, image->size);
    Disk *disk = disk_new(image, verifier->machine->pool, false);
    image_unref(image);
    int r = use_disk(verifier, disk, seed, expected);
    int closed = disk_close(disk);
    if (r != 0 || closed != 0) {
        return fails(findings, "a request fails", g_strerror(r ? -r : -closed));
    }
    return holds_expected(verifier, files, expected, findings) &&
           is_sound(verifier, files, findings);
}
