# SPDX-License-Identifier: GPL-2.0-only
"""Tests on the wire: clients that die, that come and go, and that are many. Part of wire.py."""
import os
import re
import resource
import socket
import struct
import time

from nbdclient import *  # noqa: F403  the protocol's own names
from wirecases import *  # noqa: F403  what is served, and the lists of tests

CYCLES = 3000
CLIENTS = 1000


def option(code, data=b""):
    """An option as it is sent."""
    return struct.pack(">QII", IHAVEOPT, code, len(data)) + data


def handshake(form):
    """A handshake in which each option that has a meaning occurs."""
    chosen = {SIMPLE_FORM: b"", STRUCTURED_FORM: option(STRUCTURED),
              EXTENDED_FORM: option(EXTENDED)}[form]
    contexts = meta_data(b"disk+release", ("base:allocation", "fleece:access"))
    return (struct.pack(">I", 3) + option(LIST) + option(77, b"x" * 20) + option(STARTTLS)
            + chosen + option(LIST_META, contexts) + option(SET_META, contexts)
            + option(INFO, go_data(b"plain", (1, 2, 3)))
            + option(GO, go_data(b"disk+release", (3,))))


def requests(form):
    """Each request, one after the other."""
    extended = form == EXTENDED_FORM
    result = b""
    for command, length, flags, payload in (
            (READ, 4096, 0, b""), (WRITE, 10, PAYLOAD_LEN, bytes(10)), (STATUS, M, REQ_ONE, b""),
            (STATUS, 12, PAYLOAD_LEN, struct.pack(">QI", 512, 1)), (TRIM, 512, 0, b""),
            (CACHE, 512, 0, b""), (WRITE_ZEROES, 512, 0, b""), (FLUSH, 0, 0, b""),
            (DISC, 0, 0, b"")):
        if extended:
            result += struct.pack(">IHHQQQ", EXTENDED_REQUEST_MAGIC, flags, command, 1, 0, length)
        elif command == STATUS and payload:
            continue
        else:
            result += struct.pack(">IHHQQI", REQUEST_MAGIC, flags & ~PAYLOAD_LEN, command, 1, 0,
                                  length)
        result += payload
    return result


def descriptors(server):
    """Open files of the server."""
    return len(os.listdir("/proc/%d/fd" % server.process.pid))


def resident(server):
    """KiB of memory of the server."""
    with open("/proc/%d/status" % server.process.pid) as status:
        return int(re.search(r"VmRSS:\s+(\d+) kB", status.read()).group(1))


def settle(server, files):
    """Wait until the server has let go of clients that left."""
    deadline = time.monotonic() + PATIENCE
    while descriptors(server) > files:
        expect(time.monotonic() < deadline, "%d descriptors stay open" % descriptors(server))
        time.sleep(0.02)


@own("client death at every byte of every message, of each form (nbdkit 1.34's early hang-up)")
def client_death():
    server = Server("--allow-release", DISK, PLAIN)
    try:
        files = descriptors(server)
        for form in FORMS:
            session = handshake(form) + requests(form)
            for n in range(len(session) + 1):
                with Client(server, greet=False) as client:
                    client.send(session[:n])
                    if n % 2:
                        client.socket.shutdown(socket.SHUT_WR)
        with Client(server) as client:
            client.open(b"disk")
            equal(client.read(512, 16), pattern(512, 16), "data for the next client")
        settle(server, files)
    finally:
        server.stop()


@own("EXPORT_NAME and ABORT: client death at every byte")
def client_death_short():
    server = Server(DISK)
    try:
        files = descriptors(server)
        for last in (option(EXPORT_NAME, b"disk"), option(ABORT, b"abc")):
            session = struct.pack(">I", 1) + last + requests(SIMPLE_FORM)
            for n in range(len(session) + 1):
                with Client(server, greet=False) as client:
                    try:
                        client.send(session[:n])
                    except (BrokenPipeError, ConnectionResetError):
                        pass
        settle(server, files)
    finally:
        server.stop()


def one_cycle(server, number):
    """A client that comes and leaves, one way or another."""
    form = FORMS[number % 3]
    with Client(server, greet=number % 7 != 0, tcp=number % 5 == 0) as client:
        if number % 7 == 0:
            return
        if number % 7 == 1:
            client.option(ABORT)
            return
        if number % 7 == 2:
            client.send_option(SET_META, b"half", length=1000)
            return
        client.open(b"big", form, ["qemu:dirty-bitmap:five"] if form else ())
        if number % 7 == 3:
            client.request(READ, 0, M)
        elif number % 7 == 4:
            client.read(T, 512)
            client.request(DISC)
        elif number % 7 == 5:
            client.request(WRITE, 0, 4096, PAYLOAD_LEN if form == EXTENDED_FORM else 0, bytes(99))
        # A reset instead of an end: what is in flight is lost.
        if number % 5 == 0 and number % 2:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@own("%d clients come and go: memory and descriptors stay as they were" % CYCLES)
def cycles():
    server = Server(BIG, listen=True)
    try:
        files = descriptors(server)
        for number in range(500):
            one_cycle(server, number)
        settle(server, files)
        before = resident(server)
        for number in range(CYCLES):
            one_cycle(server, number)
        settle(server, files)
        grown = resident(server) - before
        expect(grown < 8 * K, "%d KiB more than after the first clients" % grown)
    finally:
        server.stop()


@own("%d clients at once: each gets its data, and the server ends well" % CLIENTS)
def crowd():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * CLIENTS + 200
    expect(hard == resource.RLIM_INFINITY or hard >= needed, "only %d files are allowed" % hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    server = Server("--max-connections", "0", "--handshake-timeout", "0", BIG)
    clients = []
    try:
        files = descriptors(server)
        for number in range(CLIENTS):
            client = Client(server)
            client.socket.settimeout(120)
            clients.append(client)
            client.open(b"big", FORMS[number % 3])
        for number, client in enumerate(clients):
            client.wanted = client.request(READ, number * M + 512, 4096)
        for number, client in enumerate(clients):
            answer = client.answer_to(client.wanted, {client.wanted: 4096})
            expect(answer["data"] == pattern(number * M + 512, 4096), "data of client %d" % number)
        for client in clients:
            client.socket.close()
        settle(server, files)
    finally:
        for client in clients:
            client.socket.close()
        server.stop()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
