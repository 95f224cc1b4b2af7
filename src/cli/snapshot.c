/*
 * cownbd snapshot: internal snapshots of an image. Where a server has the image, that one makes and deletes them.
 *
 *     cownbd snapshot VERB IMAGE [NAME]       list, create, apply, delete
 *     cownbd snapshot -l|-c|-a|-d ...         the same, as qemu-img snapshot says it
 */
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/errors.h"
#include "cli/attach-server.h"
#include "cli/cli.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/remote.h"
#include "cli/snapshot-list.h"
#include "control/control.h"
#include "formats/format.h"

typedef bool (*Change)(Image *image, const char *name, GError **error);

typedef struct Verb {
    const char *name;
    size_t change; /* where in Format its function is; 0: it only looks */
} Verb;

static const Verb verbs[] = {
    {"list", 0},
    {"create", offsetof(Format, snapshot_create)},
    {"apply", offsetof(Format, snapshot_apply)},
    {"delete", offsetof(Format, snapshot_delete)},
};

static const CliUsage usage = {
    .command = "snapshot",
    .arguments = "list|create|apply|delete IMAGE [NAME]",
    .summary =
        "Internal snapshots: older states of a disk, kept inside its image (qcow2).\n"
        "apply sets the disk back to a snapshot, its size too; the snapshot stays.\n"
        "A snapshot is called by its name or its ID. qemu-img's -l, -c, -a and -d do as well.\n"
        "Where a server has the image, that one makes and deletes them, between two requests.",
    .example = "  cownbd snapshot create disk.qcow2 before-upgrade\n"
               "  cownbd snapshot list disk.qcow2\n"
               "  cownbd serve --snapshot before-upgrade disk.qcow2",
    .flags = CLI_FLAG_FORMAT | CLI_FLAG_JSON | CLI_FLAG_SHARE,
};

/* What the command line says. */
typedef struct Order {
    const Verb *verb;
    const char *image, *name;
} Order;

static const Verb *find_verb(const char *name)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(verbs); i++) {
        if (strcmp(verbs[i].name, name) == 0) {
            return &verbs[i];
        }
    }
    return NULL;
}

/* VERB IMAGE [NAME] */
static bool parse_words(Order *order, int argc, char **argv, GError **error)
{
    order->verb = argc > 1 ? find_verb(argv[1]) : NULL;
    if (order->verb == NULL) {
        return error_set(error, EINVAL, "%s%s%s: must be list, create, apply or delete",
                         argc > 1 ? "'" : "no verb given", argc > 1 ? argv[1] : "",
                         argc > 1 ? "'" : "");
    }
    int wanted = order->verb->change ? 4 : 3;
    if (argc != wanted) {
        return error_set(error, EINVAL, "%s takes %s", order->verb->name,
                         wanted == 4 ? "an image and a name" : "one image");
    }
    order->image = argv[2];
    order->name = argv[3]; /* argv ends with NULL */
    return true;
}

/* -l IMAGE, or -c, -a, -d NAME IMAGE */
static bool parse_flags(Order *order, gboolean list, char *const names[3], int argc, char **argv,
                        GError **error)
{
    unsigned given = list;
    order->verb = &verbs[0];
    for (unsigned i = 0; i < 3; i++) {
        if (names[i] != NULL) {
            given++;
            order->verb = &verbs[i + 1];
            order->name = names[i];
        }
    }
    if (given != 1 || argc != 2) {
        return error_set(error, EINVAL, "give one of -l, -c, -a and -d, and one image");
    }
    order->image = argv[1];
    return true;
}

static int print_list(const Image *image, bool json)
{
    JsonArray *snapshots = snapshot_list(image, UINT_MAX, NULL);
    if (json) {
        snapshots = snapshots ? snapshots : json_array_new();
        output_json(json_node_init_array(json_node_alloc(), snapshots));
    } else if (snapshots) {
        snapshot_list_print(snapshots);
    }
    g_clear_pointer(&snapshots, json_array_unref);
    return output_finish(0);
}

