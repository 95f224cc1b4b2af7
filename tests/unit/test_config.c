/* Configurations: what is declared, and each mistake with its line. */
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "control/config.h"
#include "tests/unit/suite.h"

static const ConfigKey server_keys[] = {
    {"listen", CONFIG_LIST}, {"threads", CONFIG_NUMBER}, {"control", CONFIG_TEXT},
    {"once", CONFIG_FLAG},   {NULL, CONFIG_TEXT},
};

static Config *parse_bytes(const char *text, size_t length)
{
    Config *config = config_new(server_keys);
    config_add(config, "/etc/x.conf", text, length);
    config_finish(config);
    return config;
}

static Config *parse(const char *text)
{
    return parse_bytes(text, strlen(text));
}

static const ConfigExport *export_at(const Config *config, unsigned i)
{
    ck_assert_uint_gt(config->exports->len, i);
    return g_ptr_array_index(config->exports, i);
}

START_TEST(config_says_what_is_declared)
{
    g_autoptr(Config) config = parse("# all of it\n"
                                     "[server]\n"
                                     " listen = a:1 ; unix:/b\\;c \n"
                                     "threads=3\n"
                                     "once=true\n"
                                     "\n"
                                     "[export one]\r\n"
                                     "image=disk.qcow2\r\n"
                                     "description=\\sa=b [c]\r\n"
                                     "secret-file=keys/a;base.qcow2=/b;../x/y=c\r\n"
                                     "[export two words]\n"
                                     "node=n\n"
                                     "[node n]\n"
                                     "driver=image\n"
                                     "file=/abs.img\n"
                                     "format=raw\n"
                                     "read-only=1\n"
                                     "[directory d]\n"
                                     "path=/srv\n"
                                     "formats=qcow2;raw\n"
                                     "[server]\n"
                                     "control=none");
    ck_assert_uint_eq(config->errors.all->len, 0);
    ck_assert_uint_eq(config->settings->len, 4);
    const ConfigSetting *listen = config_find_setting(config, "listen");
    ck_assert_str_eq(listen->values[0], "a:1");
    ck_assert_str_eq(listen->values[1], "unix:/b;c");
    ck_assert_uint_eq(listen->place.line, 3);
    ck_assert_str_eq(config_find_setting(config, "threads")->values[0], "3");
    ck_assert_str_eq(config_find_setting(config, "once")->values[0], "true");
    ck_assert_str_eq(config_find_setting(config, "control")->values[0], "none");
    ck_assert_str_eq(export_at(config, 0)->name, "one");
    ck_assert_str_eq(export_at(config, 0)->image, "/etc/disk.qcow2");
    ck_assert_str_eq(export_at(config, 0)->description, " a=b [c]");
    ck_assert_str_eq(export_at(config, 0)->secret_files[0], "/etc/keys/a");
    ck_assert_str_eq(export_at(config, 0)->secret_files[1], "base.qcow2=/b");
    ck_assert_str_eq(export_at(config, 0)->secret_files[2], "/x/y=/etc/c");
    ck_assert_ptr_null(export_at(config, 0)->secret_files[3]);
    ck_assert_ptr_null(export_at(config, 1)->secret_files);
    ck_assert(!export_at(config, 0)->read_only && export_at(config, 0)->format == NULL);
    ck_assert_str_eq(export_at(config, 1)->name, "two words");
    ck_assert_str_eq(export_at(config, 1)->image, "/abs.img");
    ck_assert_str_eq(export_at(config, 1)->format, "raw");
    ck_assert(export_at(config, 1)->read_only);
    const ConfigDirectory *directory = g_ptr_array_index(config->directories, 0);
    ck_assert_str_eq(directory->path, "/srv");
    ck_assert_str_eq(directory->formats[1], "raw");
}
END_TEST

START_TEST(config_of_nothing_is_no_mistake)
{
    g_autoptr(Config) config = parse("");
    ck_assert_uint_eq(config->errors.all->len, 0);
}
END_TEST

