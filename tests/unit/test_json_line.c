/*
 * Lines of JSON from somebody who may mean no good; the arguments of a verb.
 */
#include "control/json-line.h"

#include <string.h>

#include "base/errors.h"
#include "control/control.h"
#include "tests/unit/suite.h"

static JsonObject *parse(const char *line, GError **error)
{
    return json_line_parse(line, strlen(line), 4, error);
}

static void accepts(const char *line)
{
    GError *error = NULL;
    JsonObject *object = parse(line, &error);
    ck_assert_msg(object != NULL, "%s: %s", line, error != NULL ? error->message : "no error");
    json_object_unref(object);
}

static void refuses(const char *line, const char *text)
{
    GError *error = NULL;
    ck_assert_msg(parse(line, &error) == NULL, "%s is taken", line);
    ck_assert_int_eq(error->code, EINVAL);
    ck_assert_msg(strstr(error->message, text) != NULL, "%s: %s", line, error->message);
    g_error_free(error);
}

START_TEST(json_line_takes_objects)
{
    accepts("{}");
    accepts(" {\"a\": [1, -2.5e3, true, null], \"b\": {\"c\": \"\\\"{[\\\\\"}}\r");
    accepts("{\"a\":\"/* no comment */ 'x' [[[[[[[[\"}");
    accepts("{\"a\":[[[1]]]}");
}
END_TEST

START_TEST(json_line_refuses_what_is_none)
{
    refuses("", "JSON object");
    refuses("  ", "JSON object");
    refuses("[]", "JSON object");
    refuses("\"x\"", "JSON object");
    refuses("{", "no JSON");
    refuses("{\"a\"}", "no JSON");
    refuses("{\"a\":\"", "no JSON");
    refuses("{\"a\":\"\\", "no JSON");
    refuses("{} /* x */", "byte 3");
    refuses("{'a':1}", "byte 1");
    refuses("var a = {}", "byte 6");
    refuses("\xff{}", "UTF-8");
    GError *error = NULL;
    ck_assert(json_line_parse("{\"a\0\":1}", 9, 4, &error) == NULL);
    g_clear_error(&error);
}
END_TEST

START_TEST(json_line_depth_is_bounded)
{
    refuses("{\"a\":[[[[1]]]]}", "nested");
    refuses("[[[[[", "nested");
    refuses("{\"\\\"\":[[[[", "nested");
    refuses("{\"\\\\\":[[[[", "nested");
    accepts("{\"a\":[],\"b\":[],\"c\":[],\"d\":[],\"e\":[]}");
}
END_TEST

START_TEST(json_line_prints_one_line)
{
    JsonObject *object = json_object_new();
    json_object_set_string_member(object, "a", "x\ny");
    char *text = json_line_print(object);
    ck_assert_str_eq(text, "{\"a\":\"x\\ny\"}\n");
    g_free(text);
    json_object_unref(object);
}
END_TEST

START_TEST(arguments_by_type)
{
    JsonObject *object = parse(
        "{\"s\":\"x\",\"t\":true,\"f\":\"false\",\"n\":7,\"m\":\"8\",\"neg\":-1,\"o\":{}}", NULL);
    const char *string = "old";
    bool truth = false;
    uint64_t number = 3;
    ck_assert(control_get_string(object, "absent", &string, NULL));
    ck_assert_str_eq(string, "old");
    ck_assert(control_get_string(object, "s", &string, NULL));
    ck_assert_str_eq(string, "x");
    ck_assert(!control_get_string(object, "n", &string, NULL));
    ck_assert(!control_get_string(object, "o", &string, NULL));
    ck_assert(control_get_bool(object, "t", &truth, NULL) && truth);
    ck_assert(control_get_bool(object, "absent", &truth, NULL) && truth);
    ck_assert(control_get_bool(object, "f", &truth, NULL) && !truth);
    ck_assert(!control_get_bool(object, "s", &truth, NULL));
    ck_assert(!control_get_bool(object, "n", &truth, NULL));
    ck_assert(control_get_uint(object, "absent", &number, NULL) && number == 3);
    ck_assert(control_get_uint(object, "n", &number, NULL) && number == 7);
    ck_assert(control_get_uint(object, "m", &number, NULL) && number == 8);
    ck_assert(!control_get_uint(object, "neg", &number, NULL));
    ck_assert(!control_get_uint(object, "s", &number, NULL));
    ck_assert(!control_get_uint(object, "o", &number, NULL));
    json_object_unref(object);
}
END_TEST

int main(void)
{
    TCase *all = tcase_create("json_line");
    tcase_add_test(all, json_line_takes_objects);
    tcase_add_test(all, json_line_refuses_what_is_none);
    tcase_add_test(all, json_line_depth_is_bounded);
    tcase_add_test(all, json_line_prints_one_line);
    tcase_add_test(all, arguments_by_type);
    return suite_run("json_line", all);
}
