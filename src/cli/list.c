/*
 * cownbd list: what a running server serves.
 */
#include <stdio.h>

#include "cli/cli.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/remote.h"

static const CliUsage usage = {
    .command = "list",
    .arguments = "[DEVICE|IMAGE]",
    .summary =
        "Shows what a running server serves, and where it listens: the one at the default\ncontrol "
        "socket, or the one that serves the image (cownbd attach).",
    .example = "  cownbd list\n"
               "  cownbd list --json --control /run/cownbd/vm1.sock",
    .flags = CLI_FLAG_JSON,
};

static const char *text_of(JsonObject *object, const char *member)
{
    return json_object_get_string_member_with_default(object, member, "-");
}

static void print_export(JsonObject *export)
{
    g_autofree char *size = output_size(json_object_get_int_member_with_default(export, "size", 0));
    bool read_only = json_object_get_boolean_member_with_default(export, "read-only", FALSE);
    bool leaving = json_object_get_boolean_member_with_default(export, "leaving", FALSE);
    const char *mode = text_of(export, "mode");
    printf("%-20s %-6s %10s  %-9s %7" G_GINT64_FORMAT "  %-16s %s\n", text_of(export, "name"),
           text_of(export, "format"), size,
           leaving     ? "leaving"
           : read_only ? "read-only"
                       : mode,
           json_object_get_int_member_with_default(export, "connections", 0),
           text_of(export, "device"), text_of(export, "image"));
}

static void print_clients(JsonArray *clients)
{
    unsigned count = clients != NULL ? json_array_get_length(clients) : 0;
    if (count > 0) {
        printf("\n%6s  %-28s %9s  %s\n", "CLIENT", "PEER", "IN FLIGHT", "EXPORT");
    }
    for (unsigned i = 0; i < count; i++) {
        JsonObject *client = json_array_get_object_element(clients, i);
        printf("%6" G_GINT64_FORMAT "  %-28s %9" G_GINT64_FORMAT "  %s\n",
               json_object_get_int_member_with_default(client, "client", 0),
               text_of(client, "peer"),
               json_object_get_int_member_with_default(client, "in-flight", 0),
               text_of(client, "export"));
    }
}

static int print_human(JsonObject *answer)
{
    JsonArray *listeners = json_object_get_array_member(answer, "listen");
    for (unsigned i = 0; listeners != NULL && i < json_array_get_length(listeners); i++) {
        printf("listening on %s\n", json_array_get_string_element(listeners, i));
    }
    printf("%-20s %-6s %10s  %-9s %7s  %-16s %s\n", "NAME", "FORMAT", "SIZE", "MODE", "CLIENTS",
           "DEVICE", "IMAGE");
    JsonArray *exports = json_object_get_array_member(answer, "exports");
    for (unsigned i = 0; exports != NULL && i < json_array_get_length(exports); i++) {
        print_export(json_array_get_object_element(exports, i));
    }
    print_clients(json_object_has_member(answer, "clients")
                      ? json_object_get_array_member(answer, "clients")
                      : NULL);
    return output_finish(0);
}

int cli_list(int argc, char **argv)
{
    return remote_show(&usage, argc, argv, "list", print_human);
}
