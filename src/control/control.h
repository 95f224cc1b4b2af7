/*
 * The control socket: one JSON object a line each way, over a unix socket. docs/control.md is the
 * protocol.
 *
 *      {"verb": "list"}\n            ->  {"ok": true, "exports": [...]}\n
 *      {"verb": "nonsense"}\n        ->  {"ok": false, "error": "verb 'nonsense': ...", "code": 22}\n
 *
 * Only root and the user that runs the server may talk to it. Verbs run one at a time on a thread
 * of their own and may block; sockets are another thread's, so a client that does not read, or one
 * that waits for a slow verb, is nobody else's trouble. What comes from a client is checked before a
 * verb sees it: the length of the line, the depth, that it is an object, that the verb knows each
 * of the keys.
 */
#ifndef CONTROL_CONTROL_H
#define CONTROL_CONTROL_H

#include <glib.h>
#include <json-glib/json-glib.h>
#include <stdbool.h>
#include <stdint.h>

#define CONTROL_PROTOCOL    1
#define CONTROL_LINE_MAX    (64u << 10) /* bytes of a request with its newline */
#define CONTROL_ANSWER_MAX  (16u << 20)
#define CONTROL_DEPTH_MAX   8
#define CONTROL_CLIENTS_MAX 64

typedef struct Control Control;

/* Answers a request: adds members to answer ("ok" is control's) and returns true; or sets *error, of
 * COWNBD_ERROR, and returns false. arguments is the request; besides "verb" it has only keys that the
 * verb was added with, of any type: read them with the functions below. [verbs' thread] */
typedef bool (*ControlVerb)(JsonObject *arguments, JsonObject *answer, void *context,
                            GError **error);

/* Binds path and listens; nothing is answered yet. A socket file on which nobody listens is
 * replaced; of the default path the directory is made. [main] */
Control *control_new(const char *path, GError **error);

/* To hand the socket over to another process: there control_adopt takes its descriptor; here the file
 * is left alone by control_free. [main] */
Control *control_adopt(const char *path, int fd);
int control_fd(const Control *control);
void control_leave_file(Control *control);

/* Before control_start. keys: the arguments that the verb knows, ended by NULL; may be NULL. name and
 * keys must stay. "hello" is control's own. [main] */
void control_add_verb(Control *control, const char *name, const char *const *keys,
                      ControlVerb function, void *context);

bool control_start(Control *control, GError **error); /* [main] */

/* Takes no more requests, waits for the verb that runs, sends its answer where that goes at once,
 * removes the socket's file if it is still ours. NULL is fine. [main] */
void control_free(Control *control);

const char *control_path(const Control *control); /* [any] */

/* Where a server's socket is when nobody says: /run/cownbd/control.sock for root, else below
 * $XDG_RUNTIME_DIR; NULL: there is none. g_free. [any] */
char *control_default_path(void);
/* Makes the directory of that path where it is missing. control_listen does it too, but after a sandbox it is too late.
 * [any] */
void control_make_default_directory(void);

/* Arguments of a verb. An absent one leaves *value as it is; one of another type is refused by name (but a string that reads as the type is taken).
 * Strings belong to the arguments. [any] */
bool control_get_string(JsonObject *arguments, const char *key, const char **value, GError **error);
/* One string, or an array of them; g_strfreev. */
bool control_get_strings(JsonObject *arguments, const char *key, char ***values, GError **error);
bool control_get_bool(JsonObject *arguments, const char *key, bool *value, GError **error);
bool control_get_uint(JsonObject *arguments, const char *key, uint64_t *value, GError **error);

/* The client side. Sends verb with arguments (may be NULL; not taken), waits for the answer. NULL:
 * *error, with the server's text and errno when the server said no; its code is ENOENT, ECONNREFUSED
 * where no server is at path, EPIPE where one ended before it answered, ETIMEDOUT where one does not live (it is
 * stopped, for one). json_object_unref. Blocks as long as the verb. [any] */
JsonObject *control_call(const char *path, const char *verb, JsonObject *arguments, GError **error);

#endif
