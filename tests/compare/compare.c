/*
 * Compares images served by the program under test with a plain model of bytes.
 *
 * For one configuration (a kind of image) many sequences of random commands run, each on a fresh
 * image, by one connection or by several at once. Half of the commands of a sequence come before a
 * restart of the server, half after it. In the end every image must be clean for `qemu-img check`
 * and equal to its model for `qemu-img compare`.
 *
 * A failure prints the line that runs the same sequence alone.
 */
#include <fcntl.h>
#include <glib.h>
#include <glib/gstdio.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config.h"
#include "sequence.h"
#include "server.h"

#define BATCH           25 /* images that one server serves */
#define SESSIONS        2
#define CONNECTIONS_MAX 16

static char *option_config, *option_server;
static int option_connections = 1, option_sequences = 200, option_ops = 60, option_first;
static gint64 option_seed = 1;
static gboolean option_keep;

static const GOptionEntry options[] = {
    {"config", 'c', 0, G_OPTION_ARG_STRING, &option_config, "kind of image; `list` lists", "NAME"},
    {"connections", 'n', 0, G_OPTION_ARG_INT, &option_connections, "connections (1)", "N"},
    {"sequences", 's', 0, G_OPTION_ARG_INT, &option_sequences, "how many sequences (200)", "N"},
    {"ops", 'o', 0, G_OPTION_ARG_INT, &option_ops, "commands of a sequence (60)", "N"},
    {"first", 'f', 0, G_OPTION_ARG_INT, &option_first, "number of the first sequence (0)", "N"},
    {"seed", 0, 0, G_OPTION_ARG_INT64, &option_seed, "seed of all (1)", "N"},
    {"server", 0, 0, G_OPTION_ARG_STRING, &option_server, "program ($COWNBD)", "PATH"},
    {"keep", 'k', 0, G_OPTION_ARG_NONE, &option_keep, "keep the images", NULL},
    {NULL},
};

/* One image of a batch. */
typedef struct Trial {
    int number; /* of its sequence */
    char *name; /* of its export and file */
    char *image, *model;
    Random random;
} Trial;

static char *directory;

static void set_context(const Trial *trial, const Config *config)
{
    snprintf(
        die_context, sizeof die_context,
        "sequence %d (again: compare -c %s -n %d -o %d --seed %" G_GINT64_FORMAT " -f %d -s 1): ",
        trial->number, config->name, option_connections, option_ops, option_seed, trial->number);
}

static void trial_make(Trial *trial, const Config *config, int number)
{
    g_autofree char *template = g_build_filename(directory, "template", NULL);
    g_autofree char *template_model = g_build_filename(directory, "template.model", NULL);
    trial->number = number;
    trial->name = g_strdup_printf("image-%d", number);
    trial->image = g_build_filename(directory, trial->name, NULL);
    trial->model = g_strconcat(trial->image, ".model", NULL);
    trial->random.state = random_mix((uint64_t)option_seed * 1000003u + (uint64_t)number) +
                          (uint64_t)option_connections + g_str_hash(config->name);
    config_copy_image(config, template, trial->image);
    copy_sparse(template_model, trial->model);
}

static void trial_free(Trial *trial)
{
    if (!option_keep) {
        config_remove_image(trial->image);
        unlink(trial->model);
    }
    g_free(trial->name);
    g_free(trial->image);
    g_free(trial->model);
}

/* Commands at the size that the disk has. */
static void trial_run(Trial *trial, const Config *config, const Server *server, unsigned ops)
{
    struct stat st;
    int fd = open(trial->model, O_RDWR | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) != 0) {
        die("%s: cannot open", trial->model);
    }
    uint64_t size = (uint64_t)st.st_size;
    uint8_t *model = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (model == MAP_FAILED) {
        die("%s: cannot map", trial->model);
    }
    close(fd);
    Clients clients = {0};
    clients_connect(&clients, server->socket, trial->name, (unsigned)option_connections,
                    &trial->random);
    g_autofree Sequence *sequence = g_new0(Sequence, 1);
    sequence->config = config;
    sequence->clients = &clients;
    sequence->size = size;
    sequence->model = model;
    sequence->random = trial->random;
    sequence->ops = ops;
    sequence_run(sequence);
    trial->random = sequence->random;
    clients_disconnect(&clients);
    munmap(model, size);
}

/* Another size of the disk, which the server gives it, and of its model. */
static void trial_resize(Trial *trial, const Config *config)
{
    struct stat st;
    if (stat(trial->model, &st) != 0) {
        die("%s: cannot stat", trial->model);
    }
    uint64_t least = config->resizing == GROWS ? (uint64_t)st.st_size : 2 * config->cluster + 512;
    uint64_t most = least + (config->resizing == GROWS ? config->size / 3 : 2 * config->size);
    uint64_t size = random_between(&trial->random, least, most) / 512 * 512;
    g_autofree char *control = g_build_filename(directory, "control", NULL);
    g_autofree char *text = g_strdup_printf("%" G_GUINT64_FORMAT, size);
    const char *const resize[] = {option_server, "resize", "-q",         "--shrink", "--control",
                                  control,       "--json", trial->image, text,       NULL};
    if (run_status(resize) != 0 || truncate(trial->model, (off_t)size) != 0) {
        die("cannot make the disk %s bytes", text);
    }
}

/* One session of the server. */
static void trial_session(Trial *trial, const Config *config, const Server *server, unsigned ops)
{
    if (config->resizing == KEEPS_SIZE) {
        trial_run(trial, config, server, ops);
        return;
    }
    for (unsigned part = 0; part < 2; part++) {
        trial_run(trial, config, server, ops / 2);
        trial_resize(trial, config);
    }
}

