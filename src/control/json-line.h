/*
 * JSON objects, one a line, from somebody who may mean no good. Pure. [any]
 */
#ifndef CONTROL_JSON_LINE_H
#define CONTROL_JSON_LINE_H

#include <glib.h>
#include <json-glib/json-glib.h>
#include <stddef.h>

/* The object that the line is; the newline is not part of it. Stricter than the library: UTF-8, no
 * comments, no single quotes, nested at most depth_max deep. json_object_unref. */
JsonObject *json_line_parse(const char *line, size_t length, unsigned depth_max, GError **error);

/* The object on one line, its newline included. g_free. */
char *json_line_print(JsonObject *object);

#endif
