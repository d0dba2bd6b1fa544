#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""This test will pull backups with fleece-pull, built with sanitizers (TAP).

The server is fleeced with snapshots in memory; qemu-nbd and nbdkit serve what
that one cannot: holes, zeroes and plain protocols. Checked are the data, the
exit status, and that a failure leaves nothing new and nothing half written.
"""
import ctypes
import errno
import fcntl
import json
import os
import re
import resource
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import types

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "nbd"))

# pylint: disable=wrong-import-position
from nbdclient import (  # noqa: E402
    Failed, Server, Tap, content, equal, expect, pattern, wait_for)

PULL = os.path.join(HERE, "fleece-pull")
K, M = 1 << 10, 1 << 20
SIZE = 16 * M
EXPORTS = [
    "disk=mem:size=16M,cluster=64K,cp=monday/1M-2M/5M-5184K,here=tuesday",
    "part=mem:size=16M,cp=monday/1M-2M,since=monday,denied=0-1M,denied=2M-16M",
    "gap=mem:size=16M,cp=monday/0-2M,denied=0-1M",
    "lost=mem:size=16M,cp=monday/3M-4M,lost=3M-4M",
    "bad=mem:size=16M,cp=monday/3M-4M,bad=3M-4M",
    "odd=mem:size=1000001,cp=monday",
    "stripes=mem:size=64M,stripes=monday/4K",
]
DIRTY = [(M, M), (5 * M, 64 * K)]
QEMU = ("qemu-img", "qemu-nbd")
DONE, FAILED, USAGE, NO_DEVICE, BUSY, BROKEN, NO_CHECKPOINT = 0, 1, 2, 4, 5, 6, 7


class World:
    """A server, and a directory that is emptied for each test."""

    def __init__(self):
        self.server = Server(*EXPORTS, listen=True)
        self.top = tempfile.mkdtemp(prefix="fleece-pull-")
        self.directory = None
        self.count = 0

    def clean(self):
        """A new directory."""
        self.count += 1
        self.directory = os.path.join(self.top, str(self.count))
        os.mkdir(self.directory)

    def uri(self, export="disk", server=None):
        """URI of an export."""
        return "nbd+unix:///%s?socket=%s" % (export, (server or self.server).path)

    def file(self, name="target", data=None):
        """Path in the directory, of a file with that data."""
        path = os.path.join(self.directory, name)
        if data is not None:
            with open(path, "wb") as file:
                file.write(data)
        return path

    def left(self):
        """What is in the directory."""
        return sorted(os.listdir(self.directory))

    def close(self):
        """The server must end well."""
        shutil.rmtree(self.top)
        self.server.stop()


def start(*arguments, **more):
    """The program, running."""
    return subprocess.Popen([PULL, *arguments], stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def finish(process, status, says=""):
    """Wait for its end, check it, return what it printed."""
    try:
        output, errors = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    equal(process.returncode, status, "exit status, with the message " + errors)
    expect(status == DONE or errors.startswith("fleece: pull: "), "message: " + errors)
    expect(says in errors, "expected '%s' in the message: %s" % (says, errors))
    return output


def pull(*arguments, status=DONE, says="", **more):
    """Run it to its end."""
    return finish(start(*arguments, **more), status, says)


def old_image():
    """A backup from monday: the same but for what changed since."""
    data = bytearray(pattern(0, SIZE))
    for offset, length in DIRTY:
        data[offset:offset + length] = b"\xa5" * length
    return bytes(data)


def full(world):
    output = pull(world.uri(), world.file())
    expect("16.0M read" in output, "output: " + output)
    expect(content(world.file()) == pattern(0, SIZE), "the backup differs")
    equal(world.left(), ["target"], "files")
    equal(stat.S_IMODE(os.stat(world.file()).st_mode), 0o600, "mode")
    port = world.server.port()
    pull("nbd://127.0.0.1:%d/odd" % port, world.file("odd"), "--connections", "1")
    expect(content(world.file("odd")) == pattern(0, 1000001), "the odd backup differs")


def full_existing(world):
    path = world.file(data=b"precious")
    pull(world.uri(), path, status=BUSY, says="--replace")
    equal(content(path), b"precious", "what was there")
    os.symlink("target", world.file("link"))
    pull(world.uri("bad"), world.file("link"), "--replace", status=FAILED, says="cannot read")
    equal(content(path), b"precious", "what was there, after a failure")
    pull(world.uri(), world.file("link"), "--replace")
    expect(content(path) == pattern(0, SIZE), "the backup differs")
    expect(os.path.islink(world.file("link")), "the link is one still")
    equal(world.left(), ["link", "target"], "files")
    os.symlink("none", world.file("dangling"))
    for more in (), ("--replace",):
        pull(world.uri(), world.file("dangling"), *more, status=NO_DEVICE, says="is not there")
    equal(world.left(), ["dangling", "link", "target"], "files")


def since(world):
    data = old_image()
    # What did not change is not written: a mark there stays.
    data = data[:8 * M] + b"mark" + data[8 * M + 4:]
    for export in ("disk", "disk@monday"):
        path = world.file(data=data)
        result = json.loads(pull(world.uri(export), path, "--since", "monday", "--json"))
        equal(result["read_bytes"], sum(length for _, length in DIRTY), "bytes read")
        equal(result["unchanged_bytes"], SIZE - result["read_bytes"], "bytes unchanged")
        equal((result["version"], result["since"], result["target"], result["size_bytes"],
               result["zero_bytes"]), (1, "monday", path, SIZE, 0), "result")
        expect("checkpoint monday 0000" in result["description"], "description")
        found = content(path)
        expect(found[8 * M:8 * M + 4] == b"mark", "unchanged data was written")
        expect(found[:8 * M] + pattern(8 * M, 4) + found[8 * M + 4:] == pattern(0, SIZE),
               "the backup differs")


def since_limited(world):
    path = world.file(data=old_image())
    pull(world.uri("part"), path, "--since", "monday")
    expect(content(path)[:5 * M] == pattern(0, 5 * M), "the backup differs")


def since_many(world):
    size = 64 * M
    path = world.file(data=bytes(size))
    pull(world.uri("stripes"), path, "--since", "monday")
    found, wanted = content(path), pattern(0, size)
    for at in range(0, size, 8 * K):
        expect(found[at:at + 4 * K] == bytes(4 * K), "clean data was written at %d" % at)
        expect(found[at + 4 * K:at + 8 * K] == wanted[at + 4 * K:at + 8 * K],
               "changed data is missing at %d" % at)


def since_nothing(world):
    path = world.file(data=b"x" * SIZE)
    output = pull(world.uri(), path, "--since", "tuesday")
    expect("16.0M unchanged" in output, "output: " + output)
    equal(content(path), b"x" * SIZE, "the backup")


def no_checkpoint(world):
    path = world.file(data=old_image())
    for export, checkpoint in (("disk", "sunday"), ("disk@tuesday", "monday")):
        pull(world.uri(export), path, "--since", checkpoint, status=NO_CHECKPOINT,
             says="make a full backup")
    expect(content(path) == old_image(), "the backup was touched")


def denied(world):
    pull(world.uri("part"), world.file(), status=FAILED, says="15728640 bytes")
    path = world.file("old", old_image())
    pull(world.uri("gap"), path, "--since", "monday", status=FAILED, says="at offset 0")
    expect(content(path) == old_image(), "the backup was touched")
    equal(world.left(), ["old"], "files")


def lost(world):
    path = world.file("old", old_image())
    pull(world.uri("lost"), world.file(), status=FAILED, says="or lost")
    pull(world.uri("lost"), path, "--since", "monday", status=FAILED,
         says="1048576 bytes of what is needed cannot be read, the first at offset 3145728")
    expect(content(path) == old_image(), "the backup was touched")
    equal(world.left(), ["old"], "files")


def unreadable(world):
    pull(world.uri("bad"), world.file(), status=FAILED, says="at offset 3145728")
    equal(world.left(), [], "files")
    path = world.file("old", old_image())
    pull(world.uri("bad"), path, "--since", "monday", status=FAILED, says="part old and part new")


def wrong_targets(world):
    pull(world.uri(), world.file(), "--since", "monday", status=NO_DEVICE, says="earlier backup")
    path = world.file("short", b"x" * 1000)
    pull(world.uri(), path, "--since", "monday", status=FAILED, says="truncate")
    equal(content(path), b"x" * 1000, "the short file")
    pull(world.uri(), world.directory, status=FAILED, says="neither a file nor a block device")
    pull(world.uri(), "/dev/null", "--since", "monday", status=FAILED, says="neither a file")
    pull(world.uri(), world.file("no/such"), status=NO_DEVICE, says="its directory")
    pull(world.uri(), world.file("no/"), status=NO_DEVICE, says="its directory")
    pull(world.uri(), "/dev/no-such-volume", status=NO_DEVICE, says="gone after a reboot")
    equal(world.left(), ["short"], "files")


def wrong_sources(world):
    pull(world.uri("nope"), world.file(), status=NO_DEVICE, says="nope")
    pull(world.uri() + "x", world.file(), status=NO_DEVICE, says="cannot connect")
    equal(world.left(), [], "files")


def lock(file):
    """As a pull that writes to it."""
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 1 << 62)


def locked(world):
    for name, more in (("target.partial", ()), ("target", ("--since", "monday")),
                       ("target", ("--replace",))):
        path = world.file(name, old_image())
        with open(path, "r+b") as holder:
            lock(holder)
            pull(world.uri(), world.file(), *more, status=BUSY, says="somebody else")
        expect(content(path) == old_image(), "%s was touched" % name)
    equal(world.left(), ["target", "target.partial"], "files")


def locked_by_replace(world):
    """What is going to be replaced is not brought up to date meanwhile."""
    path = world.file(data=old_image())
    server, process = begin_slow(world, more=("--replace",))
    for more in ("--since", "monday"), ("--replace",):
        pull(world.uri(), path, *more, status=BUSY, says="somebody else")
    expect(content(path) == old_image(), "the target was touched")
    process.send_signal(signal.SIGINT)
    finish(process, FAILED, "interrupted: Interrupt")
    server.stop()
    pull(world.uri(), path, "--since", "monday")
    expect(content(path) == pattern(0, SIZE), "the backup differs")


def moved_directory(world):
    """The backup goes where the target was when the pull began."""
    here, there = world.file("here"), world.file("there")

    def meanwhile(length):
        os.rename(here, there)
        os.mkdir(here)
        return [(0, length)]

    for more in (), ("--replace",):
        os.mkdir(here)
        if more:
            world.file("here/target", b"old")
        server = Sloppy(world.file("socket"), meanwhile)
        pull("nbd+unix:///?socket=" + world.file("socket"), os.path.join(here, "target"), *more)
        server.close()
        equal(os.listdir(here), [], "files in the directory that came in its place")
        expect(content(os.path.join(there, "target")) == pattern(0, M), "the backup differs")
        for path in here, there, world.file("socket"):
            run("rm", "-r", path)


def leftover(world):
    world.file("target.partial", b"y" * (SIZE + 5))
    pull(world.uri(), world.file())
    expect(content(world.file()) == pattern(0, SIZE), "the backup differs")
    equal(world.left(), ["target"], "files")
    # Nor does it show where zeroes are not written.
    server = Server("disk=mem:size=16M,zero=1M-2M")
    world.file("target.partial", b"y" * SIZE)
    pull(world.uri("disk", server), world.file(), "--replace")
    expect(content(world.file()) == pattern(0, M) + bytes(M) + pattern(2 * M, SIZE - 2 * M),
           "the backup with zeroes differs")
    server.stop()


def leftover_of_others(world):
    """Such as one that somebody else can read by another name."""
    partial = world.file("target.partial", b"theirs")
    os.link(partial, world.file("other"))
    pull(world.uri(), world.file(), status=BUSY, says="exists already")
    equal(content(partial), b"theirs", "what was there")
    os.unlink(partial)
    os.mkfifo(partial)
    pull(world.uri(), world.file(), status=BUSY, says="exists already")
    os.unlink(partial)
    mine = world.file("target.partial", b"mine")
    os.chmod(mine, 0o644)
    pull(world.uri(), world.file())
    equal(stat.S_IMODE(os.stat(world.file()).st_mode), 0o600, "mode")


def changed_meanwhile(world):
    """The server answers when the target is another one."""
    def meanwhile(length):
        os.rename(world.file("theirs"), world.file())
        return [(0, length)]

    for name, status, more in (("new", "made", ()), ("old", "replaced", ("--since", "monday")),
                               ("any", "replaced", ("--replace",))):
        world.file("theirs", b"theirs")
        if more:
            world.file(data=bytes(M))
        server = Sloppy(world.file("socket-" + name), meanwhile)
        pull("nbd+unix:///?socket=" + world.file("socket-" + name), world.file(), *more,
             status=BUSY, says=status + " by somebody else")
        server.close()
        equal(content(world.file()), b"theirs", "their file, in the place of a %s one" % name)
        os.unlink(world.file())
        if "--since" not in more:
            os.rename(world.file("target.complete"), world.file("complete"))
            expect(content(world.file("complete")) == pattern(0, M), "the backup is not kept")


def removed_meanwhile(world):
    def meanwhile(length):
        os.unlink(world.file())
        return [(0, length)]

    world.file("target", b"old")
    server = Sloppy(world.file("socket"), meanwhile)
    pull("nbd+unix:///?socket=" + world.file("socket"), world.file(), "--replace")
    server.close()
    expect(content(world.file("target")) == pattern(0, M),
           "the backup is not kept")


class Argument(ctypes.Structure):
    """struct scmp_arg_cmp of libseccomp."""
    _fields_ = [("number", ctypes.c_uint), ("operator", ctypes.c_int), ("value", ctypes.c_uint64),
                ("other", ctypes.c_uint64)]


def refuse(*calls):
    """For a child: system calls that fail, each as (name, error, argument...)."""
    seccomp = ctypes.CDLL("libseccomp.so.2")
    seccomp.seccomp_init.restype = ctypes.c_void_p
    allow, fail = 0x7FFF0000, 0x50000
    rules = ctypes.c_void_p(seccomp.seccomp_init(allow))
    for name, error, *arguments in calls:
        number = seccomp.seccomp_syscall_resolve_name(name)
        seccomp.seccomp_rule_add_array(rules, fail | error, number, len(arguments),
                                       (Argument * len(arguments))(*arguments))
    equal(seccomp.seccomp_load(rules), 0, "seccomp_load()")


# A rename() with flags, which some filesystems do not have.
NOT_EQUAL = 1
RENAME_WITH_FLAGS = (b"renameat2", errno.EINVAL, Argument(4, NOT_EQUAL, 0, 0))


def without_links():
    """Some have no links either."""
    refuse((b"linkat", errno.EPERM), RENAME_WITH_FLAGS)


def no_links(world):
    for calls in without_links, lambda: refuse(RENAME_WITH_FLAGS):
        pull(world.uri(), world.file(), preexec_fn=calls)
        expect(content(world.file()) == pattern(0, SIZE), "the backup differs")
        equal(world.left(), ["target"], "files")
        os.unlink(world.file())

    def meanwhile(length):
        world.file("new", b"theirs")
        return [(0, length)]

    server = Sloppy(world.file("socket"), meanwhile)
    pull("nbd+unix:///?socket=" + world.file("socket"), world.file("new"), status=BUSY,
         says="made by somebody else", preexec_fn=without_links)
    server.close()
    equal(content(world.file("new")), b"theirs", "their file")
    expect(content(world.file("new.complete")) == pattern(0, M), "the backup is not kept")


def limit(length=M):
    """For a child, and its children: no file can grow beyond that."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length, length))


