/*
 * The subcommands. Each gets its own name as argv[0], parses the rest, and returns the exit status.
 * [main]
 */
#ifndef CLI_CLI_H
#define CLI_CLI_H

int cli_serve(int argc, char **argv);
int cli_config(int argc, char **argv);
int cli_info(int argc, char **argv);
int cli_map(int argc, char **argv);
int cli_check(int argc, char **argv);
int cli_create(int argc, char **argv);
int cli_convert(int argc, char **argv);
int cli_resize(int argc, char **argv);
int cli_compare(int argc, char **argv);
int cli_diff(int argc, char **argv);
int cli_commit(int argc, char **argv);
int cli_compact(int argc, char **argv);
int cli_measure(int argc, char **argv);
int cli_rebase(int argc, char **argv);
int cli_attach(int argc, char **argv);
int cli_detach(int argc, char **argv);
int cli_rescue(int argc, char **argv);
int cli_list(int argc, char **argv);
int cli_stats(int argc, char **argv);
int cli_ctl(int argc, char **argv);
int cli_fold(int argc, char **argv);
int cli_snapshot(int argc, char **argv);
int cli_bitmap(int argc, char **argv);

#endif
