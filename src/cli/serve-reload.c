/*
 * The configuration has changed: the difference is applied while others are served.
 *
 *      read, checked --> planned --> old images closed, new ones opened --> published
 *                           |                     |
 *                           +------ refused ------+--> old ones opened again: as before
 *
 * An export that is not declared any more is hidden: who uses it may stay, and it is closed when the
 * last has gone. So is one that is declared with another image: who comes gets the new one. The same
 * image, opened otherwise, takes a moment in which nobody uses it, so while it has clients that is
 * refused: kick them first. What must stay true: until everything is open, nobody sees anything new;
 * what was added by hand is not touched.
 */
#include <stdlib.h>
#include <string.h>

#include "base/errors.h"
#include "base/log.h"
#include "cli/output.h"
#include "cli/serve-config.h"
#include "cli/serve-impl.h"

typedef struct Reload {
    Serve *serve;
    Config *config;
    GPtrArray *wanted; /* const ConfigExport *, to be opened */
    GPtrArray *fresh;  /* ServedImage *, opened, not yet published */
    GPtrArray *gone;   /* ServedImage *, not declared any more, or declared otherwise */
    GPtrArray *ruled;  /* const ConfigExport *, for whom others may do other things now, no more */
    GPtrArray *closed; /* ServedImage *, those of gone that nobody uses, out of serve->images */
} Reload;

ServedHow serve_declared_how(const ConfigExport *export)
{
    return (ServedHow){.name = export->name,
                       .path = export->image,
                       .format = export->format,
                       .description = export->description,
                       .snapshot = export->snapshot,
                       .secret_files = export->secret_files,
                       .read_only = export->read_only,
                       .access = export->access,
                       .origin = SERVED_DECLARED};
}

const Config *serve_config(const Serve *serve)
{
    return serve->reloaded != NULL ? serve->reloaded : serve->options.config;
}

/* The plan */

static bool is_same_list(char **a, char **b)
{
    return (a != NULL) == (b != NULL) &&
           (a == NULL || g_strv_equal((const char *const *)a, (const char *const *)b));
}

static bool is_same(const ServedImage *image, const ConfigExport *export)
{
    const ServedHow *how = &image->how;
    return g_strcmp0(how->path, export->image) == 0 &&
           g_strcmp0(how->format, export->format) == 0 &&
           g_strcmp0(how->description, export->description) == 0 &&
           g_strcmp0(how->snapshot, export->snapshot) == 0 &&
           is_same_list(how->secret_files, export->secret_files) &&
           how->read_only == export->read_only;
}

static bool is_same_access(const ConfigAccess *a, const ConfigAccess *b)
{
    return a->require_tls == b->require_tls && is_same_list(a->allow, b->allow);
}

static const ConfigExport *find_declared(const Config *config, const char *name)
{
    for (unsigned i = 0; i < config->exports->len; i++) {
        const ConfigExport *export = g_ptr_array_index(config->exports, i);
        if (strcmp(export->name, name) == 0) {
            return export;
        }
    }
    return NULL;
}

/* Both cannot be open at once: they are one file, and one of them writes. */
static bool excludes(const ServedImage *image, const ConfigExport *export)
{
    char *real = realpath(export->image, NULL);
    bool same = real != NULL && strcmp(real, image->real_path) == 0;
    free(real);
    return same && (image->write || !export->read_only);
}

static void plan_export(Reload *reload, const ConfigExport *export)
{
    ConfigErrors *errors = &reload->config->errors;
    ServedImage *image = serve_images_named(reload->serve, export->name);
    if (image == NULL) {
        g_ptr_array_add(reload->wanted, (void *)export);
    } else if (image->how.origin != SERVED_DECLARED) {
        config_errors_add(errors, export->place,
                          "export '%s' is served already, of %s: remove that first", export->name,
                          image->how.path);
    } else if (!is_same(image, export)) {
        g_ptr_array_add(reload->wanted, (void *)export);
        g_ptr_array_add(reload->gone, image);
        if (export_users(image->export) > 0 && excludes(image, export)) {
            config_errors_add(errors, export->place,
                              "export '%s' changes how its image is opened and has clients: send "
                              "them away first (cownbd ctl kick --export '%s'), or give it another "
                              "image",
                              export->name, export->name);
        }
    } else if (!is_same_access(&image->how.access, &export->access)) {
        g_ptr_array_add(reload->ruled, (void *)export);
    }
}

