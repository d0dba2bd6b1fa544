#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""This test will let the clients that people use work with fleeced (TAP).

A client that is not installed is a skip that names its package; $FLEECE_ROOT is the
root of a release whose clients are meant, see tools.py. The snapshot is in memory;
what changed since checkpoint "monday" is 1-2 MiB and 5 MiB to 5 MiB + 64 KiB.
"""
import json
import os
import shutil
import sys
import tempfile

from nbdclient import Server, Tap, content, equal, expect, pattern
from tools import run, run_tests, test

M = 1 << 20
SIZE = 16 * M
DISK = "mem:size=16M,cluster=64K,cp=monday/1M-2M/5M-5184K,here=tuesday"
DIRTY = [(M, M), (5 * M, 65536)]
LIMITED = "part=mem:size=16M,cp=monday/1M-2M,since=monday,denied=0-1M,denied=2M-16M"
HOLES = "holes=mem:size=16M,zero=2M-6M,zero=9220K-9232K,zero=15M-16M"


class World:
    """A server and a directory for results."""

    def __init__(self):
        self.server = Server("--allow-release", "disk=" + DISK, LIMITED, HOLES, listen=True)
        self.directory = tempfile.mkdtemp(prefix="fleeced-clients-")

    def uri(self, export=""):
        """URI of an export over the Unix socket."""
        return "nbd+unix:///%s?socket=%s" % (export, self.server.path)

    def file(self, name):
        """Path for a result."""
        return os.path.join(self.directory, name)

    def image(self, export, **more):
        """Options of qemu for an export."""
        options = {"driver": "nbd", "server.type": "unix", "server.path": self.server.path,
                   "export": export}
        options.update(more)
        return ",".join("%s=%s" % item for item in options.items())

    def close(self):
        """End the server and remove the results."""
        shutil.rmtree(self.directory)
        self.server.stop()


def dirty_ranges(world, export="disk"):
    """The dirty bitmap, as nbdinfo tells it."""
    rows = json.loads(run("nbdinfo", "--json", "--map=qemu:dirty-bitmap:monday",
                          world.uri(export)))
    return [(row["offset"], row["length"]) for row in rows if row["type"] & 1]


@test("nbdinfo --list shows exports, contexts and descriptions", "libnbd-bin", "nbdinfo")
def info_list(world):
    found = json.loads(run("nbdinfo", "--list", "--json", world.uri()))
    exports = {export["export-name"]: export for export in found["exports"]}
    equal(list(exports), ["disk", "disk@monday", "disk@tuesday", "disk+release", "part",
                          "part@monday", "part+release", "holes", "holes+release"], "exports")
    equal(exports["disk@monday"]["contexts"],
          ["base:allocation", "qemu:dirty-bitmap:monday", "fleece:clean:monday",
           "fleece:access"], "contexts")
    expect("checkpoint monday 00000000" in exports["disk"]["description"], "description")
    equal(exports["disk"]["export-size"], SIZE, "size")


@test("nbdinfo --map of each context", "libnbd-bin", "nbdinfo")
def info_map(world):
    equal(dirty_ranges(world), DIRTY, "dirty bitmap")
    equal(dirty_ranges(world, "disk@monday"), DIRTY, "dirty bitmap of NAME@CHECKPOINT")
    for context, ones in (("fleece:clean:monday", SIZE - M - 65536), ("fleece:access", 0),
                          ("base:allocation", 0), ("qemu:dirty-bitmap:tuesday", 0)):
        rows = json.loads(run("nbdinfo", "--json", "--map=" + context, world.uri("disk")))
        equal(sum(row["length"] for row in rows), SIZE, "range of " + context)
        equal(sum(row["length"] for row in rows if row["type"] & 1), ones, "bits of " + context)
    run("nbdinfo", "--map=qemu:dirty-bitmap:sunday", world.uri("disk"), status=1)


@test("nbdinfo --can and --is", "libnbd-bin", "nbdinfo")
def info_can(world):
    for export, yes, no in (
            ("disk", ("connect", "read", "multi-conn", "structured-reply", "df", "cache",
                      "flush"), ("write", "trim", "zero", "fua")),
            ("disk+release", ("write", "trim", "fua", "multi-conn"), ("zero",))):
        for what in yes:
            run("nbdinfo", "--can", what, world.uri(export))
        for what in no:
            run("nbdinfo", "--can", what, world.uri(export), status=2)
    run("nbdinfo", "--is", "read-only", world.uri("disk"))
    run("nbdinfo", "--is", "read-only", world.uri("disk+release"), status=2)
    run("nbdinfo", "--is", "tls", world.uri("disk"), status=2)


@test("nbdcopy: a full copy, over Unix socket and TCP, with several connections", "libnbd-bin",
      "nbdcopy")
def copy(world):
    for uri in (world.uri("disk"), "nbd://127.0.0.1:%d/disk" % world.server.port()):
        target = world.file("copy")
        run("nbdcopy", "--connections=4", "--requests=64", "--threads=2", uri, target)
        expect(content(target) == pattern(0, SIZE), "the copy differs")
        os.unlink(target)


@test("nbdcopy fails on a snapshot with inaccessible parts, and does not skip them", "libnbd-bin",
      "nbdcopy")
def copy_denied(world):
    run("nbdcopy", world.uri("part"), world.file("partial"), status=1)


@test("qemu-img map with x-dirty-bitmap", "qemu-utils", "qemu-img")
def qemu_map(world):
    rows = json.loads(run("qemu-img", "map", "--output=json", "--image-opts", world.image(
        "disk", **{"x-dirty-bitmap": "qemu:dirty-bitmap:monday"})))
    equal([(row["start"], row["length"]) for row in rows if not row["data"]], DIRTY, "dirty")
    rows = json.loads(run("qemu-img", "map", "--output=json", world.uri("disk")))
    equal([(row["start"], row["length"], row["data"], row["zero"]) for row in rows],
          [(0, SIZE, True, False)], "base:allocation")


@test("qemu-img convert and compare", "qemu-utils", "qemu-img")
def qemu_convert(world):
    target = world.file("full.qcow2")
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-m", "16", "-W", world.uri("disk"),
        target)
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", world.uri("disk"), target)
    run("qemu-img", "convert", "-f", "raw", "-O", "raw", world.uri("part"),
        world.file("part.raw"), status=1)


@test("zeroes that are sent as holes arrive: nbdcopy, qemu-img convert and compare",
      "qemu-utils libnbd-bin", "nbdcopy", "qemu-img")
def holes(world):
    wanted = bytearray(pattern(0, SIZE))
    for start, length in ((2 * M, 4 * M), (9 * M + 4096, 12288), (15 * M, M)):
        wanted[start:start + length] = bytes(length)
    uri = world.uri("holes")
    run("nbdcopy", uri, world.file("holes.raw"))
    expect(content(world.file("holes.raw")) == wanted, "nbdcopy's copy differs")
    run("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, world.file("holes.img"))
    expect(content(world.file("holes.img")) == wanted, "qemu-img's copy differs")
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", uri, world.file("holes.raw"))


@test("incremental backup with nbdinfo and qemu-io, put together and compared",
      "qemu-utils libnbd-bin", "qemu-img", "qemu-io", "nbdinfo")
def incremental(world):
    full, inc = world.file("base.raw"), world.file("inc.qcow2")
    with open(full, "wb") as base:
        base.write(pattern(0, SIZE))
        for start, length in DIRTY:
            base.seek(start)
            base.write(bytes(length))
    run("qemu-img", "create", "-f", "qcow2", "-F", "raw", "-b", world.uri("disk"), inc)
    reads = "".join("read %d %d\n" % extent for extent in dirty_ranges(world))
    run("qemu-io", "-C", "-f", "qcow2", inc, data=reads.encode())
    run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", full, inc)
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", world.uri("disk"), inc)


@test("incremental backup of what is accessible since a checkpoint", "qemu-utils libnbd-bin",
      "qemu-io", "nbdinfo")
def incremental_since(world):
    equal(dirty_ranges(world, "part"), [(M, M)], "dirty bitmap")
    run("qemu-io", "-r", "-f", "raw", world.uri("part"), "-c", "read 1M 1M")
    run("qemu-io", "-r", "-f", "raw", world.uri("part"), "-c", "read 2M 64K", status=1)


@test("qemu-io discards on NAME+release, and reads of that fail", "qemu-utils", "qemu-io")
def qemu_release(world):
    uri = world.uri("disk+release")
    run("qemu-io", "-d", "unmap", "-f", "raw", uri, "-c", "discard 15M 128K")
    run("qemu-io", "-r", "-f", "raw", world.uri("disk"), "-c", "read 15M 64K", status=1)
    run("qemu-io", "-f", "raw", uri, "-c", "write 0 64K", status=1)
    run("qemu-io", "-r", "-f", "raw", world.uri("disk"), "-c", "read 14M 1M")


LIBNBD = r"""
import errno, nbd, sys
uri, release = sys.argv[1:3]
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.add_meta_context("qemu:dirty-bitmap:monday")
h.connect_uri(uri)
assert h.is_read_only() and h.can_multi_conn() and h.can_df()
found, at = [], 0
while at < h.get_size():
    step = {}
    h.block_status(h.get_size() - at, at, lambda name, off, e, err: step.update({name: e}) or 0)
    assert set(step) == {"base:allocation", "qemu:dirty-bitmap:monday"}, step
    totals = {sum(e[0::2]) for e in step.values()}
    assert len(totals) == 1, totals
    pos = at
    for length, flags in zip(*[iter(step["qemu:dirty-bitmap:monday"])] * 2):
        if flags & 1:
            found.append((pos, length))
        pos += length
    at += totals.pop()
