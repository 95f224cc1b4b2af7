/*
 * cownbd config: looks at configurations of cownbd serve.
 */
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/serve-config.h"

static const CliUsage usage = {
    .command = "config",
    .arguments = "check FILE",
    .summary =
        "Says everything that is wrong in a configuration of cownbd serve, each with its line.\n"
        "Exit status 0: nothing is.",
    .example = "  cownbd config check /etc/cownbd/cownbd.conf",
    .flags = CLI_FLAG_JSON,
};

static JsonArray *errors_json(const ConfigErrors *errors)
{
    JsonArray *array = json_array_new();
    for (unsigned i = 0; i < errors->all->len; i++) {
        const ConfigError *error = g_ptr_array_index(errors->all, i);
        JsonObject *object = json_object_new();
        output_add_string(object, "file", error->place.file);
        json_object_set_int_member(object, "line", error->place.line);
        output_add_string(object, "error", error->text);
        json_array_add_object_element(array, object);
    }
    return array;
}

static void print_json(const Config *config)
{
    JsonObject *object = json_object_new();
    json_object_set_array_member(object, "errors", errors_json(&config->errors));
    json_object_set_int_member(object, "more-errors", config->errors.more);
    json_object_set_int_member(object, "settings", config->settings->len);
    json_object_set_int_member(object, "exports", config->exports->len);
    json_object_set_int_member(object, "directories", config->directories->len);
    JsonNode *root = json_node_alloc();
    json_node_init_object(root, object);
    json_object_unref(object);
    output_json(root);
}

static int print_human(const Config *config)
{
    const ConfigErrors *errors = &config->errors;
    for (unsigned i = 0; i < errors->all->len; i++) {
        g_autofree char *text = config_error_text(g_ptr_array_index(errors->all, i));
        fprintf(stderr, "cownbd: %s\n", text);
    }
    if (errors->more > 0) {
        fprintf(stderr, "cownbd: and %u more errors\n", errors->more);
    }
    if (errors->all->len > 0) {
        return 1;
    }
    printf("%u settings, %u exports, %u directories: no errors\n", config->settings->len,
           config->exports->len, config->directories->len);
    return 0;
}

int cli_config(int argc, char **argv)
{
    g_auto(CliCommon) common = {0};
    g_autoptr(GError) error = NULL;
    if (!cli_parse(&usage, NULL, &common, &argc, &argv, &error)) {
        return cli_fail_usage(&usage, "%s", error->message);
    }
    if (argc < 2 || strcmp(argv[1], "check") != 0) {
        return cli_fail_usage(&usage, "%s: must be check", argc < 2 ? "no verb given" : argv[1]);
    }
    if (argc != 3) {
        return cli_fail_usage(&usage, "check takes one file");
    }
    g_autoptr(Config) config = serve_config_check_alone(argv[2]);
    if (!common.json) {
        return output_finish(print_human(config));
    }
    print_json(config);
    return output_finish(config->errors.all->len > 0);
}