def too_large(world):
    pull(world.uri(), world.file(), status=FAILED, says="cannot give it 16777216 bytes",
         preexec_fn=limit)
    equal(world.left(), [], "files")
    path = world.file("old", old_image())
    pull(world.uri(), path, "--since", "monday", status=FAILED, says="cannot write",
         preexec_fn=limit)


def full_within_write(world):
    """The kernel takes the first half of what is written, and says so."""
    path = world.file(data=old_image())
    pull(world.uri("part"), path, "--since", "monday", status=FAILED, says="cannot write",
         preexec_fn=lambda: limit(M + M // 2))


def not_durable(world):
    """What the disk refuses may show only when the data is flushed."""
    def fail():
        refuse((b"fsync", errno.EIO))

    path = world.file("old", old_image())
    pull(world.uri(), world.file(), status=FAILED, says="cannot make it durable", preexec_fn=fail)
    equal(world.left(), ["old"], "files")
    pull(world.uri(), path, "--replace", status=FAILED, says="cannot make it durable",
         preexec_fn=fail)
    expect(content(path) == old_image(), "what was there is lost")
    pull(world.uri(), path, "--since", "monday", status=FAILED, says="part old and part new",
         preexec_fn=fail)


def no_holes(world):
    """Data became zeroes, and the filesystem of the target cannot punch holes."""
    server = Server("disk=mem:size=16M,cp=monday/0-3M,zero=1M-2M")
    path = world.file(data=b"\xa5" * SIZE)
    pull(world.uri("disk", server), path, "--since", "monday",
         preexec_fn=lambda: refuse((b"fallocate", errno.EOPNOTSUPP)))
    wanted = pattern(0, M) + bytes(M) + pattern(2 * M, M) + b"\xa5" * (SIZE - 3 * M)
    expect(content(path) == wanted, "the backup differs")
    server.stop()


def begin_slow(world, more=(), listen=False, **other):
    """A server of its own that takes very long, and a pull that has begun."""
    server = Server("slow=mem:size=4G,delay=50,cp=monday", listen=listen)
    uri = "nbd://127.0.0.1:%d/slow" % server.port() if listen else world.uri("slow", server)
    process = start(uri, world.file(), *more, **other)
    wait_for(lambda: "target.partial" in world.left(), "the pull begins")
    return server, process


def interrupted(world):
    server, process = begin_slow(world)
    process.send_signal(signal.SIGINT)
    finish(process, FAILED, "interrupted: Interrupt")
    equal(world.left(), [], "files")
    server.stop()


def ignored_signal(world):
    """Such as that of a terminal that is closed, with nohup."""
    server, process = begin_slow(
        world, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGINT)
    finish(process, FAILED, "interrupted: Interrupt")
    server.stop()


def closed_descriptors(world):
    """What is printed must not get into the target, nor to the server."""
    server, process = begin_slow(world, preexec_fn=lambda: os.closerange(0, 3))
    for number in range(3):
        equal(os.readlink("/proc/%d/fd/%d" % (process.pid, number)), "/dev/null",
              "descriptor %d" % number)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    equal(process.returncode, FAILED, "exit status")
    equal(world.left(), [], "files")
    server.stop()


def tcp_sockets(process):
    """What the process has open to servers."""
    pidfd_getfd = 438
    pidfd = os.pidfd_open(process.pid)
    sockets = []
    for name in os.listdir("/proc/%d/fd" % process.pid):
        number = ctypes.CDLL(None).syscall(pidfd_getfd, pidfd, int(name), 0)
        if number >= 0 and stat.S_ISSOCK(os.fstat(number).st_mode):
            sockets.append(socket.socket(fileno=number))
        elif number >= 0:
            os.close(number)
    os.close(pidfd)
    return [each for each in sockets if each.family == socket.AF_INET]


def notices_within(tcp):
    """Seconds until a host that is gone without a word is noticed: idle, and not."""
    if not tcp.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE):
        return ()
    idle, interval, count, acknowledged = (
        tcp.getsockopt(socket.IPPROTO_TCP, option) for option in (
            socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT,
            socket.TCP_USER_TIMEOUT))
    return idle + interval * count, acknowledged / 1000


def silent_host(world):
    """The options are all that a test can wait for."""
    server, process = begin_slow(world, listen=True)
    wait_for(lambda: [notices_within(tcp) for tcp in tcp_sockets(process)] == [(120, 120)] * 4,
             "all connections have the limits")
    process.send_signal(signal.SIGINT)
    finish(process, FAILED)
    server.stop()


def server_gone(world):
    server, process = begin_slow(world)
    server.process.kill()
    finish(process, FAILED)
    equal(world.left(), [], "files")
    server.process.wait()
    # Its janitor removes files as well.
    subprocess.run(["rm", "-rf", server.directory], check=True)


def broken(world):
    server, process = begin_slow(world)
    server.process.send_signal(signal.SIGUSR1)
    finish(process, BROKEN, "the snapshot broke")
    pull(world.uri("slow", server), world.file(), status=BROKEN, says="cannot tell")
    equal(world.left(), [], "files")
    server.stop()


def few_connections(world):
    for most in "1", "2":
        server = Server(EXPORTS[0], "--max-connections", most)
        pull(world.uri("disk", server), world.file(), "--replace")
        expect(content(world.file()) == pattern(0, SIZE), "the backup differs")
        server.stop()


class Relay:
    """An address where the first client gets one server and the others another one.

    With gated=True, the first server answers READs when the second one has been asked for
    as much as one connection asks for, and it is those who have read all that it was asked for
    who lose it: only then does the other one answer.
    """
    READS = re.compile(rb"\x25\x60\x95\x13\0\0\0\0|\x21\xe4\x1c\x71\0\0\0\0")
    IN_FLIGHT = 8

    def __init__(self, path, servers, gated=False):
        self.servers, self.gated = servers, gated
        self.asked = [b"", b""]
        self.is_open = [threading.Event(), threading.Event()]
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        """Until the listener is closed."""
        for number in range(100):
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            which = min(number, 1)
            server = socket.socket(socket.AF_UNIX)
            server.connect(self.servers[which].path)
            for function in self.ask, self.answer:
                threading.Thread(target=function, args=(which, client, server),
                                 daemon=True).start()

    def reads(self, which):
        """So many READs were sent to that server."""
        return len(self.READS.findall(self.asked[which]))

    def ask(self, which, client, server):
        """From the client to the server."""
        try:
            while data := client.recv(M):
                self.asked[which] += data
                if self.reads(1) >= self.IN_FLIGHT:
                    self.is_open[0].set()
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def answer(self, which, client, server):
        """From the server to the client."""
        sent = 0
        try:
            while data := server.recv(M):
                if self.gated and self.reads(which):
                    self.is_open[which].wait(60)
                client.sendall(data)
                sent += len(data)
                if self.gated and not which and sent >= self.IN_FLIGHT * M:
                    # For the client to read it; then nothing is left to be asked.
                    time.sleep(0.5)
                    client.shutdown(socket.SHUT_RDWR)
                    self.is_open[1].set()
                    return
        except OSError:
            pass

    def close(self):
        """Nobody is connected any more."""
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


def another_snapshot(world):
    """It has the same size, name and address, but was made later."""
    servers = [Server("slow=mem:size=4G,delay=50,cp=monday," + more)
               for more in ("here=tuesday", "here=wednesday")]
    relay = Relay(world.file("socket"), servers)
    pull("nbd+unix:///slow?socket=" + world.file("socket"), world.file(), status=FAILED,
         says="another export")
    relay.close()
    equal(world.left(), ["socket"], "files")
    for server in servers:
        server.stop()


def another_server(world):
    """All that it says is the same, and the first one is gone."""
    relay = Relay(world.file("socket"), [world.server, world.server], gated=True)
    pull("nbd+unix:///disk?socket=" + world.file("socket"), world.file(), "--connections", "2",
         status=FAILED, says="server")
    relay.close()
    equal(world.left(), ["socket"], "files")


def large_blocks(world):
    """Whether the server is there in the end is asked in blocks that it takes."""
    path = world.file("nbdkit")
    nbdkit = subprocess.Popen(["nbdkit", "-f", "-U", path, "--filter=blocksize-policy", "pattern",
                               "16M", "blocksize-minimum=4K", "blocksize-maximum=32M"])
    try:
        wait_for(lambda: os.path.exists(path), "nbdkit listens")
        relay = Relay(world.file("socket"), [types.SimpleNamespace(path=path)] * 2)
        pull("nbd+unix:///?socket=" + world.file("socket"), world.file())
        relay.close()
    finally:
        # Asked to end, it waits for its clients, and the relay is one.
        nbdkit.kill()
        nbdkit.wait()
    probe = re.compile(rb"\x25\x60\x95\x13\0\0\0\x07.{8}\0{8}\0\0\x10\0", re.DOTALL)
    equal(len(probe.findall(relay.asked[0])), 1, "questions for 4 KiB at the end")


def read_once(world):
    server = Server(EXPORTS[0], "--read-once")
    pull(world.uri("disk", server), world.file())
    expect(content(world.file()) == pattern(0, SIZE), "the backup differs")
    pull(world.uri("disk", server), world.file("again"), status=FAILED, says="released")
    equal(world.left(), ["target"], "files")
    server.stop()


def through_nbdkit(world, *arguments):
    """A shell command for nbdkit --run, for each of several pulls."""
    result = subprocess.run(["nbdkit", "-U", "-", *arguments], stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            timeout=120, check=False, cwd=world.directory)
    equal(result.returncode, 0, "nbdkit --run, which said " + result.stdout)


def plain_server(world):
    through_nbdkit(world, "--no-sr", "pattern", "size=4M", "--run",
                   PULL + ' "$uri" target && nbdcopy "$uri" reference')
    expect(content(world.file()) == content(world.file("reference")), "the backup differs")
    through_nbdkit(world, "--no-sr", "pattern", "size=4M", "--run",
                   PULL + ' "$uri" target --since monday; test $? = 7')


def holes(world):
    through_nbdkit(world, "data", "size=64M", "data=@1048576 0x55*70000 @31457280 0x66*8192", "--run",
                   PULL + ' "$uri" target --json > result && nbdcopy "$uri" reference')
    expect(content(world.file()) == content(world.file("reference")), "the backup differs")
    expect(os.stat(world.file()).st_blocks * 512 < M, "the backup is not sparse")
    result = json.loads(content(world.file("result")))
    expect(result["zero_bytes"] > 60 * M, "zeroes were read")
    # Zeroes that the server does not know of are not stored either.
    through_nbdkit(world, "--filter=noextents", "data", "size=64M",
                   "data=@1048576 0x55*70000 @31457280 0x66*8192", "--run", PULL + ' "$uri" again')
    expect(content(world.file("again")) == content(world.file("reference")), "it differs")
    expect(os.stat(world.file("again")).st_blocks * 512 < M, "it is not sparse")


def run(*command):
    """A command that must succeed."""
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            timeout=60, check=False)
    equal(result.returncode, 0, "exit status of %s, which said %s" % (" ".join(command),
                                                                       result.stdout))


