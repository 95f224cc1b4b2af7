/*
 * The inside of `cownbd serve`, for its files.
 *
 *      serve-options.c   the command line
 *      serve-operations.c the log, the user, the sandbox
 *      serve-process.c   the process around it: signals
 *      serve-config.c    the configuration at the start, serve-reload.c when it has changed
 *      serve-watchdog.c  signs of life
 *      serve-listen.c    where clients come from
 *      serve-images.c    images -> disks -> exports, and back
 *      serve-exports.c   exports that come and go while others are served: verbs add, remove, kick
 *      serve-directory.c exports that are opened when a client asks for them, serve-listing.c what LIST says of them
 *      serve-tls.c       certificates, keys, who may do what
 *      serve-bitmaps.c   their bitmaps, as meta contexts
 *      serve-control.c   the control socket and its verbs
 *      serve-stats.c     what was counted, and the status page that shows it
 *      serve-handover.c  all of it given to another process, serve-takeover.c that process
 *      serve-resize.c    the verb resize, serve-snapshot.c the verb snapshot
 *      serve-attach.c    kernel devices: options, verbs, start and stop; serve-attach-stats.c what stats says of them
 *      serve-leaks.c     space that a killed server had taken and given to nothing
 *      serve.c           the order of it all; what main does while the others work
 *
 * Main starts everything, then waits; whoever needs main asks by serve_on_main.
 */
#ifndef CLI_SERVE_IMPL_H
#define CLI_SERVE_IMPL_H

#include <glib.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/pool.h"
#include "base/worker.h"
#include "cli/options.h"
#include "control/config.h"
#include "control/control.h"
#include "control/export.h"
#include "control/metrics.h"
#include "engine/disk.h"
#include "nbd/listen.h"
#include "nbd/server.h"
#include "nbd/tls-credentials.h"

typedef struct Serve Serve;
typedef struct ServeAttach ServeAttach;
typedef struct ServeJob ServeJob;
typedef struct ServeRemoval ServeRemoval;
typedef struct ServeTakeover ServeTakeover;
typedef struct ServeWatchdog ServeWatchdog;

#define SERVE_TAKE_OVER "--take-over="
#define SERVE_SANDBOXED "--sandboxed"

typedef enum { SERVE_TLS_OFF, SERVE_TLS_ON, SERVE_TLS_REQUIRE } ServeTls;
typedef enum { SERVE_KTLS_AUTO, SERVE_KTLS_ON, SERVE_KTLS_OFF } ServeKtls;

typedef struct ServeOptions {
    CliCommon common;
    char *config_path;
    Config *config;   /* as it was at the start; NULL: there is none */
    GPtrArray *words; /* char *, options' own: settings and command line together */
    char **argv;      /* of words */
    char **listen;
    char **names, **descriptions;
    char *socket_mode, *socket_owner;
    char *client_memory_text, *total_memory_text, *metadata_cache_text;
    char *pid_file, *control, *status;
    char *tls_text, *ktls_text, *tls_certificates, *tls_psk;
    char **allow;
    char *log, *log_level, *user, *group, *sandbox;
    gboolean sandboxed; /* by the process whose work this one takes over */
    bool confine;       /* there is to be a sandbox */
    gboolean read_only, once, stdio, tls_verify_peer, allow_resize;
    int threads, max_clients, handshake_timeout, stall_timeout, shutdown_timeout;
    uint64_t client_memory, total_memory, metadata_cache;
    int take_over;    /* channel to the process whose work this one takes over; -1: none */
    bool listen_none; /* --listen=none: no listener at all */
    ListenerAccess access;
    ServeTls tls;
    ServeKtls ktls;
    /* For every export of the command line; NULL: everybody may do everything. */
    AccessRules *rules;
    char **images; /* as given; none only where there is a configuration */
} ServeOptions;

/* Where an export comes from. */
typedef enum {
    SERVED_GIVEN,    /* command line, verb add */
    SERVED_DECLARED, /* configuration: a reload may take it away */
    SERVED_FOUND,    /* below a directory; goes with its last client */
} ServedOrigin;

/* An image under a name, as it was asked for. */
typedef struct ServedHow {
    char *name;
    char *path;          /* as given */
    char *format;        /* NULL: found from the first bytes */
    char *description;   /* may be NULL */
    char *snapshot;      /* internal one that is shown; NULL: that of --snapshot, or none */
    char **secret_files; /* "[IMAGE=]FILE", absolute, beside those of the server; NULL: none */
    bool read_only;      /* so is a snapshot */
    ConfigAccess access;
    ServedOrigin origin;
} ServedHow;

