/*
 * TLS and access rules of `cownbd serve`.
 *
 * What must stay true: a rule that can never match, because what it asks for is off, is refused at
 * the start; silence would look like safety.
 */
#include <string.h>

#include "base/errors.h"
#include "base/log.h"
#include "cli/serve-impl.h"
#include "nbd/tls-kernel.h"

/* Which of the modes text names, the first without a text; -1: none of them. */
static int mode_of(const char *const *modes, const char *text)
{
    for (unsigned i = 0; modes[i] != NULL; i++) {
        if (text == NULL || strcmp(text, modes[i]) == 0) {
            return i;
        }
    }
    return -1;
}

static bool parse_mode(ServeOptions *o, GError **error)
{
    static const char *const MODES[] = {
        [SERVE_TLS_OFF] = "off", [SERVE_TLS_ON] = "on", [SERVE_TLS_REQUIRE] = "require", NULL};
    int mode = mode_of(MODES, o->tls_text);
    o->tls = MAX(mode, 0);
    return mode >= 0 || error_set(error, EINVAL, "serve: --tls is '%s': must be off, on or require",
                                  o->tls_text);
}

static bool parse_ktls(ServeOptions *o, GError **error)
{
    static const char *const MODES[] = {
        [SERVE_KTLS_AUTO] = "auto", [SERVE_KTLS_ON] = "on", [SERVE_KTLS_OFF] = "off", NULL};
    int mode = mode_of(MODES, o->ktls_text);
    o->ktls = MAX(mode, 0);
    if (mode < 0) {
        return error_set(error, EINVAL, "serve: --ktls is '%s': must be auto, on or off",
                         o->ktls_text);
    }
    return o->ktls != SERVE_KTLS_ON || o->tls != SERVE_TLS_OFF ||
           error_set(error, EINVAL, "serve: --ktls=on without TLS: say --tls=on or --tls=require");
}

static bool check_sources(const ServeOptions *o, GError **error)
{
    bool any = o->tls_certificates != NULL || o->tls_psk != NULL;
    if (o->tls == SERVE_TLS_OFF && (any || o->tls_verify_peer)) {
        return error_set(error, EINVAL,
                         "serve: certificates or keys without TLS: say --tls=on or --tls=require");
    }
    if (o->tls != SERVE_TLS_OFF && !any) {
        return error_set(error, EINVAL,
                         "serve: --tls=%s: nothing to prove who this server is: say "
                         "--tls-certificates or --tls-psk",
                         o->tls_text);
    }
    return !o->tls_verify_peer || o->tls_certificates != NULL ||
           error_set(error, EINVAL,
                     "serve: --tls-verify-peer: needs ca-cert.pem: say --tls-certificates");
}

bool serve_tls_check_rules(const ServeOptions *o, const AccessRules *rules, const char *context,
                           GError **error)
{
    if (access_rules_need_tls(rules) && o->tls == SERVE_TLS_OFF) {
        return error_set(error, EINVAL, "%s: tls and tls=require: need TLS: say --tls=on", context);
    }
    if (access_rules_need_certificate(rules) && !o->tls_verify_peer) {
        return error_set(error, EINVAL,
                         "%s: dn: and san: need verified certificates: say --tls-verify-peer",
                         context);
    }
    return !access_rules_need_psk(rules) || o->tls_psk != NULL ||
           error_set(error, EINVAL, "%s: psk: needs keys: say --tls-psk", context);
}

static bool parse_rules(ServeOptions *o, GError **error)
{
    if (o->allow == NULL) {
        return true;
    }
    o->rules = access_rules_new();
    for (unsigned i = 0; o->allow[i] != NULL; i++) {
        g_autoptr(GError) problem = NULL;
        if (!access_rule_parse(o->rules, o->allow[i], &problem)) {
            return error_set(error, EINVAL, "serve: --allow: %s", problem->message);
        }
    }
    return serve_tls_check_rules(o, o->rules, "serve: --allow", error);
}

AccessRules *serve_tls_rules(const ServeOptions *o, const ConfigAccess *access)
{
    static char *const everybody[] = {(char *)"any=all", NULL};
    char *const *allow = access->allow != NULL ? access->allow : o->allow;
    if (allow == NULL && !access->require_tls) {
        return NULL;
    }
    AccessRules *rules = access_rules_new();
    for (allow = allow != NULL ? allow : everybody; *allow != NULL; allow++) {
        access_rule_parse(rules, *allow, NULL); /* it was parsed before */
    }
    if (access->require_tls) {
        access_rules_require_tls(rules);
    }
    return rules;
}

bool serve_tls_check(ServeOptions *o, GError **error)
{
    return parse_mode(o, error) && parse_ktls(o, error) && check_sources(o, error) &&
           parse_rules(o, error);
}

/* A kernel that takes no second key is used only by who says so: new keys end a connection there. */
static bool may_use_kernel(const ServeOptions *o)
{
    static const char *const SUPPORT[] = {
        [TLS_KERNEL_NONE] = "no TLS",
        [TLS_KERNEL_ONE_KEY] = "TLS, and no new keys",
        [TLS_KERNEL_NEW_KEYS] = "TLS, and new keys",
    };
    if (o->tls == SERVE_TLS_OFF || o->ktls == SERVE_KTLS_OFF) {
        return false;
    }
    TlsKernelSupport support = tls_kernel_probe();
    log_debug("the kernel has %s", SUPPORT[support]);
    if (o->ktls == SERVE_KTLS_ON && support == TLS_KERNEL_NONE) {
        log_warning(
            "--ktls=on: this kernel has no TLS (modprobe tls): the server makes the records");
    }
    return support >= (o->ktls == SERVE_KTLS_ON ? TLS_KERNEL_ONE_KEY : TLS_KERNEL_NEW_KEYS);
}

bool serve_tls_open(Serve *serve, GError **error)
{
    const ServeOptions *o = &serve->options;
    TlsFiles files = {.directory = o->tls_certificates,
                      .psk = o->tls_psk,
                      .verify_peer = o->tls_verify_peer,
                      .use_kernel = may_use_kernel(o)};
    if (o->tls != SERVE_TLS_OFF) {
        serve->tls = tls_credentials_new(&files, error);
    }
    return o->tls == SERVE_TLS_OFF || serve->tls != NULL;
}

bool serve_tls_reload(Serve *serve, GError **error)
{
    if (serve->tls == NULL) {
        return true;
    }
    if (!tls_credentials_reload(serve->tls, error)) {
        return false;
    }
    log_info("certificates and keys are read again");
    return true;
}
