/* src/store/store-lock.c, against itself and against qemu's tools, both ways. */
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <glib/gstdio.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/errors.h"
#include "store/store-file.h"
#include "tests/unit/suite.h"

static char *folder, *path;

/* The program's exit status; *errors (may be NULL): what it wrote to stderr. */
static int run(char **errors, const char *const *command)
{
    int status = -1;
    g_autofree char *text = NULL;
    g_autoptr(GError) error = NULL;
    bool started =
        g_spawn_sync(NULL, (char **)command, NULL, G_SPAWN_SEARCH_PATH | G_SPAWN_STDOUT_TO_DEV_NULL,
                     NULL, NULL, NULL, &text, &status, &error);
    ck_assert_msg(started, "%s", error != NULL ? error->message : "");
    ck_assert(WIFEXITED(status));
    if (errors != NULL) {
        *errors = g_steal_pointer(&text);
    }
    return WEXITSTATUS(status);
}

static void setup(void)
{
    folder = g_dir_make_tmp("cownbd-test-XXXXXX", NULL);
    ck_assert_ptr_nonnull(folder);
    path = g_build_filename(folder, "image.qcow2", NULL);
    const char *const create[] = {"qemu-img", "create", "-q", "-f", "qcow2", path, "1M", NULL};
    ck_assert_int_eq(run(NULL, create), 0);
}

static void teardown(void)
{
    g_unlink(path);
    g_rmdir(folder);
    g_free(path);
    g_free(folder);
}

static Store *must_open(StoreOpenFlags flags)
{
    g_autoptr(GError) error = NULL;
    Store *store = store_file_open(path, flags, &error);
    ck_assert_msg(store != NULL, "%s", error != NULL ? error->message : "");
    return store;
}

static void must_be_busy(StoreOpenFlags flags)
{
    g_autoptr(GError) error = NULL;
    ck_assert_ptr_null(store_file_open(path, flags, &error));
    ck_assert_msg(g_error_matches(error, COWNBD_ERROR, EBUSY), "%s", error->message);
    ck_assert_ptr_nonnull(strstr(error->message, "is in use by another process"));
}

START_TEST(store_lock_lets_readers_share)
{
    Store *first = must_open(STORE_OPEN_READ_ONLY);
    Store *second = must_open(STORE_OPEN_READ_ONLY);
    must_be_busy(STORE_OPEN_WRITE);
    store_unref(first);
    must_be_busy(STORE_OPEN_WRITE);
    store_unref(second);
    store_unref(must_open(STORE_OPEN_WRITE));
}
END_TEST

START_TEST(store_lock_keeps_a_writer_alone_until_it_closes)
{
    Store *writer = must_open(STORE_OPEN_WRITE);
    must_be_busy(STORE_OPEN_WRITE);
    must_be_busy(STORE_OPEN_READ_ONLY);
    g_autoptr(Store) looker = must_open(STORE_OPEN_READ_ONLY | STORE_OPEN_NO_LOCK);
    ck_assert_ptr_null(store_file_create(path, true, NULL));
    ck_assert_uint_gt(store_size(looker), 0); /* the refused create has not emptied it */
    store_unref(writer);
    store_unref(must_open(STORE_OPEN_WRITE));
}
END_TEST

#define USED     100 /* the first byte of what an open image is used for, by permission */
#define UNSHARED 200 /* and of what it does not let others do */

enum { READS = 1, WRITES = 2, REWRITES = 4, RESIZES = 8 };

/* Which of the four bytes from base on others hold a lock of. */
static unsigned held(int fd, off_t base)
{
    unsigned bits = 0;
    for (unsigned bit = 0; bit < 4; bit++) {
        struct flock lock = {
            .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = base + bit, .l_len = 1};
        ck_assert_int_eq(fcntl(fd, F_OFD_GETLK, &lock), 0);
        bits |= lock.l_type == F_UNLCK ? 0 : 1u << bit;
    }
    return bits;
}

START_TEST(store_lock_holds_the_bytes_that_qemu_holds)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    Store *store = must_open(STORE_OPEN_WRITE);
    ck_assert_uint_eq(held(fd, USED), READS | WRITES | RESIZES);
    ck_assert_uint_eq(held(fd, UNSHARED), WRITES | RESIZES);
    store_unref(store);
    store = must_open(STORE_OPEN_READ_ONLY);
    ck_assert_uint_eq(held(fd, USED), READS);
    ck_assert_uint_eq(held(fd, UNSHARED), WRITES | RESIZES);
    store_unref(store);
    ck_assert_uint_eq(held(fd, USED) | held(fd, UNSHARED), 0);
    close(fd);
}
END_TEST