def zeroes_since(world):
    """A disk of QEMU's: data became zeroes, some discarded, some written."""
    disk, path = world.file("disk.qcow2"), world.file("socket")
    run("qemu-img", "create", "-q", "-f", "qcow2", disk, "16M")
    run("qemu-io", "-f", "qcow2", disk, "-c", "write -P 1 0 8M")
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", disk, world.file())
    run("qemu-img", "bitmap", "--add", "-f", "qcow2", disk, "monday")
    run("qemu-io", "-f", "qcow2", disk, "-c", "discard 1M 1M", "-c", "write -P 0 3M 1M",
        "-c", "write -P 7 5M 64K", "-c", "write -P 8 10M 64K")
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", disk, world.file("reference"))
    server = subprocess.Popen(["qemu-nbd", "-r", "-t", "-k", path, "-x", "disk", "-B",
                               "monday", "-f", "qcow2", disk])
    try:
        wait_for(lambda: os.path.exists(path), "qemu-nbd listens")
        pull("nbd+unix:///disk?socket=" + path, world.file(), "--since", "monday")
    finally:
        server.terminate()
        server.wait()
    expect(content(world.file()) == content(world.file("reference")), "the backup differs")
    expect(os.stat(world.file()).st_blocks * 512 < 7 * M, "zeroes were stored")


