/*
 * /etc/nbdtab, from which `nbd-client nbdN` and systemd's nbd@nbdN.service connect a device. [main]
 */
#ifndef CLI_NBDTAB_H
#define CLI_NBDTAB_H

#include <glib.h>
#include <stdbool.h>

/* Whether a line could be written for the image: a server (its control socket; NULL: there is none)
 * has a listener that will be there after a boot, and names without blanks. */
bool nbdtab_check(const char *server, const char *image, GError **error);

/* Adds the line for the nbd device of the image, in place of an older one of that device. */
bool nbdtab_add(const char *server, const char *image, GError **error);

#endif
