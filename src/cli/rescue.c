/*
 * cownbd rescue: gives a device up that hangs.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/attach-server.h"
#include "cli/cli.h"
#include "cli/options.h"
#include "fastpath/rescue.h"

static const CliUsage usage = {
    .command = "rescue",
    .arguments = "DEVICE|IMAGE",
    .summary = "Gives up a block device that cownbd attach made, when neither its server nor a new "
               "one can serve it:\nwhat waits in it fails with EIO, and what was not flushed is "
               "lost. Try cownbd detach first. Never hangs.",
    .example = "  cownbd rescue /dev/mapper/disk.qcow2\n"
               "  cownbd check disk.qcow2",
};

static void print_step(void *context, bool done, const char *text)
{
    printf("%s %s\n", done ? "done:  " : "failed:", text);
    fflush(stdout);
}

int cli_rescue(int argc, char **argv)
{
    g_auto(CliCommon) common = {0};
    g_autoptr(GError) error = NULL;
    if (!cli_parse(&usage, NULL, &common, &argc, &argv, &error)) {
        return cli_fail(error);
    }
    if (argc != 2) {
        return cli_fail_usage(&usage, argc < 2 ? "no device given" : "one device at a time");
    }
    g_autofree char *image = attach_server_image(argv[1]);
    const char *what = g_str_has_prefix(argv[1], "/dev/") ? argv[1] : image;
    return rescue_device(what, print_step, NULL, &error) ? 0 : cli_fail(error);
}
