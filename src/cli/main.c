/*
 * cownbd: one program with subcommands. This finds the subcommand.
 */
#include <errno.h>
#include <locale.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <glib.h>

#include "base/log.h"
#include "cli/cli.h"
#include "cli/describe.h"
#include "cli/option-hints.h"

typedef struct Command {
    const char *name;
    const char *summary;
    int (*run)(int argc, char **argv);
} Command;

static const Command commands[] = {
    {"serve", "serve images over NBD", cli_serve},
    {"config", "look at a configuration of serve", cli_config},
    {"info", "format, sizes, backing chain and features of an image", cli_info},
    {"map", "which parts of a disk are data, zero or not there, and where", cli_map},
    {"check", "find and repair damage", cli_check},
    {"create", "make a new image", cli_create},
    {"convert", "copy a disk into an image of any format", cli_convert},
    {"resize", "make a disk larger or smaller", cli_resize},
    {"compare", "whether two disks read the same", cli_compare},
    {"diff", "where two disks read differently", cli_diff},
    {"commit", "bring what an image holds into its backing", cli_commit},
    {"measure", "how much space an image would need", cli_measure},
    {"compact", "give unused space of an image back, and order it", cli_compact},
    {"rebase", "give an image another backing", cli_rebase},
    {"attach", "show an image as a block device of the kernel", cli_attach},
    {"detach", "take such a block device down", cli_detach},
    {"rescue", "give up such a block device that hangs", cli_rescue},
    {"list", "what a running server serves", cli_list},
    {"stats", "what a running server has done", cli_stats},
    {"ctl", "ask a running server for anything", cli_ctl},
    {"snapshot", "list, make, apply and delete internal snapshots", cli_snapshot},
    {"bitmap", "list and change persistent dirty bitmaps", cli_bitmap},
    {"fold", "bring what was written in snapshot mode into the image", cli_fold},
};

static const Command *find_command(const char *name)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(commands); i++) {
        if (strcmp(commands[i].name, name) == 0) {
            return &commands[i];
        }
    }
    return NULL;
}

static unsigned min3(unsigned a, unsigned b, unsigned c)
{
    return MIN(a, MIN(b, c));
}

/* How many letters must be changed, added or dropped to turn a into b; long words are never near. */
static unsigned word_distance(const char *a, const char *b)
{
    enum { LONGEST = 16 };
    unsigned rows[2][LONGEST + 1];
    size_t a_length = strlen(a), b_length = strlen(b);
    if (a_length > LONGEST || b_length > LONGEST) {
        return LONGEST;
    }
    for (size_t j = 0; j <= b_length; j++) {
        rows[0][j] = j;
    }
    for (size_t i = 1; i <= a_length; i++) {
        unsigned *above = rows[(i - 1) % 2], *row = rows[i % 2];
        row[0] = i;
        for (size_t j = 1; j <= b_length; j++) {
            row[j] = min3(above[j] + 1, row[j - 1] + 1, above[j - 1] + (a[i - 1] != b[j - 1]));
        }
    }
    return rows[a_length % 2][b_length];
}

static const Command *nearest_command(const char *name)
{
    const Command *nearest = NULL;
    unsigned best = 3;
    for (unsigned i = 0; i < G_N_ELEMENTS(commands); i++) {
        unsigned distance = word_distance(name, commands[i].name);
        if (distance < best) {
            best = distance;
            nearest = &commands[i];
        }
    }
    return nearest;
}

static int print_help(void)
{
    puts("Usage:\n"
         "  cownbd COMMAND [OPTION...] ...\n"
         "\n"
         "An NBD server for copy-on-write disk images, and tools for them.\n"
         "\n"
         "Commands:");
    for (unsigned i = 0; i < G_N_ELEMENTS(commands); i++) {
        printf("  %-10s %s\n", commands[i].name, commands[i].summary);
    }
    puts("\n"
         "Example:\n"
         "  cownbd create -f qcow2 -b base.img -F raw overlay.qcow2\n"
         "  cownbd serve overlay.qcow2\n"
         "\n"
         "cownbd COMMAND --help says more about each; cownbd --version tells the version.");
    return 0;
}

static int unknown_command(const char *name)
{
    const Command *nearest = nearest_command(name);
    const char *hint = command_hint(name);
    if (hint) {
        fprintf(stderr, "cownbd: '%s' is not a command: %s\n", name, hint);
    } else if (nearest) {
        fprintf(stderr, "cownbd: '%s' is not a command: did you mean '%s'?\n", name, nearest->name);
    } else {
        fprintf(stderr, "cownbd: '%s' is not a command: cownbd --help lists them\n", name);
    }
    return 1;
}

static bool is_one_of(const char *word, const char *a, const char *b, const char *c)
{
    return strcmp(word, a) == 0 || strcmp(word, b) == 0 || strcmp(word, c) == 0;
}

static int help_for(const char *name)
{
    const Command *command = find_command(name);
    if (!command) {
        return unknown_command(name);
    }
    char word[32], flag[] = "--help";
    g_strlcpy(word, name, sizeof word);
    char *arguments[] = {word, flag, NULL};
    return command->run(2, arguments);
}

/* In a few words, on a line before each command's own. A child for each: describing ends the process,
 * as help does. */
static int describe_all(void)
{
    int bad = 0;
    for (unsigned i = 0; i < G_N_ELEMENTS(commands); i++) {
        printf("{\"brief\": \"%s\"}\n", commands[i].summary);
        fflush(stdout);
        char word[32], flag[] = CLI_DESCRIBE;
        g_strlcpy(word, commands[i].name, sizeof word);
        char *arguments[] = {word, flag, NULL};
        int status = 1;
        pid_t pid = fork();
        if (pid == 0) {
            exit(commands[i].run(2, arguments));
        }
        bad |= pid < 0 || waitpid(pid, &status, 0) != pid || status != 0;
    }
    return bad;
}

/* A chain, two of them in a comparison, may have more files than a shell allows at first. */
static void raise_file_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        if (setrlimit(RLIMIT_NOFILE, &limit) != 0) {
            log_warning("cannot raise the limit of open files: %s", g_strerror(errno));
        }
    }
}

int main(int argc, char **argv)
{
    setlocale(LC_ALL, "");
    if (argc < 2) {
        fprintf(stderr, "cownbd: no command given: cownbd --help lists them\n");
        return 1;
    }
    if (is_one_of(argv[1], "--help", "-h", "help")) {
        return argc > 2 ? help_for(argv[2]) : print_help();
    }
    if (strcmp(argv[1], CLI_DESCRIBE) == 0) {
        return describe_all();
    }
    if (is_one_of(argv[1], "--version", "-V", "version")) {
        puts("cownbd " COWNBD_VERSION);
        return 0;
    }
    raise_file_limit();
    const Command *command = find_command(argv[1]);
    return command ? command->run(argc - 1, argv + 1) : unknown_command(argv[1]);
}
