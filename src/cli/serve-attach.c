/*
 * Kernel devices of a server: nothing is attached.
 */
#include "cli/serve-impl.h"

const GOptionEntry *serve_attach_entries(void)
{
    static const GOptionEntry entries[] = {{NULL}};
    return entries;
}

bool serve_attach_check(Serve *serve, GError **error)
{
    return true;
}

bool serve_attach_start(Serve *serve, GError **error)
{
    return true;
}

void serve_attach_ready(Serve *serve)
{
}

void serve_attach_stop(Serve *serve)
{
}