def image_content(path):
    """What a qcow2 image shows, which has to be in order."""
    run("qemu-img", "check", "-q", "-f", "qcow2", path)
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, path + ".raw")
    data = content(path + ".raw")
    os.unlink(path + ".raw")
    return data


def full_qcow2(world):
    path = world.file("target.qcow2")
    pull(world.uri(), path)
    expect(image_content(path) == pattern(0, SIZE), "the backup differs")
    equal(world.left(), ["target.qcow2"], "files")
    equal(stat.S_IMODE(os.stat(path).st_mode), 0o600, "mode")
    pull(world.uri(), path, status=BUSY, says="--replace")
    pull(world.uri("odd"), path, "--replace")
    expect(image_content(path)[:1000001] == pattern(0, 1000001), "the odd backup differs")
    result = json.loads(pull(world.uri(), world.file("json:{}"), "--format", "qcow2", "--json"))
    equal((result["format"], result["backing"]), ("qcow2", None), "result")
    expect(image_content(world.file("json:{}")) == pattern(0, SIZE), "an odd name")
    pull(world.uri(), world.file("raw.qcow2"), "--format", "raw")
    expect(content(world.file("raw.qcow2")) == pattern(0, SIZE), "a raw file of that name")


def since_qcow2(world):
    old, path = world.file("old", old_image()), world.file("target.qcow2")
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", old, path)
    pull(world.uri(), path, "--since", "monday")
    expect(image_content(path) == pattern(0, SIZE), "the backup differs")
    pull(world.uri("odd"), path, "--since", "monday", status=FAILED, says="qemu-img resize")
    pull(world.uri(), old, "--since", "monday", "--format", "qcow2", status=FAILED,
         says="is not a qcow2 image")
    expect(content(old) == old_image(), "what was refused has changed")