static int change(Image *image, const Order *order, bool json)
{
    g_autoptr(GError) error = NULL;
    Change function = G_STRUCT_MEMBER(Change, image->format, order->verb->change);
    if (!function) {
        error_set(&error, ENOTSUP, "%s: format %s has no snapshots: only qcow2 has", image->path,
                  image->format->name);
        return cli_fail(error);
    }
    if (!function(image, order->name, &error)) {
        return cli_fail(error);
    }
    int r = image_finish(image);
    if (r < 0) {
        error_set_errno(&error, -r, "%s: cannot be closed in order", image->path);
        return cli_fail(error);
    }
    return json ? print_list(image, true) : 0;
}

/* The server that has the image does it. */
static int change_there(const Order *order, const char *server, const char *image)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) arguments = json_object_new();
    output_add_string(arguments, "image", image);
    output_add_string(arguments, "action", order->verb->name);
    output_add_string(arguments, "name", order->name);
    g_autoptr(JsonObject) answer = control_call(server, "snapshot", arguments, &error);
    return answer != NULL ? 0 : cli_fail(error);
}

static int run(const Order *order, const CliCommon *common, const char *control)
{
    g_autoptr(GError) error = NULL;
    bool write = order->verb->change != 0;
    g_autofree char *real = attach_server_image(order->image);
    G_GNUC_UNUSED autofd int lock = write ? attach_server_lock(real) : -1;
    g_autofree char *server = write ? attach_server_find(control, real, &error) : NULL;
    if (server) {
        return change_there(order, server, real);
    }
    if (write && control && !error) {
        error_set(&error, ENOENT, "%s: the server at %s does not serve it", real, control);
    }
    if (error) {
        return cli_fail(error);
    }
    /* Without its backing: apply and create move no data, and a backing may be in use. */
    ImageOpen how = {.write = write, .no_backing = true};
    if ((write && !attach_server_not_attached(order->image, &error)) ||
        !cli_image_open(common, &how, &error)) {
        return cli_fail(error);
    }
    g_autoptr(Image) image = image_open(order->image, &how, &error);
    if (!image) {
        return cli_fail(error);
    }
    return write ? change(image, order, common->json) : print_list(image, common->json);
}

int cli_snapshot(int argc, char **argv)
{
    gboolean list = FALSE, quiet;
    g_autofree char *control = NULL;
    char *names[3] = {NULL}; /* of -c, -a, -d */
    const GOptionEntry own[] = {
        {"list", 'l', 0, G_OPTION_ARG_NONE, &list, "List the snapshots", NULL},
        {"create", 'c', 0, G_OPTION_ARG_FILENAME, &names[0], "Make a snapshot", "NAME"},
        {"apply", 'a', 0, G_OPTION_ARG_FILENAME, &names[1], "Set the disk back to a snapshot",
         "NAME"},
        {"delete", 'd', 0, G_OPTION_ARG_FILENAME, &names[2], "Delete a snapshot", "NAME"},
        {"quiet", 'q', G_OPTION_FLAG_HIDDEN, G_OPTION_ARG_NONE, &quiet, NULL,
         NULL}, /* of qemu-img: changes say nothing anyway */
        REMOTE_ENTRY(&control),
        {NULL},
    };
    g_auto(CliCommon) common = {0};
    g_autoptr(GError) error = NULL;
    Order order = {0};
    bool ok = cli_parse(&usage, own, &common, &argc, &argv, &error);
    if (ok && (list || names[0] || names[1] || names[2])) {
        ok = parse_flags(&order, list, names, argc, argv, &error);
    } else if (ok) {
        ok = parse_words(&order, argc, argv, &error);
    }
    if (ok && order.verb->change && common.force_share) {
        ok = error_set(&error, EINVAL, "--force-share: an image in use must not change");
    }
    int status = ok ? run(&order, &common, control) : cli_fail_usage(&usage, "%s", error->message);
    for (unsigned i = 0; i < G_N_ELEMENTS(names); i++) {
        g_free(names[i]);
    }
    return status;
}
