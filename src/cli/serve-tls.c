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

static bool parse_mode(ServeOptions *o, GError **error)
{
    static const char *const MODES[] = {
        [SERVE_TLS_OFF] = "off", [SERVE_TLS_ON] = "on", [SERVE_TLS_REQUIRE] = "require"};
    for (unsigned i = 0; i < G_N_ELEMENTS(MODES); i++) {
        if (o->tls_text == NULL || strcmp(o->tls_text, MODES[i]) == 0) {
            o->tls = i;
            return true;
        }
    }
    return error_set(error, EINVAL, "serve: --tls is '%s': must be off, on or require",
                     o->tls_text);
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
    return parse_mode(o, error) && check_sources(o, error) && parse_rules(o, error);
}

bool serve_tls_open(Serve *serve, GError **error)
{
    const ServeOptions *o = &serve->options;
    TlsFiles files = {
        .directory = o->tls_certificates, .psk = o->tls_psk, .verify_peer = o->tls_verify_peer};
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