/* An image that is served. All images are main's: other threads pin the one that they use. */
typedef struct ServedImage {
    ServedHow how;
    char *real_path;  /* realpath of how.path */
    Secrets *secrets; /* how.secret_files, read once; NULL: only the server's */
    bool write;
    Image *image; /* the disk's; no reference of its own */
    Disk *disk;
    Export *export;
    bool leaving;          /* removed: closed when nobody has its export pinned */
    ServeRemoval *removal; /* job_lock; who waits for that, or NULL */
    bool mend; /* its last server was killed: leaked space is looked for when it is closed */
} ServedImage;

/* Adds what it knows of an image to its object in the answer of `list`, or of `stats`. [main] */
typedef void (*ServeDescribe)(const ServedImage *image, bool stats, JsonObject *object,
                              void *context);

struct Serve {
    char **argv; /* "serve" and its arguments, before they are parsed */
    ServeOptions options;
    int signal_fd;
    Pool *pool;
    Config *reloaded;  /* in place of that of options; NULL: that */
    GPtrArray *images; /* ServedImage * */
    ExportTable *exports;
    GPtrArray *workers;   /* Worker * */
    GPtrArray *listeners; /* Listener * */
    unsigned inherited;   /* so many of the listeners came with the process */
    int stdio_fd;         /* the client of --stdio until it is served; -1 */
    NbdServer *server;
    NbdCounts gone;         /* what exports did that are no longer there */
    Metrics *metrics;       /* NULL: there is no status page */
    TlsCredentials *tls;    /* NULL: there is no TLS */
    Control *control;       /* NULL: there is no control socket */
    ServeDescribe describe; /* may be NULL; set before the control socket answers */
    void *describe_context;
    int64_t started;         /* g_get_monotonic_time */
    ServeTakeover *takeover; /* while taking over */
    bool handed_over;        /* another process has taken over: this one only leaves */
    bool failed;             /* the exit status is 1 */
    ServeAttach *attach;     /* serve-attach.c's own; NULL: nothing is or was attached */

    ServeWatchdog *watchdog; /* NULL: nobody waits for a sign of life */
    int tick;                /* milliseconds between two looks at it; -1: there is none */

    int job_fd;               /* eventfd: main has something to do */
    pthread_mutex_t ask_lock; /* who has it may set job */
    pthread_mutex_t job_lock;
    pthread_cond_t job_changed;
    ServeJob *job;        /* job_lock; at most one */
    bool leaving;         /* job_lock; main takes no more jobs */
    GQueue searches;      /* job_lock; NbdSearch *, of clients that wait */
    bool has_directories; /* job_lock */
    GPtrArray *listing;   /* NbdListed *, of directories; NULL: not known */
    int64_t listed_at;    /* g_get_monotonic_time */
};

/* Runs function on main, between its waits, and waits until it has run. False: the server is ending
 * and it did not run. [any but main] */
bool serve_on_main(Serve *serve, void (*function)(Serve *serve, void *argument), void *argument);

/* The error of a verb for which that was so; false. */
bool serve_is_ending(GError **error);

/* Main leaves as it does after SIGTERM. Returns at once. [any] */
void serve_leave(Serve *serve);

/* serve-options.c [main] */
void serve_options_init(ServeOptions *options);
bool serve_options_parse(ServeOptions *options, int *argc, char ***argv, GError **error);
void serve_options_clear(ServeOptions *options);
/* The settings that [server] may have, from the table of options. */
const ConfigKey *serve_options_keys(void);
/* The options that these settings are; false: what they would be refused for. o was initialized, and is
 * to be cleared. */
bool serve_options_try(const ConfigSetting *const *settings, unsigned count, ServeOptions *o,
                       GError **error);

/* serve-config.c: declared access rules ask for nothing that these options do not have. */
bool serve_config_check_rules(Config *config, const ServeOptions *o, GError **error);

/* serve-reload.c [main]. The configuration is read again, and the difference is applied; anything wrong
 * with it: nothing changes. answer is told what was done. */
bool serve_reload(Serve *serve, JsonObject *answer, GError **error);
/* The configuration as it was read last; NULL: there is none. */
const Config *serve_config(const Serve *serve);

