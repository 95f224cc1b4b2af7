/*
 * The transmission phase: requests parsed, checked, submitted; the payload of writes gathered.
 * [worker]
 */
#ifndef NBD_TRANSMISSION_H
#define NBD_TRANSMISSION_H

#include <stddef.h>
#include <stdint.h>

#include "control/export.h"

typedef struct Conn Conn;

#define TRANSMISSION_LENGTH_MAX (64u << 20) /* bytes a READ or WRITE may have */
#define TRANSMISSION_SKIP_MAX \
    (256u << 20) /* payload of a refused WRITE that is read past; above: goodbye */

/* The transmission flags (NBD_FLAG_*) of an export for a client, after what it has negotiated. */
uint16_t transmission_flags(const Conn *conn, const Export *export);

/* Takes one request, and what is there of its payload, off the front of the bytes. Returns how much
 * it used; 0: too little to go on, or the connection is paused, draining or broken. */
size_t transmission_consume(Conn *conn, const uint8_t *bytes, size_t length);

/* The payload that was outstanding (conn->payload) is complete. */
void transmission_payload_done(Conn *conn);

#endif