/* Another process that holds one byte, whichever, is refused or refuses as two qemus would. */
START_TEST(store_lock_heeds_each_byte)
{
    static const struct {
        off_t base;
        unsigned writer, reader; /* the permissions whose byte keeps them out */
    } keep_out[] = {{USED, WRITES | RESIZES, WRITES | RESIZES},
                    {UNSHARED, READS | WRITES | RESIZES, READS}};
    for (unsigned i = 0; i < G_N_ELEMENTS(keep_out); i++) {
        for (unsigned bit = 0; bit < 4; bit++) {
            int fd = open(path, O_RDWR | O_CLOEXEC);
            struct flock lock = {.l_type = F_RDLCK,
                                 .l_whence = SEEK_SET,
                                 .l_start = keep_out[i].base + bit,
                                 .l_len = 1};
            ck_assert_int_eq(fcntl(fd, F_OFD_SETLK, &lock), 0);
            const struct {
                StoreOpenFlags flags;
                unsigned refused;
            } tries[] = {{STORE_OPEN_WRITE, keep_out[i].writer},
                         {STORE_OPEN_READ_ONLY, keep_out[i].reader}};
            for (unsigned t = 0; t < G_N_ELEMENTS(tries); t++) {
                if (tries[t].refused & 1u << bit) {
                    must_be_busy(tries[t].flags);
                } else {
                    store_unref(must_open(tries[t].flags));
                }
            }
            close(fd);
        }
    }
}
END_TEST

static const char *const *info(void)
{
    static const char *command[] = {"qemu-img", "info", NULL, NULL};
    command[2] = path;
    return command;
}

static const char *const *qemu_write(void)
{
    static const char *command[] = {"qemu-io", "-f", "qcow2", "-c", "write 0 64k", NULL, NULL};
    command[5] = path;
    return command;
}

START_TEST(store_lock_refuses_qemu_where_two_qemus_would)
{
    g_autofree char *errors = NULL;
    Store *store = must_open(STORE_OPEN_WRITE);
    ck_assert_int_ne(run(&errors, info()), 0);
    ck_assert_ptr_nonnull(strstr(errors, "lock"));
    ck_assert_int_ne(run(NULL, qemu_write()), 0);
    store_unref(store);

    store = must_open(STORE_OPEN_READ_ONLY);
    ck_assert_int_eq(run(NULL, info()), 0);
    ck_assert_int_ne(run(NULL, qemu_write()), 0);
    store_unref(store);
    ck_assert_int_eq(run(NULL, qemu_write()), 0);
}
END_TEST

/* A qemu-io that has the image open, until its input is closed. */
typedef struct Holder {
    GPid pid;
    int input, output;
} Holder;

static Holder hold(const char *option)
{
    const char *command[] = {"qemu-io", "-f", "qcow2", option, path, NULL};
    Holder holder;
    if (option == NULL) {
        command[3] = path;
        command[4] = NULL;
    }
    ck_assert(g_spawn_async_with_pipes(NULL, (char **)command, NULL,
                                       G_SPAWN_SEARCH_PATH | G_SPAWN_DO_NOT_REAP_CHILD, NULL, NULL,
                                       &holder.pid, &holder.input, &holder.output, NULL, NULL));
    /* The answer to a command: it has opened the image. */
    char answer[4096];
    ck_assert_int_eq(write(holder.input, "length\n", 7), 7);
    ck_assert_int_gt(read(holder.output, answer, sizeof answer), 0);
    return holder;
}

static void let_go(Holder *holder)
{
    char rest[256];
    ck_assert_int_eq(write(holder->input, "quit\n", 5), 5);
    close(holder->input);
    while (read(holder->output, rest, sizeof rest) > 0) {
    }
    close(holder->output);
    waitpid(holder->pid, NULL, 0);
}

START_TEST(store_lock_is_refused_by_a_writing_qemu)
{
    Holder writer = hold(NULL);
    must_be_busy(STORE_OPEN_WRITE);
    must_be_busy(STORE_OPEN_READ_ONLY);
    store_unref(must_open(STORE_OPEN_READ_ONLY | STORE_OPEN_NO_LOCK));
    let_go(&writer);
    store_unref(must_open(STORE_OPEN_WRITE));
}
END_TEST

START_TEST(store_lock_shares_with_a_reading_qemu)
{
    Holder reader = hold("-r");
    store_unref(must_open(STORE_OPEN_READ_ONLY));
    must_be_busy(STORE_OPEN_WRITE);
    let_go(&reader);
    store_unref(must_open(STORE_OPEN_WRITE));
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("store_lock");
    tcase_set_timeout(tcase, 120);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, store_lock_lets_readers_share);
    tcase_add_test(tcase, store_lock_keeps_a_writer_alone_until_it_closes);
    tcase_add_test(tcase, store_lock_holds_the_bytes_that_qemu_holds);
    tcase_add_test(tcase, store_lock_heeds_each_byte);
    tcase_add_test(tcase, store_lock_refuses_qemu_where_two_qemus_would);
    tcase_add_test(tcase, store_lock_is_refused_by_a_writing_qemu);
    tcase_add_test(tcase, store_lock_shares_with_a_reading_qemu);
    return suite_run("store_lock", tcase);
}
