# SPDX-License-Identifier: GPL-2.0-only
"""Tests on the wire: extended headers. Part of wire.py."""
import struct

from nbdclient import *  # noqa: F403  the protocol's own names
from wirecases import *  # noqa: F403  what is served, and the lists of tests

PAYLOAD_FLAG = 1 << 12


def flags_of(items):
    """Transmission flags in the items of INFO or GO."""
    return struct.unpack(">QH", items[0])[1]


@test("C30 EXTENDED_HEADERS: ACK once, ERR_INVALID with data or again; before or after STRUCTURED")
def negotiation(server):
    with Client(server) as client:
        equal(client.option_error(EXTENDED, b"x"), INVALID, "with data")
        client.negotiate(STRUCTURED_FORM)
        client.negotiate(EXTENDED_FORM)
        equal(client.option_error(EXTENDED), INVALID, "a second time")
        client.go(b"disk")
        equal(client.read(512, 512), pattern(512, 512), "data")


@test("C27 C30 STRUCTURED_REPLY after extended headers: ERR_EXT_HEADER_REQD")
def structured_after(server):
    with Client(server) as client:
        client.negotiate(EXTENDED_FORM)
        equal(client.option_error(STRUCTURED, b"x"), INVALID, "with data")
        equal(client.option_error(STRUCTURED), EXT_HEADER_REQD, "reply")
        client.go(b"disk")
        equal(client.read(512, 512), pattern(512, 512), "data, in chunks with long headers")


@test("C20 C30 EXPORT_NAME after extended headers: disconnected")
def export_name_after(server):
    with Client(server) as client:
        client.negotiate(EXTENDED_FORM)
        client.send_option(EXPORT_NAME, b"disk")
        client.expect_end()


@test("C30 extended headers stand for structured replies: DF and contexts")
def stands_for_structured(server):
    with Client(server) as client:
        client.open(b"disk", EXTENDED_FORM, ALL_CONTEXTS)
        expect(flags_of(client.items) & 0x80, "SEND_DF")
        equal(client.read(64 * K, 512, DF), pattern(64 * K, 512), "data with DF")
        equal(set(client.status(0, SIZE)), set(ALL_CONTEXTS), "contexts")


@test("1.4 BLOCK_STATUS_PAYLOAD is offered for extended headers with contexts, and only then")
def payload_flag(server):
    for form in (STRUCTURED_FORM, EXTENDED_FORM):
        with Client(server) as client:
            client.negotiate(form)
            expect(not flags_of(client.go(b"disk", INFO)) & PAYLOAD_FLAG, "without contexts")
            client.meta(SET_META, b"disk", "base:allocation")
            expect(not flags_of(client.go(b"disk@one", INFO)) & PAYLOAD_FLAG, "another export")
            wanted = PAYLOAD_FLAG if form == EXTENDED_FORM else 0
            first = client.go(b"disk", INFO)
            equal(flags_of(first) & PAYLOAD_FLAG, wanted, "INFO")
            equal(client.go(b"disk"), first, "C25 GO says the same as INFO")


@test("C61 extended replies only, each with the offset of its request, errors too")
def replies(server):
    with Client(server) as client:
        client.open(b"disk+release", EXTENDED_FORM, ["base:allocation"])
        for command, offset, length, error in (
                (READ, 512, 512, 0), (READ, 4 * M, 512, EPERM), (READ, 6 * M, 512, EIO),
                (READ, 777, 0, 0), (STATUS, 1024, 4096, 0), (STATUS, 7, 0, EINVAL),
                (FLUSH, 0, 0, 0), (FLUSH, 9, 0, EINVAL), (CACHE, 512, 512, 0), (TRIM, 11, 1, 0),
                (WRITE_ZEROES, 512, 512, EPERM), (99, 2 ** 64 - 1, 2 ** 64 - 1, EINVAL)):
            equal(client.error(command, offset, length), error, "command %d" % command)


