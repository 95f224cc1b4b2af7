/*
 * Secrets: passphrases and keys in memory that is not paged out, is left out of core dumps, and is
 * wiped before it is given back; and the list of those that a user gave, by image.
 *
 * A secret comes from a file or a descriptor, never from the command line, where every process of
 * the host can read it. Its bytes are taken as they are, a newline at the end included: so the same
 * file serves cryptsetup and qemu.
 */
#ifndef BASE_SECRET_H
#define BASE_SECRET_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SECRET_MAX 4096u /* bytes of a passphrase */

/* Memory for what must stay secret, all zero. NULL when there is none. [any] */
void *secret_memory_new(size_t size);
void secret_memory_free(void *memory); /* wipes it; NULL is allowed [any] */
bool secret_memory_owns(const void *memory);

typedef struct Secret {
    uint8_t *bytes; /* secret memory */
    size_t length;
} Secret;

void secret_free(Secret *secret);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Secret, secret_free)

/* The whole file, or what the descriptor (which stays open) gives until its end. [main] */
Secret *secret_read_file(const char *path, GError **error);
Secret *secret_read_fd(int fd, GError **error);

/* Secrets by the images that they open. Not changed any more once images are opened with it. */
typedef struct Secrets Secrets;

/* otherwise: where those are looked for that are not in this list; may be NULL, must stay. */
Secrets *secrets_new(const Secrets *otherwise);
void secrets_free(Secrets *secrets);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Secrets, secrets_free)

/* "[IMAGE=]FILE" and "[IMAGE=]NUMBER", as on the command line. IMAGE is an image's path, or the name
 * of its file alone; without it, the secret is for every image that has none of its own. [main] */
bool secrets_add_file(Secrets *secrets, const char *text, GError **error);
bool secrets_add_fd(Secrets *secrets, const char *text, GError **error);

/* "[IMAGE=]FILE" with its paths made absolute: relative ones count from the folder, NULL being the working
 * directory. An IMAGE without a '/' is a name, and stays. [any] */
char *secret_text_absolute(const char *text, const char *folder);
/* The FILE of it, a part of the text. [any] */
const char *secret_text_source(const char *text);

/* What systemd hands to a service: the credential "cownbd-secret" is for every image,
 * "cownbd-secret.NAME" for the image whose file has that name. Says nothing when there are none. [main] */
bool secrets_add_credentials(Secrets *secrets, GError **error);

/* The secret of the image with that path; NULL when there is none. secrets may be NULL. [any] */
const Secret *secrets_find(const Secrets *secrets, const char *path);

#endif
