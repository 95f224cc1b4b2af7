/*
 * Access rules.
 *
 * A rule is split at its last '=': names of certificates have some of their own. What must stay
 * true: a rule gives rights and never takes any, so that their order decides nothing; a rule that is
 * not understood is refused as a whole; what is not known of a client matches no rule.
 */
#include "control/access.h"

#include <arpa/inet.h>
#include <pwd.h>
#include <stdatomic.h>
#include <string.h>

#include "base/bytes.h"
#include "base/errors.h"

typedef enum { WHO_ANY, WHO_TLS, WHO_IP, WHO_UID, WHO_PSK, WHO_DN, WHO_SAN } AccessWho;

typedef struct AccessRule {
    AccessWho who;
    uint8_t rights;
    uint8_t address_length, prefix; /* WHO_IP; prefix in bits */
    uint8_t address[16];
    uid_t uid;
    char *name; /* WHO_PSK, WHO_DN, WHO_SAN */
} AccessRule;

struct AccessRules {
    atomic_uint refs;
    bool tls_required;
    GArray *rules; /* AccessRule */
};

static const struct {
    const char *prefix;
    AccessWho who;
} KINDS[] = {
    {"ip:", WHO_IP}, {"uid:", WHO_UID}, {"psk:", WHO_PSK}, {"dn:", WHO_DN}, {"san:", WHO_SAN}};

static void clear_rule(void *rule)
{
    g_free(((AccessRule *)rule)->name);
}

AccessRules *access_rules_new(void)
{
    AccessRules *rules = g_new0(AccessRules, 1);
    atomic_init(&rules->refs, 1);
    rules->rules = g_array_new(FALSE, FALSE, sizeof(AccessRule));
    g_array_set_clear_func(rules->rules, clear_rule);
    return rules;
}

AccessRules *access_rules_ref(AccessRules *rules)
{
    atomic_fetch_add(&rules->refs, 1);
    return rules;
}

void access_rules_unref(AccessRules *rules)
{
    if (atomic_fetch_sub(&rules->refs, 1) == 1) {
        g_array_unref(rules->rules);
        g_free(rules);
    }
}

void access_rules_require_tls(AccessRules *rules)
{
    rules->tls_required = true;
}

/* Parsing. Where a function returns false, *problem says why, in words that follow the rule. */

static bool parse_number(const char *text, uint64_t maximum, uint64_t *value)
{
    return g_ascii_string_to_unsigned(text, 10, 0, maximum, value, NULL);
}

/* Clears what is behind the prefix: 10.1.2.3/8 is 10.0.0.0/8. */
static void mask_address(uint8_t *address, unsigned length, unsigned prefix)
{
    for (unsigned i = 0; i < length; i++) {
        unsigned bits = prefix > 8 * i ? prefix - 8 * i : 0;
        address[i] &= bits >= 8 ? 0xff : 0xff << (8 - bits);
    }
}

static bool parse_network(const char *text, AccessRule *rule, const char **problem)
{
    g_auto(GStrv) parts = g_strsplit(text, "/", 2);
    uint64_t prefix;
    *problem = "ip: must be an IPv4 or IPv6 address, or ADDRESS/PREFIX";
    if (parts[0] == NULL) {
        return false;
    }
    if (inet_pton(AF_INET, parts[0], rule->address) == 1) {
        rule->address_length = 4;
    } else if (inet_pton(AF_INET6, parts[0], rule->address) == 1) {
        rule->address_length = 16;
    } else {
        return false;
    }
    prefix = 8u * rule->address_length;
    if (parts[1] != NULL && !parse_number(parts[1], prefix, &prefix)) {
        *problem = "the prefix must be 0 to 32 bits for IPv4, 0 to 128 for IPv6";
        return false;
    }
    rule->prefix = prefix;
    mask_address(rule->address, rule->address_length, rule->prefix);
    return true;
}

static bool parse_uid(const char *text, AccessRule *rule, const char **problem)
{
    uint64_t number;
    if (parse_number(text, UINT32_MAX - 1, &number)) {
        rule->uid = number;
        return true;
    }
    const struct passwd *user = getpwnam(text);
    if (user == NULL) {
        *problem = "uid: must be a number or the name of a user of this host";
        return false;
    }
    rule->uid = user->pw_uid;
    return true;
}

static bool parse_name(const char *text, AccessRule *rule, const char **problem)
{
    if (*text == '\0' || !g_utf8_validate(text, -1, NULL)) {
        *problem = "a name of UTF-8 must follow the colon";
        return false;
    }
    rule->name = g_strdup(text);
    return true;
}

