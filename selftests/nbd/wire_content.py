# SPDX-License-Identifier: GPL-2.0-only
"""Tests on the wire: what a READ delivers: data, holes, errors. Part of wire.py."""
import struct

from nbdclient import *  # noqa: F403  the protocol's own names
from wirecases import *  # noqa: F403  what is served, and the lists of tests

ZEROES = ((M, 2 * M), (3 * M + 4 * K, 3 * M + 8 * K), (3 * M + 20 * K, 3 * M + 21 * K),
          (4 * M + 1, 5 * M - 1))
SPARSE = "sparse=mem:size=40M" + "".join(",zero=%d-%d" % run for run in ZEROES)
CHUNKED = (STRUCTURED_FORM, EXTENDED_FORM)


def content(offset, length):
    """What the sparse export holds."""
    data = bytearray(pattern(offset, length))
    for start, end in ZEROES:
        first, last = max(start - offset, 0), min(end - offset, length)
        if first < last:
            data[first:last] = bytes(last - first)
    return bytes(data)


def chunks_of(answer):
    """Content chunks as hole or not, offset, length; nothing else may be there."""
    result = []
    for kind, payload in answer["chunks"]:
        if kind == HOLE:
            result.append((True,) + struct.unpack(">QI", payload))
        else:
            equal(kind, DATA, "kind of a chunk")
            result.append((False, struct.unpack(">Q", payload[:8])[0], len(payload) - 8))
    return result


def with_sparse(function, *options):
    """Run a test's function with a client of each form that has chunks."""
    server = Server(*options, SPARSE)
    try:
        for form in CHUNKED:
            with Client(server) as client:
                client.open(b"sparse", form)
                function(client)
    finally:
        server.stop()


@own("C63 zeroes are sent as holes: in order, without overlap, all of the request")
def holes():
    def check(client):
        equal(chunks_of(client.ask(READ, M, M)), [(True, M, M)], "only zeroes")
        equal(chunks_of(client.ask(READ, M - 4096, M + 8192)),
              [(False, M - 4096, 4096), (True, M, M), (False, 2 * M, 4096)], "data around zeroes")
        equal(chunks_of(client.ask(READ, 3 * M, 64 * K)),
              [(False, 3 * M, 4 * K), (True, 3 * M + 4 * K, 4 * K),
               (False, 3 * M + 8 * K, 56 * K)], "4 KiB of zeroes, and less than that")
        for offset, length in ((M - 777, 1000), (M + 1, 3), (4 * M, M), (4 * M + 1, M - 2),
                               (3 * M + 100, 20000), (0, 32 * M), (M - 1, M + 2), (39 * M, M),
                               (2 * M - 1, 1), (512, 512)):
            answer = client.ask(READ, offset, length)
            expect(answer["data"] == content(offset, length),
                   "data of %d bytes at %d" % (length, offset))
            equal(answer["offset"], offset, "first byte")
            expect(all(a[0] != b[0] for a, b in zip(chunks_of(answer), chunks_of(answer)[1:])),
                   "neighbouring chunks differ")
            if offset % 512 == 0 and length % 512 == 0:
                expect(all(n % 512 == 0 for _, _, n in chunks_of(answer)), "whole sectors")
    with_sparse(check)


@own("C64 the last content chunk ends the reply: no empty chunk after it")
def done():
    def check(client):
        for offset, length in ((M, M), (0, 512), (M - 512, 1024), (2 * M - 512, 1024)):
            answer = client.ask(READ, offset, length)
            expect(all(kind in (DATA, HOLE) for kind, _ in answer["chunks"]), "kinds of chunks")
    with_sparse(check)


@own("C63 C49 with DF zeroes are data, in one chunk")
def undivided():
    def check(client):
        for offset, length in ((M, M), (M - 512, 1024), (0, 5 * M), (3 * M, 64 * K)):
            answer = client.ask(READ, offset, length, DF)
            equal(chunks_of(answer), [(False, offset, length)], "chunks")
            expect(answer["data"] == content(offset, length), "data")
    with_sparse(check)


@own("--no-holes sends zeroes as data")
def switched_off():
    def check(client):
        answer = client.ask(READ, M - 512, 4 * M)
        equal(chunks_of(answer), [(False, M - 512, 4 * M)], "chunks")
        expect(answer["data"] == content(M - 512, 4 * M), "data")
    with_sparse(check, "--no-holes")


@own("C60 simple replies have no holes")
def simple():
    server = Server(SPARSE)
    try:
        with Client(server) as client:
            client.open(b"sparse", SIMPLE_FORM)
            expect(client.read(M - 512, 2 * M) == content(M - 512, 2 * M), "data")
    finally:
        server.stop()


@own("--read-once releases holes too, once they were delivered")
def read_once():
    server = Server("--read-once", SPARSE)
    try:
        with Client(server) as client:
            client.open(b"sparse", contexts=["fleece:access"])
            equal(client.read(M, M), bytes(M), "data")
            wait_released(client, M)
            equal(client.status(M, 2 * M)["fleece:access"], [(M, 1), (M, 0)], "fleece:access")
    finally:
        server.stop()


@test("C65 C66 denied: ERROR_OFFSET with the first byte that is not accessible, and no data")
def error_offset(server):
    for form in CHUNKED:
        with Client(server) as client:
            client.open(b"disk", form)
            for offset, length, bad in ((4 * M, 512, 4 * M), (4 * M - 512, 1024, 4 * M),
                                        (4 * M - 3, 5, 4 * M), (5 * M - 1, 2, 5 * M - 1),
                                        (3 * M, 3 * M, 4 * M), (0, SIZE, 4 * M)):
                for flags in (0, DF):
                    answer = client.ask(READ, offset, length, flags)
                    equal([kind for kind, _ in answer["chunks"]], [ERROR_OFFSET], "chunks")
                    equal((answer["error"], answer["bad offset"]), (EPERM, bad), "error")
                    expect("not accessible" in answer["text"], "text: " + answer["text"])


@own("what is lost gets EIO, and fleece:access tells it beforehand")
def lost():
    server = Server("lost=mem:size=8M,denied=1M-2M,lost=2M-2112K")
    try:
        with Client(server) as client:
            client.open(b"lost", contexts=["base:allocation", "fleece:access"])
            equal(client.error(READ, 2 * M, 512), EIO, "lost")
            extents = client.status(0, 8 * M)
            equal(extents["fleece:access"], [(M, 0), (1088 * K, 1), (6080 * K, 0)], "access")
            equal(extents["base:allocation"], [(8 * M, 0)], "allocation")
    finally:
        server.stop()


@test("C65 lost, or any other error: ERROR alone, never mixed, and no data (CVE-2022-0485)")
def plain_errors(server):
    for form in CHUNKED:
        with Client(server) as client:
            client.open(b"disk", form)
            for offset, length, error in ((6 * M, 512, EIO), (6 * M - 512, 1024, EIO),
                                          (SIZE, 512, EINVAL), (0, 33 * M, EINVAL)):
                answer = client.ask(READ, offset, length)
                equal([kind for kind, _ in answer["chunks"]], [ERROR], "chunks")
                equal(answer["error"], error, "error")
