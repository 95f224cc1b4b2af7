/*
 * Access rules: which clients may see, read and write an export. Pure: no socket, no TLS. [any]
 *
 *      WHO=RIGHTS
 *
 *      any                     every client
 *      tls                     every client of a TLS session
 *      ip:ADDRESS[/PREFIX]     by its address, IPv4 or IPv6
 *      uid:NUMBER, uid:NAME    by its user, on a unix socket
 *      psk:USER                by the user of its pre-shared key (TLS)
 *      dn:NAME                 by the name in its certificate, as RFC 4514 writes it (TLS)
 *      san:NAME                by another name in it: host, e-mail, URI or address (TLS)
 *
 *      list, read, write, or several joined by commas; all; none
 *
 * A client has what all rules that it matches give it, together; none of them matches: nothing. To
 * write means to read, too. An export without rules is everybody's.
 */
#ifndef CONTROL_ACCESS_H
#define CONTROL_ACCESS_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define ACCESS_RULES_MAX 4096

typedef enum {
    ACCESS_NONE = 0,
    ACCESS_LIST = 1 << 0,
    ACCESS_READ = 1 << 1,
    ACCESS_WRITE = 1 << 2, /* with ACCESS_READ */
    ACCESS_ALL = ACCESS_LIST | ACCESS_READ | ACCESS_WRITE,
} AccessRights;

/* Who a client is, as far as it is known. All zero: nothing is. Strings are the caller's. */
typedef struct AccessPeer {
    unsigned address_length; /* 4 or 16; 0: it has none */
    uint8_t address[16];
    bool has_uid;
    uid_t uid;
    bool tls;                 /* nobody else reads what passes */
    const char *psk;          /* or NULL */
    const char *dn;           /* of a certificate that was verified; or NULL */
    const char *const *names; /* the others in it, ended by NULL; or NULL */
} AccessPeer;

typedef struct AccessRules AccessRules;

/* No rules, one reference. Rules are added before others see it. */
AccessRules *access_rules_new(void);
AccessRules *access_rules_ref(AccessRules *rules);
void access_rules_unref(AccessRules *rules);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(AccessRules, access_rules_unref)

/* Adds the rule that text is. */
bool access_rule_parse(AccessRules *rules, const char *text, GError **error);

/* Without TLS nobody has any right (tls=require of an export). */
void access_rules_require_tls(AccessRules *rules);

/* Whether a rule asks for this; so that one that can never match is refused. */
bool access_rules_need_tls(const AccessRules *rules);
bool access_rules_need_psk(const AccessRules *rules);
bool access_rules_need_certificate(const AccessRules *rules);

/* What the peer may. rules NULL: ACCESS_ALL. */
unsigned access_rights(const AccessRules *rules, const AccessPeer *peer);

#endif