def overlay_qcow2(world):
    """A chain: raw, and twice qcow2 above it."""
    old = world.file("old", old_image())
    first, second = world.file("first.qcow2"), world.file("second.qcow2")
    pull(world.uri(), first, "--since", "monday", "--backing", old)
    pull(world.uri("part"), second, "--since", "monday", "--backing", first)
    expect(content(old) == old_image(), "the backing image has changed")
    for path in first, second:
        expect(image_content(path) == pattern(0, SIZE), path + " differs")
        expect(os.stat(path).st_blocks * 512 < 4 * M, path + " holds what has not changed")
    pull(world.uri(), first, "--since", "monday", "--backing", old, status=BUSY)
    equal(world.left(), ["first.qcow2", "old", "second.qcow2"], "files")


def wrong_qcow2(world):
    new, old = world.file("new.qcow2"), world.file("old", old_image())
    since_monday = (world.uri(), new, "--since", "monday")
    pull(world.uri(), new, "--backing", old, status=USAGE, says="--since")
    pull(world.uri(), new, "--format", "vmdk", status=USAGE, says="raw or qcow2")
    pull(world.uri(), world.file("new"), "--since", "monday", "--backing", old, status=USAGE,
         says=".qcow2")
    pull(*since_monday, "--backing", world.file("none"), status=NO_DEVICE)
    pull(*since_monday, "--backing", world.file("short", b"s" * 512), status=FAILED,
         says="a disk of 512 bytes")
    with open(old, "r+b") as file:
        lock(file)
        pull(*since_monday, "--backing", old, status=BUSY, says="being written")
    empty = {**os.environ, "PATH": world.directory}
    pull(world.uri(), new, env=empty, status=FAILED, says="qemu-utils")
    equal(world.left(), ["old", "short"], "files")