static bool parse_who(const char *text, AccessRule *rule, const char **problem)
{
    if (strcmp(text, "any") == 0 || strcmp(text, "tls") == 0) {
        rule->who = *text == 'a' ? WHO_ANY : WHO_TLS;
        return true;
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(KINDS); i++) {
        if (!g_str_has_prefix(text, KINDS[i].prefix)) {
            continue;
        }
        const char *value = text + strlen(KINDS[i].prefix);
        rule->who = KINDS[i].who;
        switch (rule->who) {
        case WHO_IP:
            return parse_network(value, rule, problem);
        case WHO_UID:
            return parse_uid(value, rule, problem);
        default:
            return parse_name(value, rule, problem);
        }
    }
    *problem = "the client must be any, tls, ip:, uid:, psk:, dn: or san:";
    return false;
}

static bool parse_right(const char *word, uint8_t *rights)
{
    static const struct {
        const char *word;
        uint8_t rights;
    } WORDS[] = {{"list", ACCESS_LIST},
                 {"read", ACCESS_READ},
                 {"write", ACCESS_READ | ACCESS_WRITE},
                 {"all", ACCESS_ALL},
                 {"none", ACCESS_NONE}};
    for (unsigned i = 0; i < G_N_ELEMENTS(WORDS); i++) {
        if (strcmp(word, WORDS[i].word) == 0) {
            *rights |= WORDS[i].rights;
            return true;
        }
    }
    return false;
}

static bool parse_rights(const char *text, AccessRule *rule, const char **problem)
{
    g_auto(GStrv) words = g_strsplit(text, ",", 8);
    *problem = "the rights must be list, read, write (joined by commas), all or none";
    for (unsigned i = 0; words[i] != NULL; i++) {
        if (!parse_right(words[i], &rule->rights)) {
            return false;
        }
    }
    return words[0] != NULL;
}

bool access_rule_parse(AccessRules *rules, const char *text, GError **error)
{
    AccessRule rule = {.who = WHO_ANY};
    const char *equals = strrchr(text, '=');
    const char *problem = "must be WHO=RIGHTS, as in ip:192.0.2.0/24=list,read";
    g_autofree char *who = equals != NULL ? g_strndup(text, equals - text) : NULL;
    if (rules->rules->len == ACCESS_RULES_MAX) {
        problem = "there are 4096 rules already: must be no more";
    } else if (who != NULL && parse_rights(equals + 1, &rule, &problem) &&
               parse_who(who, &rule, &problem)) {
        g_array_append_val(rules->rules, rule);
        return true;
    }
    g_autofree char *shown = g_strescape(text, NULL);
    return error_set(error, EINVAL, "access rule '%s': %s", shown, problem);
}

/* Matching */

static bool matches_network(const AccessRule *rule, const AccessPeer *peer)
{
    uint8_t network[16];
    if (peer->address_length != rule->address_length) {
        return false;
    }
    memcpy(network, peer->address, rule->address_length);
    mask_address(network, rule->address_length, rule->prefix);
    return memcmp(network, rule->address, rule->address_length) == 0;
}

static bool matches_other_name(const AccessRule *rule, const AccessPeer *peer)
{
    for (const char *const *name = peer->names; name != NULL && *name != NULL; name++) {
        if (g_ascii_strcasecmp(*name, rule->name) == 0) {
            return true;
        }
    }
    return false;
}

static bool matches(const AccessRule *rule, const AccessPeer *peer)
{
    switch (rule->who) {
    case WHO_ANY:
        return true;
    case WHO_TLS:
        return peer->tls;
    case WHO_IP:
        return matches_network(rule, peer);
    case WHO_UID:
        return peer->has_uid && peer->uid == rule->uid;
    case WHO_PSK:
        return peer->psk != NULL && strcmp(peer->psk, rule->name) == 0;
    case WHO_DN:
        return peer->dn != NULL && strcmp(peer->dn, rule->name) == 0;
    case WHO_SAN:
        return matches_other_name(rule, peer);
    }
    return false;
}

unsigned access_rights(const AccessRules *rules, const AccessPeer *peer)
{
    if (rules == NULL) {
        return ACCESS_ALL;
    }
    if (rules->tls_required && !peer->tls) {
        return ACCESS_NONE;
    }
    unsigned rights = rules->rules->len == 0 ? ACCESS_ALL : ACCESS_NONE;
    for (unsigned i = 0; i < rules->rules->len; i++) {
        const AccessRule *rule = &g_array_index(rules->rules, AccessRule, i);
        if (matches(rule, peer)) {
            rights |= rule->rights;
        }
    }
    return rights;
}

static bool has_rule(const AccessRules *rules, AccessWho who)
{
    for (unsigned i = 0; i < rules->rules->len; i++) {
        if (g_array_index(rules->rules, AccessRule, i).who == who) {
            return true;
        }
    }
    return false;
}

bool access_rules_need_tls(const AccessRules *rules)
{
    return rules->tls_required || has_rule(rules, WHO_TLS);
}

bool access_rules_need_psk(const AccessRules *rules)
{
    return has_rule(rules, WHO_PSK);
}

bool access_rules_need_certificate(const AccessRules *rules)
{
    return has_rule(rules, WHO_DN) || has_rule(rules, WHO_SAN);
}