@test("C45 lengths of 64 bits: beyond the end and wrapped around: EINVAL; within it: carried out")
def long_lengths(server):
    with Client(server) as client:
        client.open(b"big+release", EXTENDED_FORM, ["base:allocation"])
        for command in (READ, TRIM, CACHE, STATUS):
            for offset, length in ((0, 20 * T + 1), (1, 20 * T), (0, 2 ** 64 - 1),
                                   (2 ** 63, 2 ** 63), (2 ** 64 - 1, 1), (512, 2 ** 64 - 512),
                                   (20 * T, 1)):
                equal(client.error(command, offset, length), EINVAL,
                      "command %d of %d bytes at %d" % (command, length, offset))
        equal(client.error(CACHE, 0, 20 * T), 0, "CACHE of 20 TiB")
        equal(client.error(READ, 0, 20 * T), EOVERFLOW, "READ of 20 TiB")
        equal(client.error(READ, 0, 2 ** 32 + 512), EOVERFLOW, "READ of more than 4 GiB")


@own("C72 TRIM of any length: 2^32-1 bytes with compact headers, the whole of 10 GiB with long ones")
def long_trims():
    server = Server("--allow-release", "disk=mem:size=10G")
    try:
        with Client(server) as client, Client(server) as long:
            client.open(b"disk+release")
            equal(client.error(TRIM, 0, 2 ** 32 - 1), 0, "TRIM of 2^32-1 bytes")
            equal(client.error(READ, 4 * G - 65536 - 1, 1), EPERM, "READ of what was released")
            equal(client.read(4 * G - 65536, 8), pattern(4 * G - 65536, 8), "READ beside it")
            long.open(b"disk+release", EXTENDED_FORM)
            equal(long.error(TRIM, G, 8 * G), 0, "TRIM of 8 GiB")
            equal(long.error(READ, 9 * G - 1, 1), EPERM, "READ of its last byte")
            equal(long.read(9 * G, 8), pattern(9 * G, 8), "READ beside it")
            equal(long.error(TRIM, 0, 10 * G), 0, "TRIM of everything")
            equal(long.error(READ, 10 * G - 1, 1), EPERM, "READ of the last byte")
    finally:
        server.stop()