static void plan(Reload *reload)
{
    Serve *serve = reload->serve;
    for (unsigned i = 0; i < reload->config->exports->len; i++) {
        plan_export(reload, g_ptr_array_index(reload->config->exports, i));
    }
    for (unsigned i = 0; i < serve->images->len; i++) {
        ServedImage *image = g_ptr_array_index(serve->images, i);
        if (image->how.origin == SERVED_DECLARED && !image->leaving &&
            find_declared(reload->config, image->how.name) == NULL) {
            g_ptr_array_add(reload->gone, image);
        }
    }
    for (unsigned i = 0; i < reload->gone->len; i++) {
        const ServedImage *image = g_ptr_array_index(reload->gone, i);
        if (serve_attach_has(serve, image)) {
            config_errors_add(
                &reload->config->errors, (ConfigPlace){.file = serve->options.config_path},
                "export '%s' goes and is a block device: detach it first", image->how.name);
        }
    }
}

/* The turn */

static void close_gone(Reload *reload)
{
    Serve *serve = reload->serve;
    for (unsigned i = 0; i < reload->gone->len; i++) {
        ServedImage *image = g_ptr_array_index(reload->gone, i);
        if (!export_table_remove_unused(serve->exports, image->export)) {
            continue;
        }
        g_ptr_array_remove(serve->images, image);
        g_ptr_array_add(reload->closed, image);
        if (!serve_image_suspend(image)) {
            serve->failed = true;
        }
    }
}

static void open_wanted(Reload *reload)
{
    for (unsigned i = 0; i < reload->wanted->len; i++) {
        const ConfigExport *export = g_ptr_array_index(reload->wanted, i);
        ServedHow how = serve_declared_how(export);
        g_autoptr(GError) error = NULL;
        ServedImage *image = serve_image_open(reload->serve, &how, &error);
        if (image != NULL) {
            g_ptr_array_add(reload->fresh, image);
        } else {
            config_errors_add(&reload->config->errors, export->place, "%s", error->message);
        }
    }
}

/* As before; an old image that cannot be opened again is lost, and that is said, too. */
static void go_back(Reload *reload)
{
    Serve *serve = reload->serve;
    for (unsigned i = 0; i < reload->fresh->len; i++) {
        serve_image_close(serve, g_ptr_array_index(reload->fresh, i));
    }
    for (unsigned i = reload->closed->len; i-- > 0;) {
        ServedImage *image = g_ptr_array_index(reload->closed, i);
        g_autoptr(GError) error = NULL;
        if (serve_image_resume(serve, image, &error)) {
            export_table_restore(serve->exports, image->export);
            g_ptr_array_add(serve->images, image);
            continue;
        }
        config_errors_add(&reload->config->errors,
                          (ConfigPlace){.file = serve->options.config_path},
                          "export '%s' is lost: %s", image->how.name, error->message);
        serve_image_close(serve, image);
    }
}

static void publish(Reload *reload)
{
    Serve *serve = reload->serve;
    for (unsigned i = 0; i < reload->gone->len; i++) {
        ServedImage *image = g_ptr_array_index(reload->gone, i);
        if (g_ptr_array_find(reload->closed, image, NULL)) {
            continue;
        }
        export_table_remove(serve->exports, image->export);
        image->leaving = true;
    }
    for (unsigned i = 0; i < reload->fresh->len; i++) {
        ServedImage *image = g_ptr_array_index(reload->fresh, i);
        g_autoptr(GError) error = NULL;
        if (!serve_image_publish(serve, image, &error)) { /* only a name that nobody may have */
            log_error("%s", error->message);
            serve_image_close(serve, image);
        }
    }
}

/* Clients that are there keep what they were given. */
static void set_rules(Reload *reload)
{
    for (unsigned i = 0; i < reload->ruled->len; i++) {
        const ConfigExport *export = g_ptr_array_index(reload->ruled, i);
        ServedImage *image = serve_images_named(reload->serve, export->name);
        g_autoptr(AccessRules) rules = serve_tls_rules(&reload->serve->options, &export->access);
        export_set_access(image->export, rules);
        g_strfreev(image->how.access.allow);
        image->how.access =
            (ConfigAccess){g_strdupv(export->access.allow), export->access.require_tls};
    }
}

/* What to tell */

static bool refuse(const Reload *reload, GError **error)
{
    if (reload->config->errors.all->len == 0) {
        return false;
    }
    config_errors_sort(&reload->config->errors);
    g_autofree char *text = config_errors_text(&reload->config->errors);
    g_set_error_literal(error, COWNBD_ERROR, EINVAL, text); /* several lines */
    return true;
}

