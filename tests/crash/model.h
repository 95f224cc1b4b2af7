/*
 * What a disk may hold: the history of requests, and from it the values that each cell may have.
 *
 * The unit is the cell of 16 bytes. A written cell carries its own number, the number of the
 * request that wrote it (its value) and a hash of both, so that bytes of another place, old bytes
 * and rubbish are told apart. Value 0 is a cell of zeroes; VALUE_BACKING is what the test put into
 * the backing.
 *
 * Request i is superseded by j when i was answered before j was issued. A cell may have the value
 * of any request that was issued before the cut and is not superseded by one that was durable then
 * (answered with FUA, or answered before a successful FLUSH was issued that was itself answered
 * before the cut). TRIM may zero, so it adds a value and supersedes nothing. A READ shows which of
 * several values it was, and supersedes the rest when nothing that touches the cell was in flight.
 */
#ifndef TESTS_CRASH_MODEL_H
#define TESTS_CRASH_MODEL_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/request.h"

#define CELL          16u
#define VALUE_BACKING 1u
#define VALUE_FIRST   2u /* requests count from here */
#define TICK_NEVER    UINT64_MAX

typedef struct ModelOp {
    RequestType type; /* READ, WRITE, TRIM, ZERO, FLUSH */
    uint64_t offset, length;
    uint32_t value; /* WRITE */
    bool fua;
    uint64_t start, end; /* ticks; end is TICK_NEVER when it failed */
    const uint8_t *data; /* READ: what came; valid during model_finish */
} ModelOp;

/* What was found wrong, by kind, and the first cases in words. */
typedef struct Findings {
    uint64_t lost;    /* a value that was durably replaced, or zeroes in place of durable bytes */
    uint64_t foreign; /* bytes of another cell */
    uint64_t garbage; /* bytes that nobody wrote here */
    uint64_t corrupt; /* the image's own structure, see verify.c */
    GString *text;
    unsigned lines; /* said in text, or too many to say */
} Findings;

typedef struct Model Model;

/* size: bytes, a multiple of CELL. initial: the value of each cell at tick 0, NULL for zeroes. */
Model *model_new(uint64_t size, const uint32_t *initial);
void model_free(Model *model);

void model_add(Model *model, const ModelOp *op);

/* All is added: sorts out what is durable when, and checks every READ. */
void model_finish(Model *model, Findings *findings);

/* Ticks at which a FLUSH or FUA was answered, ascending. */
const uint64_t *model_durable_ticks(const Model *model, unsigned *count);

/* Goes to a cut; never backwards. */
void model_cut(Model *model, uint64_t cut);

/* Whether content (the whole disk) is allowed at the current cut. */
bool model_check(Model *model, const uint8_t *content, Findings *findings);

/* Stamps: fills length bytes for guest offset `offset`; reads one cell back. */
typedef enum { STAMP_OK, STAMP_FOREIGN, STAMP_GARBAGE } StampKind;
void stamp_fill(uint8_t *buffer, uint64_t offset, uint64_t length, uint32_t value);
StampKind stamp_read(const uint8_t *bytes, uint64_t cell, uint32_t *value);

void findings_init(Findings *findings);
void findings_clear(Findings *findings);
uint64_t findings_count(const Findings *findings);

/* Adds a line to the text, until there are enough of them. */
void findings_say(Findings *findings, const char *format, ...) G_GNUC_PRINTF(2, 3);

#endif
