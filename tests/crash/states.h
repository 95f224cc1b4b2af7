/*
 * All about one run: takes its record, builds states of it and tries each.
 */
#ifndef TESTS_CRASH_STATES_H
#define TESTS_CRASH_STATES_H

#include "run.h"
#include "verify.h"

typedef struct StatesOptions {
    uint64_t seed;
    uint64_t states;        /* how many */
    uint64_t position;      /* only this cut; 0: any */
    unsigned qemu_every;    /* one in so many states is shown to qemu-img; 0: none */
    unsigned restart_every; /* one in so many gets a restart; 0: none */
    const char *dump;       /* directory for a state that is not good; NULL: none */
    bool stop_at_first;
    /* The image at the start of the run, as in RunOptions. */
    const ImageBytes *content;
} StatesOptions;

/* Where a later run can go on: a good state in the middle. */
typedef struct Survivor {
    ImageBytes content;
    uint32_t *values;
} Survivor;

void survivor_clear(Survivor *survivor);

/* Returns how many states were tried; findings has what was wrong. survivor may be NULL. */
uint64_t states_try(Verifier *verifier, Run *run, const StatesOptions *options, Survivor *survivor,
                    Findings *findings);

/* The bytes as they lie in the stores after the server has gone. */
bool states_try_as_is(Verifier *verifier, Run *run, VerifyLeaks leaks, Findings *findings);

/* What an orderly end left: all there, nothing leaked (when leaks says so). */
bool states_try_end(Verifier *verifier, Run *run, VerifyLeaks leaks, Findings *findings);

#endif
