#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""Part of served_snapshot.sh: asks fleeced about a real snapshot (TAP).

served_snapshot.py healthy|lost|broken|gone SOCKET EXPORT GOLDEN

GOLDEN holds what the snapshot shows. It was taken since checkpoint "first":
1-2 MiB and 5 MiB to 5 MiB + 64 KiB are accessible, clusters are 64 KiB.
"""
import re
import sys
import time

from nbdclient import (
    ACK, EINVAL, EIO, EPERM, EXTENDED_FORM, FLUSH, FORMS, INFO, LIST_META, READ, REQ_ONE,
    SIMPLE_FORM, STATUS, STRUCTURED_FORM, TRIM, WRITE, Client, Tap, equal, expect)

K, M = 1 << 10, 1 << 20
CONTEXTS = ["base:allocation", "qemu:dirty-bitmap:first", "qemu:dirty-bitmap:second",
            "fleece:clean:first", "fleece:access"]


class World:
    """The server, and what it must show."""

    def __init__(self, path, export, golden):
        self.path = path
        self.export = export
        self.golden = golden

    def name(self, suffix=""):
        """An export's name as it is sent."""
        return (self.export + suffix).encode()

    def data(self, offset, length):
        """What the snapshot shows."""
        with open(self.golden, "rb") as file:
            file.seek(offset)
            return file.read(length)


def exports(world):
    with Client(world) as client:
        for suffix in ("", "@first", "@second", "+release"):
            text = client.go(world.name(suffix), INFO, (1, 2))[2].decode()
            names = re.findall(r"checkpoint (\S+) [0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
                               text)
            equal(names, ["second"] if suffix == "@second" else ["first", "second"],
                  "checkpoints in the description " + text)
            expect("since first" in text and "(this moment)" in text, "description: " + text)
        equal([name for name, _ in client.meta(LIST_META, world.name("@first"))],
              ["base:allocation", "qemu:dirty-bitmap:first", "fleece:clean:first",
               "fleece:access"], "contexts")
        equal(client.option(LIST_META, b"")[0][0] >> 31, 1, "malformed option")
        equal(client.option(2)[0][0], ACK, "ABORT")


def reads(world):
    for form in FORMS:
        with Client(world) as client:
            client.open(world.name(), form)
            for offset, length in ((M, M), (M, 1), (M + 1, 1000), (M + 511, 2), (2 * M - 1, 1),
                                   (5 * M, 64 * K), (5 * M + 4095, 8193), (M + 4 * K, 12 * K)):
                expect(client.read(offset, length) == world.data(offset, length),
                       "data of %d bytes at %d" % (length, offset))


def denied(world):
    for form in FORMS:
        with Client(world) as client:
            client.open(world.name(), form)
            for offset, length, bad in (
                    (0, 512, 0), (0, 1, 0), (M - 512, 1024, M - 512), (2 * M - 1, 2, 2 * M),
                    (M, 5 * M, 2 * M), (5 * M + 64 * K, 512, 5 * M + 64 * K), (0, 8 * M, 0)):
                answer = client.ask(READ, offset, length)
                equal(answer["error"], EPERM, "READ of %d bytes at %d" % (length, offset))
                equal(answer.get("bad offset"), None if form == SIMPLE_FORM else bad,
                      "first byte that is not accessible")
                expect(form == SIMPLE_FORM or "not accessible" in answer["text"], "text")
            expect(client.read(M, 4096) == world.data(M, 4096), "READ afterwards")
            equal(client.error(READ, 1 << 60, 512), EINVAL, "READ beyond the end")
            equal(client.error(TRIM, M, 512), EPERM, "TRIM on a read-only export")


def maps(world):
    for form in (STRUCTURED_FORM, EXTENDED_FORM):
        with Client(world) as client:
            client.open(world.name(), form, CONTEXTS)
            size = int.from_bytes(client.items[0][:8], "big")
            wanted = [(M, 0), (M, 1), (3 * M, 0), (64 * K, 1), (size - 5 * M - 64 * K, 0)]
            extents = client.status(0, size)
            equal(extents["qemu:dirty-bitmap:first"], wanted, "changed since first")
            equal(extents["qemu:dirty-bitmap:second"], [(size, 0)], "changed since this moment")
            equal(extents["fleece:clean:first"], [(n, 1 - f) for n, f in wanted], "clean")
            equal(extents["fleece:access"], [(n, 1 - f) for n, f in wanted], "access")
            equal(extents["base:allocation"], [(size, 0)], "allocation")
            one = client.status(M + 100, size - M - 100, REQ_ONE)
            equal(one["qemu:dirty-bitmap:first"], [(M - 100, 1)], "REQ_ONE")


