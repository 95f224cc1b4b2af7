/*
 * Many connections on one disk, and a server that is told to end while they are at work.
 *
 * The disk is cut into blocks of 1 KiB; block b belongs to connection b % CONNECTIONS, so every
 * cluster has several owners, and all of them contend for its map. An owner has at most one command
 * in flight on a block, and so knows what it must hold. In each cycle the server is started, all
 * connections write, zero, trim, read and flush, and half way the server gets SIGTERM (in the last
 * cycle only when all is done). A command that was never answered may have been done or not;
 * everything else must be there after the next start. In the end the image must be clean.
 *
 *     stress CONFIGURATION     one of compare's; the server is $COWNBD
 */
#include <glib.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../compare/client.h"
#include "../compare/config.h"
#include "../compare/server.h"

#define BLOCK        1024u
#define CONNECTIONS  64u
#define DEPTH        3u /* commands in flight for each connection */
#define CYCLES       4u
#define COMMANDS     150000u /* of a cycle */
#define DOUBTS       4u
#define WORD_ZERO    0u /* all zeroes */
#define WORD_INITIAL 2u /* what the template has; the words of writes are odd */

/* What a block may hold: one of these words. More than one after a trim or an unanswered command. */
typedef struct Block {
    uint32_t words[DOUBTS];
    unsigned count;
    bool busy;
} Block;

typedef struct Slot {
    Op op;
    uint64_t block;
    uint32_t word; /* what the command puts there */
} Slot;

typedef struct Stress {
    const Config *config;
    Clients clients;
    Block *blocks;
    uint64_t block_count;
    char *initial;
    Slot slots[CONNECTIONS][DEPTH];
    Random random;
    unsigned started, wanted;
    bool ending; /* the server has been told to end */
} Stress;

static void fill(const Stress *stress, uint8_t *bytes, uint64_t block, uint32_t word)
{
    if (word == WORD_INITIAL) {
        memcpy(bytes, stress->initial + block * BLOCK, BLOCK);
        return;
    }
    for (unsigned i = 0; i < BLOCK; i += 8) {
        uint64_t piece = word == WORD_ZERO ? 0 : random_mix(word + block * 977 + i / 64);
        memcpy(bytes + i, &piece, 8);
    }
}

/* Checks what was read of a block that nobody changes; afterwards that is known for sure. */
static void check_block(Stress *stress, uint64_t number, const uint8_t *bytes)
{
    Block *block = &stress->blocks[number];
    uint8_t wanted[BLOCK];
    for (unsigned i = 0; i < block->count; i++) {
        fill(stress, wanted, number, block->words[i]);
        if (memcmp(bytes, wanted, BLOCK) == 0) {
            block->words[0] = block->words[i];
            block->count = 1;
            return;
        }
    }
    die("block at 0x%llx holds 0x%02x%02x%02x%02x ..., not what was written there last",
        (unsigned long long)number * BLOCK, bytes[0], bytes[1], bytes[2], bytes[3]);
}

/* Half of all commands meet in a sixteenth of the disk. */
static uint64_t pick_block(Stress *stress, unsigned connection)
{
    uint64_t owned = stress->block_count / CONNECTIONS;
    uint64_t reach = random_percent(&stress->random, 50) ? owned / 16 + 1 : owned;
    return random_below(&stress->random, reach) * CONNECTIONS + connection;
}

static void prepare(Stress *stress, Slot *slot, uint64_t chance)
{
    Op *op = &slot->op;
    Block *block = &stress->blocks[slot->block];
    op->kind = chance < 55 ? OP_WRITE : chance < 75 ? OP_READ : chance < 85 ? OP_ZERO : OP_TRIM;
    if (block->count == DOUBTS) {
        op->kind = OP_READ;
    }
    op->offset = slot->block * BLOCK;
    op->length = BLOCK;
    op->flags = op->kind != OP_READ && chance % 8 == 0 ? LIBNBD_CMD_FLAG_FUA : 0;
    slot->word = WORD_ZERO;
    if (op->kind == OP_READ || op->kind == OP_WRITE) {
        op->buffer = g_malloc(BLOCK);
    }
    if (op->kind == OP_WRITE) {
        slot->word = (uint32_t)random_next(&stress->random) | 1;
        fill(stress, op->buffer, slot->block, slot->word);
    }
}

static void start(Stress *stress, unsigned connection, Slot *slot)
{
    uint64_t chance = random_below(&stress->random, 100);
    uint64_t block = pick_block(stress, connection);
    g_free(slot->op.buffer);
    *slot = (Slot){.block = block, .op = {.connection = connection}};
    stress->started++;
    if (chance >= 96) {
        slot->op.kind = OP_FLUSH;
    } else if (stress->blocks[block].busy) {
        return;
    } else {
        stress->blocks[block].busy = true;
        prepare(stress, slot, chance);
    }
    clients_submit(&stress->clients, &slot->op);
}

