/*
 * What keeps a server of kernel devices out of the kernel's way when memory is short.
 *
 * To get memory back the kernel writes dirty pages of such a device, and for that it needs this
 * process. So this process must not be made to wait until such pages are written: not for memory,
 * nor as the writer of too many dirty pages itself; and it must not be paged out or killed.
 */
#ifndef BASE_SHIELD_H
#define BASE_SHIELD_H

#include <stdbool.h>

/* This thread, and all that it starts from now on, do I/O on behalf of the kernel: call it before
 * there are others. It costs nothing where nothing is attached. False where this is not allowed
 * (CAP_SYS_RESOURCE) or the kernel is too old (before 5.6). [main] */
bool shield_threads(void);

/* Keeps the process in memory and makes it the last to be killed when memory is short; once is
 * enough. What the limits forbid is left, with a warning. [any] */
void shield_memory(void);

/* After shield_memory: gets this thread memory that malloc then keeps, enough for what some dozens
 * of requests of the kernel need at once; once a thread is enough. So requests under way do not ask
 * the kernel for more just when it has none. [any] */
void shield_reserve(void);

#endif
