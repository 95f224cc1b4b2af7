"""An NBD server that breaks rules, for the test of the conformance prober: wrong-server.py SOCKET.

It knows GO, EXPORT_NAME and READ. It does not answer ABORT or skip the data of unknown options, sets a transmission
flag that does not exist, and answers a READ past the end with zeroes.
"""
import socket
import struct
import sys
import threading

SIZE = 1 << 20


def receive(client, length):
    data = b""
    while len(data) < length:
        part = client.recv(length - len(data))
        if not part:
            raise ConnectionError
        data += part
    return data


def reply(client, option, kind, data=b""):
    client.sendall(struct.pack(">QIII", 0x0003E889045565A9, option, kind, len(data)) + data)


def handshake(client):
    client.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
    receive(client, 4)
    while True:
        _, option, length = struct.unpack(">QII", receive(client, 16))
        if option in (6, 7):
            receive(client, length)
            reply(client, option, 3, struct.pack(">HQH", 0, SIZE, 0x4001))
            reply(client, option, 1)
            if option == 7:
                return
        elif option == 3:
            receive(client, length)
            reply(client, option, 1)
        elif option == 2:
            raise ConnectionError
        else:
            reply(client, option, 0x80000001)  # and leaves the data where it is


def serve(client):
    with client:
        try:
            handshake(client)
            while True:
                _, _, command, cookie, _, length = struct.unpack(">IHHQQI", receive(client, 28))
                if command != 0:
                    raise ConnectionError
                client.sendall(struct.pack(">IIQ", 0x67446698, 0, cookie) + bytes(length))
        except OSError:
            pass


def main():
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[1])
    listener.listen()
    while True:
        client, _ = listener.accept()
        threading.Thread(target=serve, args=(client,), daemon=True).start()


main()
