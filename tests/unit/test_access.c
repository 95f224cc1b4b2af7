/* Access rules: what is understood, what is refused, whom they match. */
#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

#include "control/access.h"
#include "tests/unit/suite.h"

static AccessRules *rules_of(const char *const *texts)
{
    AccessRules *rules = access_rules_new();
    for (unsigned i = 0; texts[i] != NULL; i++) {
        g_autoptr(GError) error = NULL;
        ck_assert_msg(access_rule_parse(rules, texts[i], &error), "%s",
                      error != NULL ? error->message : "");
    }
    return rules;
}

static unsigned rights_of(const char *text, const AccessPeer *peer)
{
    g_autoptr(AccessRules) rules = rules_of((const char *const[]){text, NULL});
    return access_rights(rules, peer);
}

static AccessPeer from(const char *address)
{
    AccessPeer peer = {.address_length = strchr(address, ':') != NULL ? 16 : 4};
    int family = peer.address_length == 16 ? AF_INET6 : AF_INET;
    ck_assert_int_eq(inet_pton(family, address, peer.address), 1);
    return peer;
}

START_TEST(access_without_rules_is_everybodys)
{
    g_autoptr(AccessRules) rules = access_rules_new();
    AccessPeer nobody = {0};
    ck_assert_uint_eq(access_rights(NULL, &nobody), ACCESS_ALL);
    ck_assert_uint_eq(access_rights(rules, &nobody), ACCESS_ALL);
}
END_TEST

START_TEST(access_rights_are_words)
{
    AccessPeer peer = {0};
    ck_assert_uint_eq(rights_of("any=all", &peer), ACCESS_ALL);
    ck_assert_uint_eq(rights_of("any=none", &peer), ACCESS_NONE);
    ck_assert_uint_eq(rights_of("any=list", &peer), ACCESS_LIST);
    ck_assert_uint_eq(rights_of("any=read", &peer), ACCESS_READ);
    ck_assert_uint_eq(rights_of("any=write", &peer), ACCESS_READ | ACCESS_WRITE);
    ck_assert_uint_eq(rights_of("any=list,read", &peer), ACCESS_LIST | ACCESS_READ);
    ck_assert_uint_eq(rights_of("any=write,list", &peer), ACCESS_ALL);
}
END_TEST

START_TEST(access_networks_of_every_prefix)
{
    char text[64];
    AccessPeer low = from("10.170.85.255");
    for (unsigned prefix = 0; prefix <= 32; prefix++) {
        AccessPeer other = low;
        snprintf(text, sizeof text, "ip:10.170.85.255/%u=read", prefix);
        ck_assert_uint_eq(rights_of(text, &low), ACCESS_READ);
        for (unsigned bit = 0; bit < 32; bit++) {
            other = low;
            other.address[bit / 8] ^= 0x80 >> bit % 8;
            ck_assert_uint_eq(rights_of(text, &other), bit < prefix ? ACCESS_NONE : ACCESS_READ);
        }
    }
    AccessPeer six = from("2001:db8::1");
    for (unsigned prefix = 0; prefix <= 128; prefix++) {
        snprintf(text, sizeof text, "ip:2001:db8::1/%u=read", prefix);
        for (unsigned bit = 0; bit < 128; bit += 3) {
            AccessPeer other = six;
            other.address[bit / 8] ^= 0x80 >> bit % 8;
            ck_assert_uint_eq(rights_of(text, &other), bit < prefix ? ACCESS_NONE : ACCESS_READ);
        }
    }
}
END_TEST