/* A text that is wrong in one place: in that line, with those words. */
static const struct {
    const char *text;
    unsigned line;
    const char *words;
} mistakes[] = {
    {"a=1\n", 1, "before the first section"},
    {"[server]\nnonsense\n", 2, "'nonsense' is no entry"},
    {"[server]\n=x\n", 2, "is no entry"},
    {"[server]\nthr eads=1\n", 2, "is no entry"},
    {"[server]\nThreads=1\n", 2, "is no entry"},
    {"[server]\nthreads[de]=1\n", 2, "is no entry"},
    {"[server]\nthreads=one\n", 2, "must be a whole number"},
    {"[server]\nthreads=99999999999999999999\n", 2, "must be a whole number"},
    {"[server]\nonce=maybe\n", 2, "must be true or false"},
    {"[server]\nlisten=\n", 2, "none of them empty"},
    {"[server]\nlisten=a;;b\n", 2, "none of them empty"},
    {"[server]\ncontrol=\n", 2, "control is empty"},
    {"[server]\ncontrol=a\\x\n", 2, "backslash"},
    {"[server]\nlisten=a\nlisten=b\n", 3, "stands at /etc/x.conf:2 already"},
    {"[server]\nlissten=a\n", 2, "must be one of listen, threads, control, once"},
    {"[server x]\n", 1, "must be [server]"},
    {"[server\n", 1, "is no section"},
    {"[]\n", 1, "is no section"},
    {"[\n", 1, "is no section"},
    {"[ex]port a]\n", 1, "is no section"},
    {"[export a\tb]\nimage=x\n", 1, "is no section"},
    {"[export]\nimage=x\n", 1, "has 0 bytes"},
    {"[exports a]\nimage=x\n", 1, "must be server, export, directory or node"},
    {"[export a]\n", 1, "neither image and node"},
    {"[export a]\nimage=x\nimages=y\n", 3, "must be one of image, node"},
    {"[export a]\nimage=x\nformat=qcow9\n", 3, "format 'qcow9' is not known"},
    {"[export a]\nimage=x\nread-only=ja\n", 3, "must be true or false"},
    {"[export a]\nimage=x\n[export a]\nimage=y\n", 3, "stands at /etc/x.conf:1 already"},
    {"[export a]\nimage=x\n[export b]\nimage=./x\n", 3, "is export 'a' at /etc/x.conf:1"},
    {"[export a]\nimage=x\n[export b]\nimage=x\nread-only=true\n", 3, "is export 'a'"},
    {"[export a]\nnode=n\n", 2, "there is no node 'n'"},
    {"[export a]\nnode=n\nimage=x\n[node n]\ndriver=image\nfile=y\n", 2, "has both"},
    {"[export a]\nnode=n\nformat=raw\n[node n]\ndriver=image\nfile=y\n", 3, "belongs to the node"},
    {"[export a]\nnode=n\n[export b]\nnode=n\n[node n]\ndriver=image\nfile=y\n", 3,
     "is export 'a'"},
    {"[node n]\nfile=y\n", 1, "has no driver"},
    {"[node n]\ndriver=image\n", 1, "has no file"},
    {"[node n]\ndriver=throttle\n", 2, "driver 'throttle' is not known: must be one of image"},
    {"[node n]\ndriver=image\nfile=y\niops=3\n", 4, "must be one of driver, file"},
    {"[directory d]\n", 1, "has no path"},
    {"[directory d]\npath=/x\nformats=raw;x\n", 3, "format 'x' is not known"},
    {"[directory d]\npath=/x\nname=raw\n", 3, "must be one of path, formats"},
    {"[server]\n\xff\n", 2, "UTF-8"},
};

START_TEST(config_tells_each_mistake_with_its_line)
{
    g_autoptr(Config) config = parse(mistakes[_i].text);
    g_autofree char *all = config_errors_text(&config->errors);
    ck_assert_msg(config->errors.all->len == 1, "%s: %s", mistakes[_i].text, all);
    const ConfigError *error = g_ptr_array_index(config->errors.all, 0);
    ck_assert_msg(strstr(error->text, mistakes[_i].words) != NULL, "%s: %s", mistakes[_i].text,
                  all);
    ck_assert_msg(error->place.line == mistakes[_i].line, "%s: %s", mistakes[_i].text, all);
    ck_assert_str_eq(error->place.file, "/etc/x.conf");
}
END_TEST

START_TEST(config_tells_all_mistakes_in_order)
{
    g_autoptr(Config) config = parse("[export a]\nnode=x\n[nonsense]\n[server]\nthreads=x\n"
                                     "[node y]\ndriver=loop\nchild=y\n");
    g_autofree char *all = config_errors_text(&config->errors);
    ck_assert_str_eq(all,
                     "/etc/x.conf:2: there is no node 'x': declare [node x]\n"
                     "/etc/x.conf:3: section [nonsense] is not known: must be server, export, "
                     "directory or node\n"
                     "/etc/x.conf:5: threads is 'x': must be a whole number\n"
                     "/etc/x.conf:7: driver 'loop' is not known: must be one of image\n"
                     "/etc/x.conf:8: node 'y' is part of a cycle: a node must not lead back to "
                     "itself");
}
END_TEST

