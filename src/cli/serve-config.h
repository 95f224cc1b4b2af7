/*
 * The configuration of `cownbd serve`. [main]
 */
#ifndef CLI_SERVE_CONFIG_H
#define CLI_SERVE_CONFIG_H

#include "control/config.h"

/* The configuration at path, checked as far as that goes without opening an image; its errors are in
 * it. */
Config *serve_config_check(const char *path);

/* The same, and its access rules ask for nothing that its own [server] does not have. */
Config *serve_config_check_alone(const char *path);

/* As serve_config_check; NULL: *error has a line for each thing that is wrong. */
Config *serve_config_read(const char *path, GError **error);

#endif
