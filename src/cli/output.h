/*
 * What subcommands print on stdout. [main]
 */
#ifndef CLI_OUTPUT_H
#define CLI_OUTPUT_H

#include <json-glib/json-glib.h>
#include <stdint.h>

/* "64 KiB", as qemu-img prints sizes; g_free. */
char *output_size(uint64_t bytes);

/* The text as a JSON string, quotes included; bytes that are not UTF-8 are replaced. g_free. */
char *output_json_string(const char *text);

/* A copy for people's eyes: line ends and escapes, which an image may have put into its names, are shown as '?'. */
char *output_harmless(const char *text);

/* Prints a document and a newline; frees root. */
void output_json(JsonNode *root);

/* Adds a string member; bytes that are not UTF-8 (file names may hold any) are replaced. */
void output_add_string(JsonObject *object, const char *name, const char *text);

/* Everything printed has reached stdout; else an error line, and 1. A full disk is no success. */
int output_finish(int status);

#endif