static bool is_wanted(const Reload *reload, const char *name)
{
    for (unsigned i = 0; i < reload->wanted->len; i++) {
        const ConfigExport *export = g_ptr_array_index(reload->wanted, i);
        if (strcmp(export->name, name) == 0) {
            return true;
        }
    }
    return false;
}

static bool was_there(const Reload *reload, const char *name)
{
    for (unsigned i = 0; i < reload->gone->len; i++) {
        const ServedImage *image = g_ptr_array_index(reload->gone, i);
        if (strcmp(image->how.name, name) == 0) {
            return true;
        }
    }
    return false;
}

static void tell_exports(const Reload *reload, JsonObject *answer)
{
    JsonArray *added = json_array_new(), *changed = json_array_new(), *removed = json_array_new();
    for (unsigned i = 0; i < reload->wanted->len; i++) {
        const ConfigExport *export = g_ptr_array_index(reload->wanted, i);
        json_array_add_string_element(was_there(reload, export->name) ? changed : added,
                                      export->name);
    }
    for (unsigned i = 0; i < reload->ruled->len; i++) {
        const ConfigExport *export = g_ptr_array_index(reload->ruled, i);
        json_array_add_string_element(changed, export->name);
    }
    for (unsigned i = 0; i < reload->gone->len; i++) {
        const ServedImage *image = g_ptr_array_index(reload->gone, i);
        if (!is_wanted(reload, image->how.name)) {
            json_array_add_string_element(removed, image->how.name);
        }
    }
    json_object_set_array_member(answer, "added", added);
    json_object_set_array_member(answer, "changed", changed);
    json_object_set_array_member(answer, "removed", removed);
}

static bool is_same_setting(const ConfigSetting *a, const ConfigSetting *b)
{
    return a != NULL && b != NULL &&
           g_strv_equal((const char *const *)a->values, (const char *const *)b->values);
}

/* Settings that are not as they were at the start: they need another one. */
static void tell_settings(const Reload *reload, JsonObject *answer)
{
    JsonArray *names = json_array_new();
    const Config *then = reload->serve->options.config;
    for (const ConfigKey *key = serve_options_keys(); key->name != NULL; key++) {
        const ConfigSetting *before = config_find_setting(then, key->name);
        const ConfigSetting *now = config_find_setting(reload->config, key->name);
        if ((before != NULL || now != NULL) && !is_same_setting(before, now)) {
            json_array_add_string_element(names, key->name);
        }
    }
    json_object_set_array_member(answer, "need-restart", names);
}

/* All of it */

static bool run(Reload *reload, JsonObject *answer, GError **error)
{
    plan(reload);
    if (refuse(reload, error)) {
        return false;
    }
    close_gone(reload);
    open_wanted(reload);
    if (reload->config->errors.all->len > 0) {
        go_back(reload);
        refuse(reload, error);
        return false;
    }
    publish(reload);
    set_rules(reload);
    tell_exports(reload, answer);
    tell_settings(reload, answer);
    for (unsigned i = 0; i < reload->closed->len; i++) {
        serve_image_close(reload->serve, g_ptr_array_index(reload->closed, i));
    }
    return true;
}

bool serve_reload(Serve *serve, JsonObject *answer, GError **error)
{
    const char *path = serve->options.config_path;
    if (path == NULL && serve->tls == NULL) {
        return error_set(error, EINVAL,
                         "reload: this server has neither a configuration nor certificates: start "
                         "it with serve --config FILE");
    }
    if (path == NULL) {
        return serve_tls_reload(serve, error);
    }
    g_autoptr(Config) config = serve_config_read(path, error);
    if (config == NULL || !serve_config_check_rules(config, &serve->options, error) ||
        !serve_tls_reload(serve, error)) {
        return false;
    }
    g_autoptr(GPtrArray) wanted = g_ptr_array_new(), fresh = g_ptr_array_new(),
                         gone = g_ptr_array_new(), ruled = g_ptr_array_new(),
                         closed = g_ptr_array_new();
    Reload reload = {.serve = serve,
                     .config = config,
                     .wanted = wanted,
                     .fresh = fresh,
                     .gone = gone,
                     .ruled = ruled,
                     .closed = closed};
    if (!run(&reload, answer, error)) {
        return false;
    }
    g_clear_pointer(&serve->reloaded, config_free);
    serve->reloaded = g_steal_pointer(&config);
    serve_directory_changed(serve);
    return true;
}