START_TEST(config_finds_cycles_of_any_length)
{
    for (unsigned length = 1; length < 200; length++) {
        g_autoptr(GString) text = g_string_new(NULL);
        for (unsigned i = 0; i < length; i++) {
            g_string_append_printf(text, "[node n%u]\ndriver=x\nchild=n%u\n", i, (i + 1) % length);
        }
        g_autoptr(Config) config = parse(text->str);
        g_autofree char *all = config_errors_text(&config->errors);
        ck_assert_msg(strstr(all, length <= 64 ? "part of a cycle" : "too deep") != NULL ||
                          config->errors.more > 0,
                      "%s", all);
    }
}
END_TEST

START_TEST(config_zero_bytes_are_no_text)
{
    g_autoptr(Config) config = parse_bytes("[server]\n\nonce=\0true\n", 21);
    g_autofree char *all = config_errors_text(&config->errors);
    ck_assert_str_eq(all,
                     "/etc/x.conf:3: this is no text: the file must be UTF-8 without zero bytes");
}
END_TEST

START_TEST(config_huge_files_have_an_end)
{
    g_autoptr(GString) text = g_string_new(NULL);
    for (unsigned i = 0; i < 20000; i++) {
        g_string_append_printf(text, "[export e%u]\nimage=i%u\n", i, i);
    }
    g_autoptr(Config) sections = parse(text->str);
    ck_assert_uint_eq(sections->exports->len, 10000);
    ck_assert_uint_eq(sections->errors.all->len, CONFIG_ERRORS_MAX);
    ck_assert_uint_eq(sections->errors.more, 10000 - CONFIG_ERRORS_MAX);
    g_string_assign(text, "[server]\n");
    for (unsigned i = 0; i < 20000; i++) {
        g_string_append_printf(text, "k%u=1\n", i);
    }
    g_autoptr(Config) keys = parse(text->str);
    ck_assert_uint_eq(keys->errors.all->len, CONFIG_ERRORS_MAX);
    g_autofree char *line = g_strnfill(1 << 20, 'x');
    g_autoptr(Config) longest = parse(line);
    g_autofree char *all = config_errors_text(&longest->errors);
    ck_assert_uint_lt(strlen(all), 200);
}
END_TEST

/* Files */

static char *put(const char *folder, const char *name, const char *text)
{
    char *path = g_build_filename(folder, name, NULL);
    ck_assert(g_file_set_contents(path, text, -1, NULL));
    return path;
}

START_TEST(config_reads_the_folder_beside_it_in_order)
{
    g_autofree char *folder = g_dir_make_tmp("cownbd-config-XXXXXX", NULL);
    g_autofree char *more = g_build_filename(folder, "conf.d", NULL);
    ck_assert_int_eq(mkdir(more, 0700), 0);
    g_autofree char *main_file =
        put(folder, "x.conf", "[server]\nthreads=2\n[export a]\nimage=1\n");
    g_autofree char *second = put(more, "20.conf", "[export c]\nimage=3\n[server]\nthreads=4\n");
    g_autofree char *first = put(more, "10.conf", "[export b]\nimage=2\n");
    g_autofree char *other = put(more, "30.conf~", "nonsense");
    g_autoptr(Config) config = config_read(main_file, server_keys);
    ck_assert_str_eq(export_at(config, 1)->name, "b");
    ck_assert_str_eq(export_at(config, 2)->name, "c");
    ck_assert(g_str_has_suffix(export_at(config, 2)->image, "/conf.d/3"));
    g_autofree char *all = config_errors_text(&config->errors);
    g_autofree char *expected = g_strdup_printf(
        "%s:4: key 'threads' stands at %s:2 already: leave one of them out", second, main_file);
    ck_assert_str_eq(all, expected);
    unlink(main_file);
    unlink(first);
    unlink(second);
    unlink(other);
    rmdir(more);
    g_autoptr(Config) gone = config_read(main_file, server_keys);
    ck_assert_uint_eq(gone->errors.all->len, 1);
    g_autoptr(Config) no_file = config_read(folder, server_keys);
    g_autofree char *text = config_errors_text(&no_file->errors);
    ck_assert_ptr_nonnull(strstr(text, "must be a regular file"));
    rmdir(folder);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("config");
    tcase_add_test(tcase, config_says_what_is_declared);
    tcase_add_test(tcase, config_of_nothing_is_no_mistake);
    tcase_add_loop_test(tcase, config_tells_each_mistake_with_its_line, 0, G_N_ELEMENTS(mistakes));
    tcase_add_test(tcase, config_tells_all_mistakes_in_order);
    tcase_add_test(tcase, config_finds_cycles_of_any_length);
    tcase_add_test(tcase, config_zero_bytes_are_no_text);
    tcase_add_test(tcase, config_huge_files_have_an_end);
    tcase_add_test(tcase, config_reads_the_folder_beside_it_in_order);
    return suite_run("config", tcase);
}