static void settle(Stress *stress, Slot *slot)
{
    Op *op = &slot->op;
    op->in_flight = false;
    if (op->error != 0 && !stress->ending) {
        die("%s: %s", op_text(op), strerror(op->error));
    }
    if (op->kind == OP_FLUSH) {
        return;
    }
    Block *block = &stress->blocks[slot->block];
    block->busy = false;
    if (op->kind == OP_READ) {
        if (op->error == 0) {
            check_block(stress, slot->block, op->buffer);
        }
    } else if (op->error != 0 || op->kind == OP_TRIM) {
        block->words[block->count++] = slot->word;
    } else {
        block->words[0] = slot->word;
        block->count = 1;
    }
}

/* Settles what has finished, starts what may be; how many are in flight. */
static unsigned turn(Stress *stress)
{
    unsigned running = 0;
    for (unsigned i = 0; i < CONNECTIONS; i++) {
        for (unsigned k = 0; k < DEPTH; k++) {
            Slot *slot = &stress->slots[i][k];
            if (slot->op.in_flight && slot->op.finished) {
                settle(stress, slot);
            }
            if (!slot->op.in_flight && !stress->clients.lost[i] &&
                stress->started < stress->wanted) {
                start(stress, i, slot);
            }
            running += slot->op.in_flight;
        }
    }
    return running;
}

static bool all_lost(const Clients *clients)
{
    for (unsigned i = 0; i < clients->count; i++) {
        if (!clients->lost[i]) {
            return false;
        }
    }
    return true;
}

static void run_cycle(Stress *stress, Server *server, bool cut_short)
{
    stress->clients = (Clients){.may_be_lost = cut_short};
    stress->ending = false;
    stress->started = 0;
    clients_connect(&stress->clients, server->socket, "image", CONNECTIONS, &stress->random);
    while (turn(stress) > 0 || stress->started < stress->wanted) {
        if (cut_short && !stress->ending && stress->started > stress->wanted / 2) {
            stress->ending = true;
            server_ask_to_end(server);
        }
        if (all_lost(&stress->clients)) {
            stress->started = stress->wanted;
        } else {
            clients_poll(&stress->clients);
        }
    }
    clients_disconnect(&stress->clients);
    if (!cut_short) {
        server_ask_to_end(server);
    }
    server_wait(server);
}

static void check_all(Stress *stress, Server *server)
{
    g_autofree uint8_t *bytes = g_malloc(BLOCK * CONNECTIONS);
    stress->clients = (Clients){0};
    clients_connect(&stress->clients, server->socket, "image", 1, &stress->random);
    for (uint64_t at = 0; at < stress->block_count; at += CONNECTIONS) {
        Op read = {
            .kind = OP_READ, .offset = at * BLOCK, .length = BLOCK * CONNECTIONS, .buffer = bytes};
        clients_run(&stress->clients, &read);
        if (read.error != 0) {
            die("%s: %s", op_text(&read), strerror(read.error));
        }
        for (unsigned i = 0; i < CONNECTIONS; i++) {
            check_block(stress, at + i, bytes + i * BLOCK);
        }
    }
    clients_disconnect(&stress->clients);
}

static void prepare_blocks(Stress *stress, const char *directory)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *model = g_build_filename(directory, "template.model", NULL);
    if (!g_file_get_contents(model, &stress->initial, NULL, &error)) {
        die("%s", error->message);
    }
    stress->block_count = stress->config->size / BLOCK / CONNECTIONS * CONNECTIONS;
    stress->blocks = g_new0(Block, stress->block_count);
    for (uint64_t i = 0; i < stress->block_count; i++) {
        stress->blocks[i] = (Block){.words = {WORD_INITIAL}, .count = 1};
    }
}

int main(int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    const char *program = g_getenv("COWNBD"), *scale = g_getenv("COWNBD_TEST_SCALE");
    if (argc != 2 || program == NULL) {
        die("usage: COWNBD=PROGRAM stress CONFIGURATION");
    }
    g_autofree char *directory = g_dir_make_tmp("cownbd-stress-XXXXXX", &error);
    g_autofree char *image = g_build_filename(directory, "image", NULL);
    g_autofree char *template = g_build_filename(directory, "template", NULL);
    g_autofree Stress *stress = g_new0(Stress, 1);
    stress->config = config_find(argv[1]);
    stress->random.state = 1;
    stress->wanted =
        COMMANDS * (scale != NULL && atoi(scale) > 0 ? (unsigned)atoi(scale) : 100) / 100;
    config_make_template(stress->config, directory);
    copy_sparse(template, image);
    prepare_blocks(stress, directory);
    for (unsigned cycle = 0; cycle < CYCLES; cycle++) {
        Server server;
        snprintf(die_context, sizeof die_context, "cycle %u: ", cycle);
        server_start(&server, program, directory, stress->config->format, &image, 1);
        check_all(stress, &server);
        run_cycle(stress, &server, cycle + 1 < CYCLES);
    }
    const char *const check[] = {"qemu-img", "check", "-f", stress->config->format, image, NULL};
    if (strcmp(stress->config->format, "raw") != 0 && run_status(check) != 0) {
        die("qemu-img check finds damage");
    }
    const char *const clean[] = {"rm", "-rf", directory, NULL};
    run_status(clean);
    for (unsigned i = 0; i < CONNECTIONS * DEPTH; i++) {
        g_free(stress->slots[i / DEPTH][i % DEPTH].op.buffer);
    }
    g_free(stress->blocks);
    g_free(stress->initial);
    return 0;
}
