/*
 * The least that a server can do, for scripts/bench: a thread a client, and in it a loop of receive, pread or pwrite,
 * send, on a raw file. It checks nothing, maps nothing and serves one client's requests one after another; what it
 * reaches is a measure of the machine, its kernel and the client, and so of what is left to win for a real server.
 *
 *     bare-loop SOCKET FILE
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/bytes.h"
#include "nbd/nbd-wire.h"

#define BUFFER_SIZE (64u << 20)

static int file;
static uint64_t size;

/* All of it, or the end of this client. */
static void receive_all(int fd, void *bytes, size_t length)
{
    if (length > 0 && recv(fd, bytes, length, MSG_WAITALL) != (ssize_t)length) {
        close(fd);
        pthread_exit(NULL);
    }
}

static void send_all(int fd, const void *bytes, size_t length)
{
    while (length > 0) {
        ssize_t n = send(fd, bytes, length, MSG_NOSIGNAL);
        if (n <= 0) {
            close(fd);
            pthread_exit(NULL);
        }
        bytes = (const uint8_t *)bytes + n;
        length -= n;
    }
}

static void reply_to_option(int fd, uint32_t option, uint32_t type, const void *data,
                            uint32_t length)
{
    uint8_t head[20];
    store_be64(head, NBD_OPTION_REPLY_MAGIC);
    store_be32(head + 8, option);
    store_be32(head + 12, type);
    store_be32(head + 16, length);
    send_all(fd, head, sizeof head);
    send_all(fd, data, length);
}

/* Fixed newstyle as far as libnbd's clients need it: GO and INFO; all else is unsupported. */
static void handshake(int fd, uint8_t *buffer)
{
    uint8_t greeting[18];
    memcpy(greeting, "NBDMAGICIHAVEOPT", 16);
    store_be16(greeting + 16, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    send_all(fd, greeting, sizeof greeting);
    receive_all(fd, buffer, 4);
    for (uint32_t option = 0; option != NBD_OPT_GO;) {
        receive_all(fd, buffer, 16);
        option = load_be32(buffer + 8);
        receive_all(fd, buffer, min_u64(load_be32(buffer + 12), BUFFER_SIZE));
        if (option != NBD_OPT_GO && option != NBD_OPT_INFO) {
            reply_to_option(fd, option, NBD_REP_ERR_UNSUP, NULL, 0);
            continue;
        }
        uint8_t info[12];
        store_be16(info, NBD_INFO_EXPORT);
        store_be64(info + 2, size);
        store_be16(info + 10, NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_CAN_MULTI_CONN);
        reply_to_option(fd, option, NBD_REP_INFO, info, sizeof info);
        reply_to_option(fd, option, NBD_REP_ACK, NULL, 0);
    }
}

static void *serve(void *argument)
{
    int fd = *(int *)argument;
    free(argument);
    uint8_t *buffer = aligned_alloc(4096, BUFFER_SIZE + 4096);
    uint8_t *data = buffer + 16; /* behind the reply's head: one send */
    handshake(fd, buffer);
    for (;;) {
        uint8_t request[NBD_REQUEST_SIZE];
        receive_all(fd, request, sizeof request);
        unsigned command = load_be16(request + 6);
        uint64_t offset = load_be64(request + 16);
        uint32_t length = min_u64(load_be32(request + 24), BUFFER_SIZE);
        size_t answer = 16;
        bool fine = true;
        if (command == NBD_CMD_READ) {
            fine = pread(file, data, length, offset) == (ssize_t)length;
            answer += length;
        } else if (command == NBD_CMD_WRITE) {
            receive_all(fd, data, length);
            fine = pwrite(file, data, length, offset) == (ssize_t)length;
        } else if (command == NBD_CMD_DISC) {
            close(fd);
            return NULL;
        }
        store_be32(buffer, NBD_SIMPLE_REPLY_MAGIC);
        store_be32(buffer + 4, fine ? 0 : NBD_EIO);
        memcpy(buffer + 8, request + 8, 8);
        send_all(fd, buffer, answer);
    }
}

int main(int argc, char **argv)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct stat st;
    file = argc == 3 ? open(argv[2], O_RDWR | O_CLOEXEC) : -1;
    if (file < 0 || fstat(file, &st) != 0 || strlen(argv[1]) >= sizeof address.sun_path) {
        return EXIT_FAILURE;
    }
    size = st.st_size;
    strcpy(address.sun_path, argv[1]);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 ||
        listen(listener, 64) != 0) {
        return EXIT_FAILURE;
    }
    for (;;) {
        int *fd = malloc(sizeof *fd);
        pthread_t thread;
        *fd = accept(listener, NULL, NULL);
        if (*fd < 0 || pthread_create(&thread, NULL, serve, fd) != 0) {
            return EXIT_FAILURE;
        }
        pthread_detach(thread);
    }
}
