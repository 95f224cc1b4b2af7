/*
 * To open an encrypted image costs milliseconds, and a thousand states have the same header: the key that it gave is
 * kept, for as long as the header is the same, byte for byte. (The linker takes this for libcryptsetup's own
 * function; the program as it is installed has nothing of it.) [any]
 */
#ifndef TESTS_CRASH_LUKS_KEYS_H
#define TESTS_CRASH_LUKS_KEYS_H

/* From here on. */
void luks_keys_keep(void);

#endif