assert found == [(1 << 20, 1 << 20), (5 << 20, 65536)], found
r = nbd.NBD()
r.connect_uri(release)
assert not r.is_read_only() and r.can_trim()
first = bytes(r.pread(65536, 12 << 20))
r.trim(65536, 12 << 20)
for handle in (r, h):
    try:
        handle.pread(512, 12 << 20)
    except nbd.Error as ex:
        assert ex.errnum == errno.EPERM, (ex.string, ex.errno)
    else:
        raise AssertionError("a released cluster was read")
try:
    r.pwrite(b"x" * 512, 0)
except nbd.Error as ex:
    assert ex.errnum == errno.EPERM, (ex.string, ex.errno)
else:
    raise AssertionError("a write was accepted")
assert len(h.pread(4096, (12 << 20) - 4096)) == 4096
r.shutdown()
h.shutdown()
"""


@test("python3-libnbd: maps, release, errors on a connection that lives on", "python3-libnbd",
      "python3-libnbd")
def python_libnbd(world):
    run("/usr/bin/python3", "-c", LIBNBD, world.uri("disk"), world.uri("disk+release"))


VIRTNBDBACKUP = r"""
import inspect, sys
from libvirtnbdbackup import nbdcli
from libvirtnbdbackup.extenthandler import ExtentHandler
socket, export = sys.argv[1:3]
# Newer versions can be told not to look for holes in what is dirty.
more = [False] if "no_sparse_detection" in inspect.signature(nbdcli.client).parameters else []
found = []
for context in "", "qemu:dirty-bitmap:monday":
    kind = nbdcli.Unix(export, context, socket)
    client = nbdcli.client(kind, *more).connect()
    found.append([(extent.offset, extent.length)
                  for extent in ExtentHandler(client, kind, *more).queryBlockStatus() if extent.data])
    assert len(client.nbd.pread(4 << 20, 1 << 20)) == 4 << 20
    client.disconnect()