def zeroes_above(world):
    """Zeroes that the server knows of hide what the backing image has there."""
    server = Server("disk=mem:size=16M,cp=monday/0-16M,zero=1M-2M")
    old, path = world.file("old", b"\xa5" * SIZE), world.file("target.qcow2")
    run("nbdcopy", world.uri("disk", server), world.file("reference"))
    pull(world.uri("disk", server), path, "--since", "monday", "--backing", old)
    expect(image_content(path) == content(world.file("reference")), "the backup differs")
    server.stop()


def too_large_qcow2(world):
    """It is another program that cannot write it."""
    pull(world.uri(), world.file("target.qcow2"), status=FAILED, says="cannot write",
         preexec_fn=limit)
    equal(world.left(), [], "files")


def not_durable_qcow2(world):
    """Nor flush it, when all has been written."""
    os.mkdir(world.file("bin"))
    program = world.file("bin/qemu-nbd", (
        "#!/usr/bin/python3 -B\n"
        "import errno, os, sys\n"
        "sys.path.insert(0, %r)\n"
        "import pull\n"
        "pull.refuse((b'fdatasync', errno.EIO))\n"
        "os.dup2(os.open(os.devnull, os.O_WRONLY), 2)\n"
        "os.execv(%r, sys.argv)\n" % (HERE, shutil.which("qemu-nbd"))).encode())
    os.chmod(program, 0o755)
    # Nothing has to be flushed while clusters are written that the image has already.
    old, path = world.file("old", old_image()), world.file("target.qcow2")
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", old, path)
    pull(world.uri(), path, "--since", "monday", status=FAILED, says="cannot make it durable",
         env={**os.environ, "PATH": world.file("bin") + ":" + os.environ["PATH"]})


def interrupted_qcow2(world):
    server = Server("slow=mem:size=4G,delay=50,cp=monday")
    process = start(world.uri("slow", server), world.file("target.qcow2"))
    wait_for(lambda: "target.qcow2.partial" in world.left(), "the pull begins")
    process.send_signal(signal.SIGTERM)
    finish(process, FAILED, "")
    equal(world.left(), [], "files")
    server.stop()