START_TEST(access_families_do_not_match_each_other)
{
    AccessPeer four = from("192.0.2.1"), six = from("2001:db8::1"), local = {0};
    ck_assert_uint_eq(rights_of("ip:0.0.0.0/0=read", &four), ACCESS_READ);
    ck_assert_uint_eq(rights_of("ip:0.0.0.0/0=read", &six), ACCESS_NONE);
    ck_assert_uint_eq(rights_of("ip:::/0=read", &six), ACCESS_READ);
    ck_assert_uint_eq(rights_of("ip:::/0=read", &four), ACCESS_NONE);
    ck_assert_uint_eq(rights_of("ip:::/0=read", &local), ACCESS_NONE);
    ck_assert_uint_eq(rights_of("ip:0.0.0.0/0=read", &local), ACCESS_NONE);
}
END_TEST

START_TEST(access_users_by_number_and_name)
{
    AccessPeer root = {.has_uid = true, .uid = 0}, other = {.has_uid = true, .uid = 1000};
    AccessPeer unknown = {0};
    ck_assert_uint_eq(rights_of("uid:0=read", &root), ACCESS_READ);
    ck_assert_uint_eq(rights_of("uid:root=read", &root), ACCESS_READ);
    ck_assert_uint_eq(rights_of("uid:0=read", &other), ACCESS_NONE);
    ck_assert_uint_eq(rights_of("uid:1000=read", &other), ACCESS_READ);
    ck_assert_uint_eq(rights_of("uid:0=read", &unknown), ACCESS_NONE);
}
END_TEST

START_TEST(access_names_of_tls)
{
    const char *const names[] = {"client.example.org", "192.0.2.1", NULL};
    AccessPeer peer = {.tls = true, .dn = "CN=client,O=Example\\, Inc.", .names = names};
    AccessPeer key = {.tls = true, .psk = "alice"}, nobody = {0};
    ck_assert_uint_eq(rights_of("dn:CN=client,O=Example\\, Inc.=read", &peer), ACCESS_READ);
    ck_assert_uint_eq(rights_of("dn:CN=client=read", &peer), ACCESS_NONE);
    ck_assert_uint_eq(rights_of("dn:cn=client,O=Example\\, Inc.=read", &peer), ACCESS_NONE);
    ck_assert_uint_eq(rights_of("san:CLIENT.example.org=read", &peer), ACCESS_READ);
    ck_assert_uint_eq(rights_of("san:192.0.2.1=read", &peer), ACCESS_READ);
    ck_assert_uint_eq(rights_of("san:example.org=read", &peer), ACCESS_NONE);
    ck_assert_uint_eq(rights_of("psk:alice=read", &key), ACCESS_READ);
    ck_assert_uint_eq(rights_of("tls=read", &key), ACCESS_READ);
    ck_assert_uint_eq(rights_of("tls=read", &nobody), ACCESS_NONE);
    ck_assert_uint_eq(rights_of("psk:Alice=read", &key), ACCESS_NONE);
    ck_assert_uint_eq(rights_of("psk:alice=read", &peer), ACCESS_NONE);
    ck_assert_uint_eq(rights_of("dn:CN=client=read", &nobody), ACCESS_NONE);
    ck_assert_uint_eq(rights_of("san:client.example.org=read", &nobody), ACCESS_NONE);
}
END_TEST

START_TEST(access_rules_add_up_in_any_order)
{
    AccessPeer peer = from("192.0.2.1");
    peer.has_uid = true;
    peer.uid = 7;
    const char *const texts[] = {"any=list", "uid:7=read", "ip:192.0.2.0/24=none", NULL};
    const char *const turned[] = {texts[2], texts[1], texts[0], NULL};
    g_autoptr(AccessRules) rules = rules_of(texts);
    g_autoptr(AccessRules) other = rules_of(turned);
    ck_assert_uint_eq(access_rights(rules, &peer), ACCESS_LIST | ACCESS_READ);
    ck_assert_uint_eq(access_rights(other, &peer), ACCESS_LIST | ACCESS_READ);
}
END_TEST

