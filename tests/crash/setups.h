/*
 * The configurations that the crash tests go through.
 */
#ifndef TESTS_CRASH_SETUPS_H
#define TESTS_CRASH_SETUPS_H

#include "fixture.h"

extern const Setup setups[]; /* ends with a NULL name */
const Setup *setup_find(const char *name);

/* The process ends, with a message, when it has not by then: a hang is a failure. */
void watchdog_set(unsigned seconds, const char *what);

#endif