/* serve-directory.c [main]. Answers the clients that wait for an export; open: by opening images. */
void serve_directory_start(Serve *serve);
void serve_directory_changed(Serve *serve); /* the configuration has */
void serve_directory_run(Serve *serve, bool open);
/* The directory serves images of that format. */
bool serve_directory_declares(const ConfigDirectory *directory, const char *format);

/* serve-listing.c [main]. What is below the directories, as it was a second ago at most: NbdListed *, the
 * caller's own. */
GPtrArray *serve_listing(Serve *serve);
void serve_listing_forget(Serve *serve);

/* What a declared export asks for; the strings stay its own. */
ServedHow serve_declared_how(const ConfigExport *export);

/* serve-operations.c [main] */
void serve_operations_add(GArray *all, ServeOptions *options); /* its GOptionEntries */
/* A value that cannot work; fills in confine. */
bool serve_operations_check(ServeOptions *options, GError **error);
bool serve_log_open(const ServeOptions *options, GError **error);
/* Before the first thread. */
bool serve_sandbox_files(const ServeOptions *options, GError **error);
/* Says that a file that may not be opened may be one that the sandbox keeps out. */
void serve_sandbox_explain(const Serve *serve, GError **error);
/* When all is open. */
bool serve_user_become(const ServeOptions *options, GError **error);
bool serve_sandbox_calls(const Serve *serve, GError **error);

/* serve-listen.c [main] */
bool serve_listen_check(ServeOptions *options, GError **error);
/* Takes what was inherited, before any thread starts. */
bool serve_listen_inherit(Serve *serve, GError **error);
bool serve_listen_open(Serve *serve, GError **error);
/* Where clients find it: nbds: where they must begin TLS. */
char *serve_listen_uri(const Serve *serve, const Listener *listener);

/* serve-tls.c [main] */
bool serve_tls_check(ServeOptions *options, GError **error);
bool serve_tls_open(Serve *serve, GError **error);
/* Rules that ask for something that is off could never match: refused. context: who has them. */
bool serve_tls_check_rules(const ServeOptions *options, const AccessRules *rules,
                           const char *context, GError **error);
/* The rules of an export with this access; NULL: everybody may do everything. access_rules_unref. */
AccessRules *serve_tls_rules(const ServeOptions *options, const ConfigAccess *access);
/* Certificates and keys are read again; false: the old ones stay. */
bool serve_tls_reload(Serve *serve, GError **error);

/* serve-images.c [main] */
bool serve_images_open(Serve *serve, GError **error);
/* Opens an image that is no export yet; then it becomes one. False: it is as before. */
ServedImage *serve_image_open(Serve *serve, const ServedHow *how, GError **error);
bool serve_image_publish(Serve *serve, ServedImage *image, GError **error);
/* It goes, be it an export that is removed and idle or none. False: the last flush failed. */
bool serve_image_close(Serve *serve, ServedImage *image);
/* Flushes and closes its disk, the rest stays; opens it again. */
bool serve_image_suspend(ServedImage *image);
bool serve_image_resume(Serve *serve, ServedImage *image, GError **error);
/* Opens one more image and makes it an export; NULL: nothing has changed. */
ServedImage *serve_images_add(Serve *serve, const ServedHow *how, GError **error);
/* Closes those that nobody uses any more and whose export is removed or was found below a directory. False: a last flush failed
 * (said in the log). */
bool serve_images_reap(Serve *serve);
/* The image whose export has that name, and is not leaving; NULL: there is none. */
ServedImage *serve_images_named(const Serve *serve, const char *name);
/* For a handover that may fail: flushes and closes the disks, but keeps the exports, which nobody uses
 * meanwhile; and opens them again. */
bool serve_images_suspend(Serve *serve); /* false: a flush failed (said in the log) */
bool serve_images_reopen(Serve *serve, GError **error);
bool serve_images_close(Serve *serve); /* false: a last flush failed (said in the log) */
/* The image whose realpath this is, sooner one that stays than one that is leaving; NULL: not served
 * here. */
ServedImage *serve_images_find(const Serve *serve, const char *real_path);
/* The same for another thread, unless it is leaving. It is pinned then, stays open until it is put. */
ServedImage *serve_images_get(Serve *serve, const char *real_path); /* [any but main] */
/* The one that a verb's argument "image" (a real path) names. [any but main] */
ServedImage *serve_image_argument(Serve *serve, JsonObject *arguments, GError **error);
void serve_image_put(ServedImage *image); /* [any] */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(ServedImage, serve_image_put)