START_TEST(access_tls_required)
{
    AccessPeer plain = {0}, secret = {.tls = true};
    g_autoptr(AccessRules) rules = access_rules_new();
    access_rules_require_tls(rules);
    ck_assert_uint_eq(access_rights(rules, &plain), ACCESS_NONE);
    ck_assert_uint_eq(access_rights(rules, &secret), ACCESS_ALL);
    ck_assert(access_rule_parse(rules, "any=read", NULL));
    ck_assert_uint_eq(access_rights(rules, &plain), ACCESS_NONE);
    ck_assert_uint_eq(access_rights(rules, &secret), ACCESS_READ);
}
END_TEST

START_TEST(access_knows_what_it_needs)
{
    g_autoptr(AccessRules) plain = rules_of((const char *const[]){"any=all", "uid:0=all", NULL});
    g_autoptr(AccessRules) psk = rules_of((const char *const[]){"any=all", "psk:a=all", NULL});
    g_autoptr(AccessRules) dn = rules_of((const char *const[]){"dn:CN=a=all", NULL});
    g_autoptr(AccessRules) san = rules_of((const char *const[]){"san:a=all", NULL});
    ck_assert(!access_rules_need_psk(plain) && !access_rules_need_certificate(plain));
    ck_assert(access_rules_need_psk(psk) && !access_rules_need_certificate(psk));
    ck_assert(access_rules_need_certificate(dn) && access_rules_need_certificate(san));
}
END_TEST

START_TEST(access_nonsense_is_refused)
{
    static const char *const TEXTS[] = {
        "",
        "=",
        "any",
        "any=",
        "any=reed",
        "any=read,",
        "any=,read",
        "any=read read",
        "any=READ",
        "Any=read",
        "=read",
        "everyone=all",
        "ip=read",
        "ip:=read",
        "ip:1.2.3=read",
        "ip:1.2.3.4/33=read",
        "ip:1.2.3.4/=read",
        "ip:1.2.3.4/-1=read",
        "ip:::1/129=read",
        "ip:host=read",
        "ip:1.2.3.4/8/8=read",
        "uid:=read",
        "uid:-1=read",
        "uid:4294967295=read",
        "uid:no such user=read",
        "psk:=read",
        "dn:=read",
        "san:=read",
        "psk:\xff=read",
        "any=all,all,all,all,all,all,all,all,all",
    };
    g_autoptr(AccessRules) rules = access_rules_new();
    for (unsigned i = 0; i < G_N_ELEMENTS(TEXTS); i++) {
        g_autoptr(GError) error = NULL;
        ck_assert_msg(!access_rule_parse(rules, TEXTS[i], &error), "'%s' was taken", TEXTS[i]);
        ck_assert_ptr_nonnull(strstr(error->message, "must"));
        ck_assert_ptr_null(strchr(error->message, '\n'));
    }
    AccessPeer nobody = {0};
    ck_assert_uint_eq(access_rights(rules, &nobody), ACCESS_ALL);
}
END_TEST

START_TEST(access_rules_are_bounded)
{
    g_autoptr(AccessRules) rules = access_rules_new();
    for (unsigned i = 0; i < ACCESS_RULES_MAX; i++) {
        ck_assert(access_rule_parse(rules, "any=read", NULL));
    }
    ck_assert(!access_rule_parse(rules, "any=read", NULL));
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("access");
    tcase_add_test(tcase, access_without_rules_is_everybodys);
    tcase_add_test(tcase, access_rights_are_words);
    tcase_add_test(tcase, access_networks_of_every_prefix);
    tcase_add_test(tcase, access_families_do_not_match_each_other);
    tcase_add_test(tcase, access_users_by_number_and_name);
    tcase_add_test(tcase, access_names_of_tls);
    tcase_add_test(tcase, access_rules_add_up_in_any_order);
    tcase_add_test(tcase, access_tls_required);
    tcase_add_test(tcase, access_knows_what_it_needs);
    tcase_add_test(tcase, access_nonsense_is_refused);
    tcase_add_test(tcase, access_rules_are_bounded);
    return suite_run("access", tcase);
}
