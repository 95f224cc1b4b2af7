/*
 * The encryption that qcow and qcow2 had before LUKS: AES-128 in CBC mode.
 *
 * The key is the passphrase itself, sixteen bytes of it; a sector's number is its place on the disk,
 * and it is the IV as it is. So equal disks give equal bytes, and a wrong passphrase gives noise and
 * no error. It is here to get at old images.
 */
#ifndef FORMATS_LEGACY_AES_H
#define FORMATS_LEGACY_AES_H

#include "map/image.h"

/* For format->open: sets image->encryption. */
bool legacy_aes_open(Image *image, GError **error);

#endif