def release(world):
    with Client(world) as client:
        client.open(world.name("+release"), contexts=["fleece:access"])
        equal(client.error(WRITE, M, 512, 0, bytes(512)), EPERM, "WRITE")
        equal(client.error(TRIM, M + 1, 64 * K), 0, "TRIM of no whole cluster")
        expect(client.read(M, 128 * K) == world.data(M, 128 * K), "nothing is released")
        equal(client.error(TRIM, M, 128 * K), 0, "TRIM of two clusters")
        equal(client.error(READ, M, 512), EPERM, "READ of the first")
        equal(client.error(READ, M + 128 * K - 1, 1), EPERM, "READ of the second")
        expect(client.read(M + 128 * K, 4096) == world.data(M + 128 * K, 4096), "READ beside it")
        equal(client.status(M, 256 * K)["fleece:access"], [(128 * K, 1), (128 * K, 0)], "access")
        equal(client.error(TRIM, 0, 0), 0, "TRIM of nothing")
        equal(client.error(FLUSH), 0, "FLUSH")


def lost(world):
    for form in FORMS:
        with Client(world) as client:
            client.open(world.name(), form,
                        () if form == SIMPLE_FORM else ("base:allocation", "fleece:access"))
            for offset, length in ((M, 64 * K), (M + 1000, 10), (M - 4 * K, 8 * K), (0, 2 * M)):
                answer = client.ask(READ, offset, length)
                equal(answer["error"], EIO, "READ of %d bytes at %d" % (length, offset))
                expect(form == SIMPLE_FORM or "lost cluster" in answer["text"], "text")
                equal(answer["data"], b"", "data")
            for offset in (M - 64 * K, M + 64 * K):
                expect(client.read(offset, 64 * K) == world.data(offset, 64 * K), "READ beside it")
            if form != SIMPLE_FORM:
                size = int.from_bytes(client.items[0][:8], "big")
                extents = client.status(0, size)
                equal(extents["base:allocation"], [(size, 0)], "data, never a hole")
                equal(extents["fleece:access"], [(M, 0), (64 * K, 1), (size - M - 64 * K, 0)],
                      "access")


def broken(world):
    with Client(world) as client:
        client.open(world.name("+release"), contexts=["base:allocation", "fleece:access"])
        deadline = time.monotonic() + 30
        while not client.error(READ, 0, 512):
            expect(time.monotonic() < deadline, "the snapshot does not break")
        for command in (READ, STATUS):
            for offset in (0, M, 15 * M):
                answer = client.ask(command, offset, 64 * K)
                equal(answer["error"], EIO, "command %d" % command)
                expect("broken" in answer["text"] and "No space" in answer["text"],
                       "text: " + answer["text"])
        equal(client.error(FLUSH), 0, "FLUSH on the same connection")


def gone(world):
    with Client(world) as client:
        client.open(world.name())
        for offset in (0, M, 15 * M):
            equal(client.error(READ, offset, 64 * K), EPERM, "second READ")


CASES = {
    "healthy": (("exports are described with their checkpoints' uuids", exports),
                ("accessible data, aligned or not", reads),
                ("what is not accessible gets EPERM", denied),
                ("maps", maps),
                ("TRIM on the release export releases", release)),
    "lost": (("a lost cluster gives EIO with a text, and nothing else does", lost),),
    "broken": (("a snapshot that broke gives EIO with the cause, for data and maps", broken),),
    "gone": (("what was read once cannot be read again", gone),),
}


def main():
    world = World(*sys.argv[2:5])
    tap = Tap()
    for title, function in CASES[sys.argv[1]]:
        tap.run(title, function, world)
    return tap.finish()


if __name__ == "__main__":
    sys.exit(main())
