/*
 * Whether a state of an image is good: it opens, checks clean, and holds what the model allows.
 */
#ifndef TESTS_CRASH_VERIFY_H
#define TESTS_CRASH_VERIFY_H

#include <stdbool.h>
#include <stdint.h>

#include "fixture.h"
#include "model.h"

typedef struct Verifier {
    const Fixture *fixture;
    Machine *machine;
    uint8_t *disk;     /* the contents of the last state that was read */
    char *directory;   /* for files that qemu-img looks at; made when first needed */
    uint64_t tried;    /* states */
    uint64_t leaking;  /* states with leaks */
    uint64_t restarts; /* states that were written to */
    uint64_t qemu_checks;
} Verifier;

void verifier_init(Verifier *verifier, const Fixture *fixture, Machine *machine);
void verifier_clear(Verifier *verifier);

typedef enum { VERIFY_LEAKS_ALLOWED, VERIFY_NO_LEAKS } VerifyLeaks;

/* The model stands at the state's cut. Changes the stores (the image is opened for writing). */
bool verify_state(Verifier *verifier, const ImageFiles *files, Model *model, VerifyLeaks leaks,
                  Findings *findings);

/* To be called after verify_state, which has read the disk: asks qemu-img what it thinks of the
 * state. */
bool verify_qemu(Verifier *verifier, const ImageFiles *files, Findings *findings);

/* To be called after verify_state: a server starts on the state, writes, flushes and ends; nothing
 * else may change and nothing be damaged. */
bool verify_restart(Verifier *verifier, const ImageFiles *files, uint64_t seed, Findings *findings);

/* Writes the bytes of the files and what belongs to them into a directory. */
void verify_dump(const Fixture *fixture, const ImageFiles *files, const char *directory);

#endif