def releases(world):
    """All that was read can be read no more, and nothing else; no other export is touched."""
    server = Server(EXPORTS[0], "--allow-release")
    pull(world.uri("disk", server), world.file())
    output = pull(world.uri("disk+release", server), world.file("since", old_image()),
                  "--since", "monday", "--json")
    equal(json.loads(output)["released_bytes"], M + 64 * K, "bytes released")
    pull(world.uri("disk", server), world.file("again"), status=FAILED,
         says="1114112 bytes of what is needed cannot be read, the first at offset 1048576")
    server.stop()
    server = Server("disk=mem:size=16M,zero=2M-8M", "--allow-release")
    output = pull(world.uri("disk+release", server), world.file("full"))
    expect(output.endswith("16.0M released\n"), "output: " + output)
    server.stop()


def releases_what_is_written(world):
    """What the target could not take is there for another pull."""
    server = Server(EXPORTS[0], "--allow-release")
    pull(world.uri("disk+release", server), world.file("old", old_image()), "--since", "monday",
         status=FAILED, says="cannot write", preexec_fn=limit)
    pull(world.uri("disk", server), world.file())
    expect(content(world.file()) == pattern(0, SIZE), "the backup differs")
    server.stop()


def releases_nothing_of_others(world):
    """TRIM would lose data of a disk that can be written to, whatever its name."""
    disk, path = world.file("disk", pattern(0, SIZE)), world.file("socket")
    server = subprocess.Popen(["qemu-nbd", "-t", "-k", path, "-x", "disk+release", "-f", "raw",
                               "--discard=unmap", disk])
    try:
        wait_for(lambda: os.path.exists(path), "qemu-nbd listens")
        pull("nbd+unix:///disk+release?socket=" + path, world.file())
    finally:
        server.terminate()
        server.wait()
    expect(content(disk) == pattern(0, SIZE), "the disk has lost data")
    expect(content(world.file()) == pattern(0, SIZE), "the backup differs")


class Sloppy:
    """A server for one client, whose READs get chunks of the caller's choice.

    All of its data has changed since monday.
    """
    # Numbers of the NBD protocol.
    IHAVEOPT, OPTION_REPLY, STRUCTURED_REPLY = 0x49484156454F5054, 0x3E889045565A9, 0x668E33EF
    OPT_GO, OPT_STRUCTURED_REPLY, REP_ACK, REP_INFO, REP_ERR_UNSUP = 7, 8, 1, 3, 0x80000001
    OPT_SET_META_CONTEXT, REP_META_CONTEXT, CONTEXTS = 10, 4, [b"qemu:dirty-bitmap:monday"]
    TYPE_NONE, TYPE_OFFSET_DATA, TYPE_BLOCK_STATUS, CMD_READ, CMD_BLOCK_STATUS = 0, 1, 5, 0, 7

    def __init__(self, path, chunks):
        self.chunks = chunks
        self.selected = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        """Until the client goes."""
        connection, _ = self.listener.accept()
        with connection, connection.makefile("rb") as file:
            try:
                connection.sendall(struct.pack(">QQH", 0x4E42444D41474943, self.IHAVEOPT, 3))
                file.read(4)
                while self.haggle(connection, file) != self.OPT_GO:
                    pass
                while self.answer(connection, file):
                    pass
            except (OSError, struct.error):
                pass

    def haggle(self, connection, file):
        """Answer an option, and return it."""
        _, option, length = struct.unpack(">QII", file.read(16))
        query = file.read(length)
        replies = [(self.REP_ERR_UNSUP, b"")]
        if option == self.OPT_STRUCTURED_REPLY:
            replies = [(self.REP_ACK, b"")]
        elif option == self.OPT_GO:
            replies = [(self.REP_INFO, struct.pack(">HQH", 0, M, 3)), (self.REP_ACK, b"")]
        elif option == self.OPT_SET_META_CONTEXT:
            self.selected = [name for name in self.CONTEXTS if name in query]
            replies = [(self.REP_META_CONTEXT, struct.pack(">I", number) + name)
                       for number, name in enumerate(self.selected)] + [(self.REP_ACK, b"")]
        for kind, data in replies:
            connection.sendall(struct.pack(">QIII", self.OPTION_REPLY, option, kind, len(data))
                               + data)
        return option

    def answer(self, connection, file):
        """Answer a request; False: there is none any more."""
        _, _, command, cookie, offset, length = struct.unpack(">IHHQQI", file.read(28))
        if command == self.CMD_BLOCK_STATUS:
            for number, name in enumerate(self.selected):
                connection.sendall(struct.pack(
                    ">IHHQIIII", self.STRUCTURED_REPLY, number + 1 == len(self.selected),
                    self.TYPE_BLOCK_STATUS, cookie, 12, number,
                    *self.extent(name, offset, length)))
            return True
        if command != self.CMD_READ:
            return False
        replies = [(self.TYPE_OFFSET_DATA, struct.pack(">Q", offset + start) +
                    pattern(offset + start, end - start)) for start, end in self.chunks(length)]
        for number, (kind, data) in enumerate(replies or [(self.TYPE_NONE, b"")], 1):
            connection.sendall(struct.pack(">IHHQI", self.STRUCTURED_REPLY,
                                           number >= len(replies), kind, cookie, len(data))
                               + data)
        return True

    def extent(self, _name, _offset, length):
        """Of a context: length and flags of the one that an answer tells."""
        return length, 1

    def close(self):
        """After the client has gone."""
        self.thread.join(60)
        self.listener.close()