@test("C68 C71 extents of more than 4 GiB in one piece (CVE-2025-47711, CVE-2025-47712)")
def long_extents(server):
    with Client(server) as client:
        client.open(b"big", EXTENDED_FORM, ["base:allocation", "qemu:dirty-bitmap:five"])
        extents = client.status(0, 20 * T)
        equal(extents["qemu:dirty-bitmap:five"], [(T, 0), (T, 1), (18 * T, 0)], "dirty bitmap")
        equal(extents["base:allocation"], [(20 * T, 0)], "allocation")
        for flags in (0, REQ_ONE):
            equal(client.status(T + 512, 5 * G, flags)["qemu:dirty-bitmap:five"], [(5 * G, 1)],
                  "one extent of 5 GiB")
        equal(client.status(T, 19 * T, REQ_ONE)["qemu:dirty-bitmap:five"], [(T, 1)], "REQ_ONE")
        for length in (2 ** 32 - 1, 2 ** 32, 2 ** 32 + 1, 2 ** 32 - 512):
            total = sum(n for n, _ in client.status(T - G, length)["qemu:dirty-bitmap:five"])
            equal(total, length // 512 * 512, "range of %d bytes" % length)


@test("C67 C71 a fragmented map of 20 TiB: bounded answers that a client can continue")
def fragmented(server):
    with Client(server) as client:
        client.open(b"big", EXTENDED_FORM, ["qemu:dirty-bitmap:fine"])
        offset = 5 * T
        for _ in range(2):
            extents = client.status(offset, 15 * T - G)["qemu:dirty-bitmap:fine"]
            equal(len(extents), 131072, "extents")
            equal(extents[0], (512, (offset // 512) & 1), "first extent")
            offset += 512 * len(extents)


@test("C71 BLOCK_STATUS with a payload: the contexts asked for, of the length asked for")
def filtered(server):
    with Client(server) as client:
        client.open(b"disk", EXTENDED_FORM, ALL_CONTEXTS)
        ids = {name: number for number, name in client.contexts.items()}
        for names in (["fleece:access"], ["qemu:dirty-bitmap:one", "base:allocation"],
                      ALL_CONTEXTS[::-1]):
            extents = client.status(64 * K, 128 * K, 0, [ids[name] for name in names])
            equal(list(extents), names, "contexts answered, in the order asked for")
        one = client.status(0, SIZE, REQ_ONE, [ids["qemu:dirty-bitmap:one"]])
        equal(one, {"qemu:dirty-bitmap:one": [(64 * K, 0)]}, "REQ_ONE with a payload")
        equal(set(client.status(0, SIZE)), set(ALL_CONTEXTS), "all of them without a payload")


@test("C71 a payload with an unknown or repeated id, or of a wrong size: consumed, EINVAL")
def filtered_wrong(server):
    with Client(server) as client:
        client.open(b"disk", EXTENDED_FORM, ["base:allocation", "fleece:access"])
        good = sorted(client.contexts)
        head = struct.pack(">Q", 512)
        for payload in (struct.pack(">QI", 512, 0), struct.pack(">QI", 512, 77),
                        struct.pack(">QI", 512, 2 ** 32 - 1),
                        struct.pack(">QII", 512, *good[:1] * 2),
                        struct.pack(">QIII", 512, *good, good[0]),
                        head, head[:7], b"x", head + b"xyz",
                        head + bytes(4 * 100), bytes(100000),
                        struct.pack(">QI", 0, good[0]), struct.pack(">QI", SIZE + 1, good[0]),
                        struct.pack(">QI", 2 ** 64 - 1, good[0])):
            answer = client.ask(STATUS, 0, len(payload), 0, payload)
            equal((answer["error"], answer["status"]), (EINVAL, {}), "payload %r" % payload[:20])
            expect(answer["text"], "text")
            equal(client.read(512, 512), pattern(512, 512), "READ afterwards")
    with Client(server) as client:
        client.open(b"disk", EXTENDED_FORM)
        equal(client.error(STATUS, 0, 12, 0, struct.pack(">QI", 512, 1)), EINVAL, "no contexts")


@test("C43 a payload that a command does not take: consumed, EINVAL; of more than 32 MiB: the end")
def payloads(server):
    for command in (READ, FLUSH, TRIM, CACHE, 99):
        with Client(server) as client:
            client.open(b"disk+release", EXTENDED_FORM)
            for length in (1, 512, 100000):
                data = b"\x21\xe4\x1c\x71" * (length // 4) + bytes(length % 4)
                equal(client.error(command, 0, length, PAYLOAD_LEN, data), EINVAL,
                      "command %d" % command)
            equal(client.read(0, 16), pattern(0, 16), "READ afterwards")
            client.request(command, 0, 32 * M + 1, PAYLOAD_LEN)
            client.expect_end()


@test("C42 C43 WRITE with and without PAYLOAD_LEN: consumed as said, EPERM; too long: the end")
def writes(server):
    with Client(server) as client:
        client.open(b"disk", EXTENDED_FORM)
        equal(client.answer_to(client.request(WRITE, 0, 4096))["error"], EPERM, "without data")
        equal(client.answer_to(client.request(WRITE, 0, 2 ** 64 - 1))["error"], EPERM, "huge")
        equal(client.error(WRITE_ZEROES, 0, 20 * T), EPERM, "WRITE_ZEROES")
        equal(client.error(WRITE, 0, 32 * M, 0, bytes(32 * M)), EPERM, "32 MiB")
        equal(client.read(0, 16), pattern(0, 16), "READ afterwards")
        client.request(WRITE, 0, 2 ** 63, PAYLOAD_LEN)
        client.expect_end()


@test("C43 C44 PAYLOAD_LEN with compact headers is an unknown flag: EINVAL, no payload")
def compact_payload(server):
    for form in (SIMPLE_FORM, STRUCTURED_FORM):
        with Client(server) as client:
            client.open(b"disk", form)
            equal(client.error(READ, 0, 512, PAYLOAD_LEN), EINVAL, "READ")
            equal(client.error(FLUSH, 0, 0, PAYLOAD_LEN), EINVAL, "FLUSH")
            equal(client.read(0, 16), pattern(0, 16), "READ afterwards")