/* The snapshot that FILL_SNAPSHOT made still holds what it did. */
static void check_snapshot(const Trial *trial)
{
    g_autofree char *template_model = g_build_filename(directory, "template.model", NULL);
    g_autofree char *raw = g_strconcat(trial->image, ".snapshot", NULL);
    const char *const convert[] = {"qemu-img",   "convert", "-l", "snapshot.name=before",
                                   "-f",         "qcow2",   "-O", "raw",
                                   trial->image, raw,       NULL};
    const char *const compare[] = {"cmp", raw, template_model, NULL};
    if (run_status(convert) != 0 || run_status(compare) != 0) {
        die("the snapshot has changed");
    }
    unlink(raw);
}

/* What qemu-img says of an encrypted image: check alone, or compared with the model. */
static int ask_of_encrypted(const Trial *trial, const Config *config, const char *verb)
{
    g_autofree char *secret = g_strdup_printf("secret,id=s,file=%s/secret", directory);
    g_autofree char *image = config_qemu_options(config, trial->image);
    g_autofree char *model = g_strdup_printf("driver=raw,file.filename=%s", trial->model);
    const char *other = strcmp(verb, "compare") == 0 ? model : NULL;
    const char *const words[] = {"qemu-img",     verb,  "-q",  "--object", secret,
                                 "--image-opts", image, other, NULL};
    return run_status(words);
}

static void trial_check(const Trial *trial, const Config *config)
{
    const char *format = strcmp(config->format, "vhd") == 0 ? "vpc" : config->format;
    const char *const check[] = {"qemu-img", "check", "-q", "-f", format, trial->image, NULL};
    const char *const compare[] = {"qemu-img", "compare", "-q",         "-f",         format,
                                   "-F",       "raw",     trial->image, trial->model, NULL};
    const char *const own_check[] = {option_server,  "check",      "-f",
                                     config->format, trial->image, NULL};
    bool has_check = strcmp(config->format, "raw") != 0 && !config_is_luks(config);
    int status;
    if (config_qemu_checks(config) &&
        (status = config_is_encrypted(config) ? ask_of_encrypted(trial, config, "check")
                                              : run_status(check)) != 0) {
        die("qemu-img check ends with %d", status);
    }
    if (config_qemu_reads(config) &&
        (status = config_is_encrypted(config) ? ask_of_encrypted(trial, config, "compare")
                                              : run_status(compare)) != 0) {
        die("qemu-img compare ends with %d", status);
    }
    if (has_check && trial->number % 10 == 0 && !g_str_has_suffix(option_server, "qemu-nbd") &&
        (status = run_status(own_check)) != 0 && (config->resizing == KEEPS_SIZE || status != 3)) {
        die("cownbd check ends with %d", status);
    }
    if (config->fill == FILL_SNAPSHOT) {
        check_snapshot(trial);
    }
}

static void run_batch(const Config *config, int first, unsigned count)
{
    Trial trials[BATCH] = {0};
    char *images[BATCH];
    for (unsigned i = 0; i < count; i++) {
        trial_make(&trials[i], config, first + (int)i);
        images[i] = trials[i].image;
    }
    for (unsigned session = 0; session < SESSIONS; session++) {
        Server server;
        set_context(&trials[0], config);
        server_start(&server, option_server, directory, config->format, images, count);
        for (unsigned i = 0; i < count; i++) {
            set_context(&trials[i], config);
            trial_session(&trials[i], config, &server, (unsigned)option_ops / SESSIONS);
        }
        server_stop(&server);
    }
    for (unsigned i = 0; i < count; i++) {
        set_context(&trials[i], config);
        trial_check(&trials[i], config);
        trial_free(&trials[i]);
    }
}

static void parse_options(int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GOptionContext) context = g_option_context_new(NULL);
    g_option_context_add_main_entries(context, options, NULL);
    if (!g_option_context_parse(context, &argc, &argv, &error)) {
        die("%s", error->message);
    }
    if (option_server == NULL) {
        option_server = g_strdup(g_getenv("COWNBD"));
    }
    if (option_config == NULL || option_server == NULL || option_connections < 1 ||
        option_connections > CONNECTIONS_MAX) {
        die("--config, --server (or $COWNBD) and 1 to %d --connections are needed",
            CONNECTIONS_MAX);
    }
    const char *scale = g_getenv("COWNBD_TEST_SCALE");
    if (scale != NULL && atoi(scale) > 0 && option_sequences > 1) {
        option_sequences = MAX(1, option_sequences * atoi(scale) / 100);
    }
}

int main(int argc, char **argv)
{
    parse_options(argc, argv);
    const Config *config = config_find(option_config);
    g_autoptr(GError) error = NULL;
    directory = g_dir_make_tmp("cownbd-compare-XXXXXX", &error);
    if (directory == NULL) {
        die("%s", error->message);
    }
    config_make_template(config, directory);
    int batch = g_str_has_suffix(option_server, "qemu-nbd") ? 1 : BATCH;
    for (int done = 0; done < option_sequences; done += batch) {
        run_batch(config, option_first + done, (unsigned)MIN(batch, option_sequences - done));
    }
    const char *const clean[] = {"rm", "-rf", directory, NULL};
    if (!option_keep) {
        run_status(clean);
    }
    printf("ok %s: %d sequences of %d commands by %d connections\n", config->name, option_sequences,
           option_ops, option_connections);
    return 0;
}
