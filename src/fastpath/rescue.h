/*
 * Rescue: the way out when a device of ours hangs and no server can take it over. Gives up what
 * waits in it; never hangs itself.
 */
#ifndef FASTPATH_RESCUE_H
#define FASTPATH_RESCUE_H

#include <glib.h>
#include <stdbool.h>

/* Called for each step that was done (done) or that could not be done, with what it was about. */
typedef void RescueSay(void *context, bool done, const char *text);

/* Takes down all devices of an image: device is one of them, or the image itself. False with *error
 * when there is nothing of ours (ENODEV, EPERM) or when a step failed (EBUSY). One that is open still
 * goes when it is closed: that is said, and is no failure. [main], in a
 * process without other threads. */
bool rescue_device(const char *device, RescueSay *say, void *context, GError **error);

#endif
