#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""Part of served_snapshot.sh: the kernel's NBD client, and nothing that fails when
the server is away for a while.

nbdlink.py connect|reconnect SOCKET EXPORT

Gives /dev/nbd0 a connection over netlink, or a new one in the place of one that
is lost. Requests wait meanwhile, and are sent again; nbd-client cannot do that.
"""
import errno
import socket
import struct
import sys
import time

from nbdclient import SIMPLE_FORM, Client

CONTROL_FAMILY, GET_FAMILY, FAMILY_ID, FAMILY_NAME = 0x10, 3, 1, 2
COMMANDS = {"connect": 1, "reconnect": 3}
INDEX, SIZE, BLOCK_SIZE, TIMEOUT, SERVER_FLAGS, SOCKETS, DEAD_TIMEOUT = 1, 2, 3, 4, 5, 7, 8
ITEM, ITEM_FD = 1, 1
REQUEST_ACK = 5
ERROR = 2

# Seconds after which a request is sent again, and that one may wait for a server.
RESEND, AWAY = 10, 120


class World:
    """What a Client needs to know."""

    def __init__(self, path):
        self.path = path


def attribute(kind, data, nested=False):
    """An attribute, padded."""
    return (struct.pack("=HH", 4 + len(data), kind | (0x8000 if nested else 0)) + data
            + bytes(-len(data) % 4))


def u32(kind, value):
    """An attribute that is a number."""
    return attribute(kind, struct.pack("=I", value))


def u64(kind, value):
    """An attribute that is a long number."""
    return attribute(kind, struct.pack("=Q", value))


def call(link, family, command, attributes):
    """Send a message; the attributes of the first answer. Raises OSError."""
    body = struct.pack("=BBH", command, 1, 0) + attributes
    link.send(struct.pack("=IHHII", 16 + len(body), family, REQUEST_ACK, 1, 0) + body)
    answers = b""
    while True:
        data = link.recv(65536)
        while data:
            length, kind = struct.unpack("=IH", data[:6])
            if kind == ERROR:
                error, = struct.unpack("=i", data[16:20])
                if error:
                    raise OSError(-error, "netlink: " + errno.errorcode.get(-error, "?"))
                return answers
            answers = answers or data[20:length]
            data = data[length + -length % 4:]


def family_of(link, name):
    """The number of a family."""
    data = call(link, CONTROL_FAMILY, GET_FAMILY, attribute(FAMILY_NAME, name + b"\0"))
    while data:
        length, kind = struct.unpack("=HH", data[:4])
        if kind == FAMILY_ID:
            return struct.unpack("=H", data[4:6])[0]
        data = data[length + -length % 4:]
    raise OSError(errno.ENOENT, "no family nbd")


def main():
    command, path, export = sys.argv[1:4]
    client = Client(World(path)).open(export.encode(), SIMPLE_FORM)
    size, flags = struct.unpack(">QH", client.items[0])
    item = attribute(ITEM, u32(ITEM_FD, client.socket.fileno()), True)
    attributes = (u32(INDEX, 0) + u64(SIZE, size) + u64(BLOCK_SIZE, 512) + u64(TIMEOUT, RESEND)
                  + u64(SERVER_FLAGS, flags) + u64(DEAD_TIMEOUT, AWAY)
                  + attribute(SOCKETS, item, True))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 16) as link:
        family = family_of(link, b"nbd")
        deadline = time.monotonic() + 60
        while True:
            try:
                call(link, family, COMMANDS[command], attributes)
                return 0
            except OSError as problem:
                # The kernel may not have seen yet that the old connection is lost.
                if (command == "connect" or problem.errno != errno.ENOSPC
                        or time.monotonic() > deadline):
                    raise
                time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