def sloppy_server(world):
    """What the server did not send is not taken for zeroes."""
    cases = [
        ("nothing", FAILED, lambda n: []),
        ("half", FAILED, lambda n: [(0, n // 2)]),
        ("twice", FAILED, lambda n: [(0, n // 2), (0, n // 2)]),
        ("overlap", FAILED, lambda n: [(0, n), (0, n // 2)]),
        ("backwards", DONE, lambda n: [(n // 2, n), (0, n // 2)]),
    ]
    for name, status, chunks in cases:
        server = Sloppy(world.file("socket-" + name), chunks)
        pull("nbd+unix:///?socket=" + world.file("socket-" + name), world.file(name),
             status=status)
        server.close()
        equal(os.path.exists(world.file(name)), status == DONE, "a backup of " + name)
    expect(content(world.file("backwards")) == pattern(0, M), "the backup differs")


class Uneven(Sloppy):
    """The answers of its two contexts end at different places."""
    DIRTY, ALLOCATION = b"qemu:dirty-bitmap:monday", b"base:allocation"
    CONTEXTS = [DIRTY, ALLOCATION]
    # Flags that take turns, and for how long each. What 2 means in a bitmap is not known.
    FLAGS = {DIRTY: ((0, 2, 1), 192 * K), ALLOCATION: ((0, 3), 64 * K)}

    def extent(self, name, offset, length):
        flags, unit = self.FLAGS[name]
        return min(length, unit - offset % unit), flags[offset // unit % len(flags)]

    def wanted(self, old, at):
        """What the backup then has in a block."""
        if not self.extent(self.DIRTY, at, 1)[1]:
            return old
        return bytes(len(old)) if self.extent(self.ALLOCATION, at, 1)[1] else pattern(at, len(old))


def uneven_server(world):
    path, unit = world.file(data=b"\xa5" * M), 64 * K
    server = Uneven(world.file("socket"), lambda length: [(0, length)])
    pull("nbd+unix:///?socket=" + world.file("socket"), path, "--since", "monday")
    server.close()
    found = content(path)
    for at in range(0, M, unit):
        expect(found[at:at + unit] == server.wanted(b"\xa5" * unit, at), "it differs at %d" % at)


TESTS = [
    ("a full backup, over Unix socket and TCP", full, ()),
    ("answers that lack data", sloppy_server, ()),
    ("maps whose answers end at different places", uneven_server, ()),
    ("a full backup replaces a file only if told, and only when complete", full_existing, ()),
    ("an incremental backup writes what changed, and nothing else", since, ()),
    ("an incremental backup of a snapshot limited to what changed", since_limited, ()),
    ("an incremental backup of many small extents", since_many, ()),
    ("an incremental backup where nothing changed", since_nothing, ()),
    ("an unknown checkpoint is refused, and nothing is written", no_checkpoint, ()),
    ("what is needed and not accessible is refused, and nothing is written", denied, ()),
    ("what is needed and lost is refused, and nothing is written", lost, ()),
    ("data that a disk cannot read is an error with its place", unreadable, ()),
    ("targets of the wrong kind, size or place", wrong_targets, ()),
    ("servers and exports that are not there", wrong_sources, ()),
    ("two pulls to one target", locked, ()),
    ("a target that is being replaced", locked_by_replace, ()),
    ("a target whose directory is moved meanwhile", moved_directory, ()),
    ("what a killed pull has left is no obstacle", leftover, ()),
    ("what others have left is not written to", leftover_of_others, ()),
    ("a target that changed meanwhile is not touched", changed_meanwhile, ()),
    ("a target to be replaced that is removed meanwhile", removed_meanwhile, ()),
    ("a filesystem that cannot rename without replacing", no_links, ()),
    ("a target that cannot hold the data", too_large, ()),
    ("a target that is full within a write", full_within_write, ()),
    ("a target that cannot be made durable", not_durable, ()),
    ("data that became zeroes, where no holes can be punched", no_holes, ()),
    ("an interrupt leaves nothing", interrupted, ()),
    ("a signal that is ignored", ignored_signal, ()),
    ("standard descriptors that are closed", closed_descriptors, ()),
    ("a server whose host is gone without a word", silent_host, ()),
    ("a server that dies leaves nothing", server_gone, ()),
    ("a snapshot that breaks has its own exit status", broken, ()),
    ("another snapshot at the same address", another_snapshot, ()),
    ("another server at the same address", another_server, ()),
    ("a server that takes no short requests", large_blocks, ("nbdkit",)),
    ("a server that takes fewer clients than there are connections", few_connections, ()),
    ("a server that releases what was read", read_once, ()),
    ("a server without structured replies", plain_server, ("nbdkit", "nbdcopy")),
    ("holes are not read, zeroes are not stored", holes, ("nbdkit", "nbdcopy")),
    ("data that became zeroes, from qemu-nbd", zeroes_since, ("qemu-img", "qemu-io", "qemu-nbd")),
    ("a full backup into a qcow2 image", full_qcow2, QEMU),
    ("an incremental backup into a qcow2 image", since_qcow2, QEMU),
    ("an incremental backup as a new image above the earlier one", overlay_qcow2, QEMU),
    ("images that cannot be", wrong_qcow2, QEMU),
    ("zeroes in an image above another one", zeroes_above, (*QEMU, "nbdcopy")),
    ("a qcow2 image that cannot hold the data", too_large_qcow2, QEMU),
    ("a qcow2 image that cannot be made durable", not_durable_qcow2, QEMU),
    ("a pull into a qcow2 image that is interrupted", interrupted_qcow2, QEMU),
    ("what was pulled from NAME+release is released", releases, ()),
    ("what could not be written is not released", releases_what_is_written, ()),
    ("nothing is released on other servers", releases_nothing_of_others, ("qemu-nbd",)),
]


def main():
    # Whoever runs us in the background may have them ignored, and a pull that is to be
    # interrupted would leave it at that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    tap = Tap()
    world = World()
    for title, function, tools in TESTS:
        missing = [tool for tool in tools if not shutil.which(tool)]
        world.clean()
        if missing:
            tap.skip(title, ", ".join(missing) + " missing")
        else:
            tap.run(title, function, world)
    tap.run("the server has ended well after all clients", world.close)
    return tap.finish()


if __name__ == "__main__":
    sys.exit(main())
