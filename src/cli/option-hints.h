/*
 * What to do instead, where somebody uses an option or a command of qemu-img that is not there. [main]
 */
#ifndef CLI_OPTION_HINTS_H
#define CLI_OPTION_HINTS_H

#include <glib.h>

/* An error of GOption about an option that it does not know gets the hint. */
void option_hint_add(GError **error);

/* What does the work of that command; NULL: no hint. */
const char *command_hint(const char *name);

#endif
