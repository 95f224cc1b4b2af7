/*
 * What is served, as messages of a handover: it may not be what the command line and the
 * configuration say, for exports come and go.
 */
#ifndef CLI_HANDOVER_EXPORT_H
#define CLI_HANDOVER_EXPORT_H

#include "cli/handover-channel.h"
#include "cli/serve-impl.h"

/* Sends "export" for each image, those that are leaving first: their names may be others' now. [main] */
bool handover_send_exports(int channel, const Serve *serve, GError **error);

/* Opens the images that such messages (ChannelMessage *) tell and makes them exports; *numbers has each by
 * the number that it had: uint64_t * -> Export *. [main] */
bool handover_open_exports(Serve *serve, const GPtrArray *messages, GHashTable *numbers,
                           GError **error);

#endif