/* serve-exports.c: adds its verbs; tells who waits for it that a removed image is closed. [main] */
void serve_exports_start(Serve *serve);
void serve_removal_done(Serve *serve, ServedImage *image, bool flushed);

/* serve-control.c [main]. Opens the control socket, if there is to be one, and gives it its verbs;
 * control_start follows when the others have added theirs. */
bool serve_control_open(Serve *serve, GError **error);

const char *serve_mode_name(DiskMode mode); /* [any] */

/* serve-stats.c [main]. The export goes, what it has done stays in the totals. */
void serve_stats_keep(Serve *serve, const ServedImage *image);
/* For serve_on_main: adds what was counted to the answer, a JsonObject. [main] */
void serve_stats_job(Serve *serve, void *answer);
/* The status page: binds its address, if there is to be one; then answers. [main] */
bool serve_metrics_open(Serve *serve, GError **error);
bool serve_metrics_start(Serve *serve, GError **error);

/* serve-resize.c: adds its verb. [main] */
void serve_resize_start(Serve *serve);

/* serve-snapshot.c: adds the verb snapshot. */
void serve_snapshot_start(Serve *serve);

/* serve-watchdog.c [main]. A sign of life for the service manager that asked for one. */
void serve_watchdog_start(Serve *serve);
void serve_watchdog_tick(Serve *serve);
void serve_watchdog_free(Serve *serve); /* when the workers have ended */

/* serve.c [main] */
void serve_start_listeners(Serve *serve);

/* serve-handover.c: the verb handover. [verbs' thread] */
bool serve_handover_verb(JsonObject *arguments, JsonObject *answer, void *context, GError **error);

/* serve-takeover.c [main]. In this order: sockets are received, the old process has let go of its
 * images; the images are opened, those that it had; nothing can fail any more, the old process lets go of the rest;
 * connections go on. Where something fails, it is refused, and the old process goes on. */
bool serve_takeover_receive(Serve *serve, GError **error);
bool serve_takeover_open(Serve *serve, GError **error);
bool serve_takeover_commit(Serve *serve, GError **error);
void serve_takeover_go(Serve *serve);
void serve_takeover_refuse(Serve *serve, const GError *why);
void serve_takeover_free(Serve *serve);
/* How the other process has attached the image of that real path; NULL: it has not, or there is no
 * other process. */
JsonObject *serve_takeover_attachment(const Serve *serve, const char *real_path);

/* serve-bitmaps.c: its bitmaps become contexts of its export. The image's disk has just been opened. */
void serve_bitmaps_offer(const ServedImage *served);

/* serve-leaks.c [main]. Frees what nothing in the image uses; the image is not open. */
void serve_leaks_mend(const Serve *serve, const char *path);

/* serve-attach.c [main]. Its options, ended by a NULL name. The values lie in static memory of that
 * file (GOption gives no context). */
const GOptionEntry *serve_attach_entries(void);
/* An option says that there will be kernel devices. */
bool serve_attach_is_wanted(void);
/* After options are parsed, before anything is opened. */
bool serve_attach_check(Serve *serve, GError **error);
/* Workers run, no client is served yet; readiness was not told. The place to add verbs, where
 * serve->control is not NULL; they may run as soon as this has returned. */
bool serve_attach_start(Serve *serve, GError **error);
/* Whether the image is a block device now: then it cannot go. */
bool serve_attach_has(Serve *serve, const ServedImage *image);
/* The image is going. */
void serve_attach_forget(Serve *serve, const ServedImage *image);
/* All is ready; the same moment at which READY=1 is sent. */
void serve_attach_ready(Serve *serve);
/* The disk has another size: its device, if it has one, follows. [verbs' thread] */
bool serve_attach_resized(Serve *serve, const ServedImage *image, GError **error);
/* Before disks are closed for a handover: leaves all devices in the kernel, where their requests wait,
 * and tells of each how it is attached, as the verb attach is told; and when the handover has
 * failed: goes on with them. */
JsonArray *serve_attach_suspend(Serve *serve);
void serve_attach_resume(Serve *serve);
/* Before connections end and disks are closed; also when start failed, or never ran. After it no
 * request comes from the fast path. */
void serve_attach_stop(Serve *serve);

#endif