assert found == [[(0, 16 << 20)], [(1 << 20, 1 << 20), (5 << 20, 65536)]], found
"""


@test("virtnbdbackup's own NBD client and extents, full and incremental", "virtnbdbackup",
      "virtnbdbackup")
def virtnbdbackup(world):
    run("/usr/bin/python3", "-c", VIRTNBDBACKUP, world.server.path, "disk@monday")


ONE_BITMAP = r"""
import nbd, sys
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri(sys.argv[1])
h.add_meta_context("qemu:dirty-bitmap:")
bitmaps = []
h.opt_list_meta_context(bitmaps.append)
assert bitmaps == ["qemu:dirty-bitmap:monday"], bitmaps
h.clear_meta_contexts()
h.add_meta_context("base:allocation")
h.add_meta_context(bitmaps[0])
h.opt_go()
found = {}
h.block_status(h.get_size(), 0, lambda name, offset, e, err: found.update({name: e}) or 0)
assert found["qemu:dirty-bitmap:monday"][:4] == [1 << 20, 0, 1 << 20, 1], found
assert set(found) == {"base:allocation", bitmaps[0]}, found
h.shutdown()
"""


@test("a client that lists the bitmaps and wants exactly one, as oVirt's does (emulated)",
      "python3-libnbd", "python3-libnbd")
def one_bitmap(world):
    run("/usr/bin/python3", "-c", ONE_BITMAP, world.uri("disk@monday"))


@test("nbdkit's nbd plugin reads through", "nbdkit libnbd-bin qemu-utils", "nbdkit", "nbdcopy",
      "qemu-io")
def nbdkit_plugin(world):
    target = world.file("through")
    run("nbdkit", "-U", "-", "-r", "nbd", "uri=" + world.uri("part"), "--run",
        'qemu-io -r -f raw "$uri" -c "read 1M 1M"')
    run("nbdkit", "-U", "-", "-r", "nbd", "uri=" + world.uri("disk@tuesday"),
        "--filter=offset", "range=8M", "--run", "nbdcopy $uri " + target)
    expect(content(target) == pattern(0, 8 * M), "the copy differs")


@test("nbd-client lists the exports", "nbd-client", "nbd-client")
def client_list(world):
    output = run("nbd-client", "-l", "-unix", world.server.path)
    expect("disk@monday" in output and "part+release" in output, "list: " + output)


@test("fio's nbd engine reads at random", "fio", "fio")
def fio(world):
    run("fio", "--name=t", "--ioengine=nbd", "--uri=" + world.uri("disk@monday"), "--rw=randread",
        "--bs=4k", "--iodepth=32", "--size=8M", "--output=" + world.file("fio"))


def main():
    tap = Tap()
    world = World()
    run_tests(tap, world)
    tap.run("the server has ended well after all clients", world.close)
    return tap.finish()


if __name__ == "__main__":
    sys.exit(main())
