/* src/base/errors.c, src/base/log.c */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/errors.h"
#include "base/log-sink.h"
#include "base/log.h"
#include "tests/unit/suite.h"

START_TEST(errors_carry_code_and_text)
{
    g_autoptr(GError) error = NULL;
    ck_assert(!error_set(&error, EUCLEAN, "%s: cluster_bits is %d", "a.qcow2", 99));
    ck_assert(g_error_matches(error, COWNBD_ERROR, EUCLEAN));
    ck_assert_str_eq(error->message, "a.qcow2: cluster_bits is 99");
    g_clear_error(&error);
    ck_assert(!error_set_errno(&error, ENOENT, "%s", "a.qcow2"));
    ck_assert(g_error_matches(error, COWNBD_ERROR, ENOENT));
    ck_assert_str_eq(error->message, "a.qcow2: No such file or directory");
    ck_assert(!error_set(NULL, EINVAL, "nobody listens"));
}
END_TEST

/* An image chooses the name of its backing: with line ends and escapes in it, one error was several lines. */
START_TEST(errors_are_one_line_whatever_they_quote)
{
    g_autoptr(GError) error = NULL;
    ck_assert(!error_set(&error, ENOENT, "a.qcow2: '%s'", "\033[2J\nb\r"));
    ck_assert_str_eq(error->message, "a.qcow2: '?[2J?b?'");
}
END_TEST

/* Controls of 8 bits are one character of UTF-8; so is what turns the text behind it around. */
START_TEST(errors_talk_to_no_terminal)
{
    static const struct {
        const char *quoted, *shown;
    } texts[] = {
        {"b\u00e4se \u2713", "b\u00e4se \u2713"},
        {"\302\2332Jx", "??2Jx"},
        {"\342\200\256x", "???x"},
        {"QFI\373", "QFI?"},
        {"\342\200", "??"},
        {"\177\377\300\200", "????"},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(texts); i++) {
        g_autofree char *copy = g_strdup(texts[i].quoted);
        log_make_harmless(copy);
        ck_assert_str_eq(copy, texts[i].shown);
    }
}
END_TEST

/* What run writes to stderr; the caller frees. */
static char *captured(void (*run)(void))
{
    char path[] = "/tmp/cownbd-test-log-XXXXXX";
    int file = mkstemp(path);
    int saved = dup(STDERR_FILENO);
    ck_assert(file >= 0 && saved >= 0);
    dup2(file, STDERR_FILENO);
    run();
    dup2(saved, STDERR_FILENO);
    char *text = NULL;
    ck_assert(g_file_get_contents(path, &text, NULL, NULL));
    close(saved);
    close(file);
    unlink(path);
    return text;
}

static void log_some(void)
{
    log_error("%s", "one\ntwo\033[m");
    log_info("not shown");
    log_set_level(LOG_LEVEL_DEBUG);
    log_debug("shown %d", 3);
    log_set_level(LOG_LEVEL_WARNING);
}

START_TEST(log_writes_one_line_an_event_up_to_its_level)
{
    g_autofree char *text = captured(log_some);
    ck_assert_str_eq(text, "cownbd: error: one?two?[m\ncownbd: debug: shown 3\n");
}
END_TEST

static void log_many(void)
{
    for (int i = 0; i < 1000; i++) {
        log_limited(LOG_LEVEL_ERROR, "again");
        if (i == 998) {
            sleep(1);
        }
    }
}

START_TEST(log_limited_leaves_out_and_says_so)
{
    g_autofree char *text = captured(log_many);
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    unsigned count = g_strv_length(lines) - 1;
    ck_assert_uint_ge(count, 12);
    ck_assert_uint_le(count, 32); /* the second may have turned once or twice */
    ck_assert_ptr_nonnull(strstr(text, "more lines like the next one were left out"));
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("errors");
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, errors_carry_code_and_text);
    tcase_add_test(tcase, errors_are_one_line_whatever_they_quote);
    tcase_add_test(tcase, errors_talk_to_no_terminal);
    tcase_add_test(tcase, log_writes_one_line_an_event_up_to_its_level);
    tcase_add_test(tcase, log_limited_leaves_out_and_says_so);
    return suite_run("errors", tcase);
}
