#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""This test will run fleeced as a service: sockets that are handed over, what the
service manager is told, access to the Unix socket, vsock, and the limits that
keep clients from each other's memory and time. Prints TAP.
"""
import fcntl
import os
import pwd
import re
import resource
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import types

import nbdclient
from nbdclient import (
    CACHE, DISC, EINVAL, FLUSH, PATIENCE, READ, TRIM, Client, Server, Tap, equal, expect, pattern,
    run_wrong, wait_for)

K, M = 1 << 10, 1 << 20

DISK = "disk=mem:size=8M,cluster=64K,cp=one/1M-2M"
BIG = "big=mem:size=8T,cluster=64K"

TESTS = []

# valgrind has descriptors of its own, and fills those that are closed.
COUNTS_DESCRIPTORS = set()


def test(title, counts_descriptors=False):
    """Register a test."""
    def register(function):
        TESTS.append((title, function))
        if counts_descriptors:
            COUNTS_DESCRIPTORS.add(function)
        return function
    return register


class Scratch:
    """A directory that goes away."""

    def __enter__(self):
        self.path = tempfile.mkdtemp(prefix="fleeced-service-")
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.path)

    def __call__(self, name):
        return os.path.join(self.path, name)


def listening(family, address):
    """A socket to hand over."""
    made = socket.socket(family)
    made.bind(address)
    made.listen()
    return made


def start_with(sockets, arguments, log, pid="$$", count=None, names=None):
    """Start the server as systemd does, with sockets from descriptor 3 on."""
    def hand_over():
        copies = [os.dup(s.fileno()) for s in sockets]
        for number, copy in enumerate(copies):
            os.dup2(copy, 3 + number)
    environment = dict(os.environ)
    environment["LISTEN_FDS"] = str(len(sockets)) if count is None else count
    if names:
        environment["LISTEN_FDNAMES"] = names
    # pylint: disable-next=subprocess-popen-preexec-fn
    return subprocess.Popen(
        ["sh", "-c", 'LISTEN_PID=%s exec "$@"' % pid, "sh", nbdclient.TESTSERVER]
        + nbdclient.sandbox_options(nbdclient.TESTSERVER) + arguments,
        stdin=subprocess.DEVNULL, stderr=log, env=environment, preexec_fn=hand_over,
        pass_fds=range(3, 3 + len(sockets)))


def run_with(sockets, arguments, **how):
    """The exit status and the words of a server that does not start."""
    with tempfile.TemporaryFile() as log:
        with start_with(sockets, arguments, log, **how) as process:
            status = process.wait(timeout=PATIENCE)
        log.seek(0)
        return status, log.read().decode()


class Handed:
    """A socket of somebody else, as a Client wants it."""

    def __init__(self, path=None, port=None):
        self.path = path
        self.port = lambda: port


@test("sockets handed over: Unix and TCP, named in the log, and their files are left alone")
def handed_over():
    with Scratch() as scratch:
        unix = listening(socket.AF_UNIX, scratch("unix"))
        tcp = listening(socket.AF_INET, ("127.0.0.1", 0))
        with open(scratch("log"), "w+", encoding="utf-8") as log:
            with start_with([unix, tcp], [DISK], log, names="one:\x1btwo") as process:
                try:
                    for client in (Client(Handed(path=scratch("unix"))),
                                   Client(Handed(port=tcp.getsockname()[1]), tcp=True)):
                        with client:
                            client.open(b"disk")
                            equal(client.read(512, 512), pattern(512, 512), "data")
                finally:
                    process.send_signal(signal.SIGTERM)
                equal(process.wait(timeout=PATIENCE), 0, "exit status")
            log.seek(0)
            said = log.read()
        expect("a Unix socket, handed over as one" in said, said)
        expect(re.search(r"127\.0\.0\.1:\d+, handed over as \?two", said), said)
        expect(os.path.exists(scratch("unix")), "the socket's file was removed")


@test("sockets handed over to another process, or unusable ones: refused with a reason")
def handed_over_wrong():
    with Scratch() as scratch:
        good = listening(socket.AF_UNIX, scratch("unix"))
        deaf = socket.socket(socket.AF_UNIX)
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        exposed = listening(socket.AF_INET, ("0.0.0.0", 0))
        for sockets, how, status, text in (
                ([good], {"pid": "1"}, 2, "is needed"),
                ([good], {"pid": "x"}, 2, "is needed"),
                ([good], {"count": "0"}, 2, "is needed"),
                ([good], {"count": "x"}, 2, "LISTEN_FDS"),
                ([good], {"count": "17"}, 2, "LISTEN_FDS"),
                ([good], {"count": "2"}, 1, "not a listening stream socket"),
                ([deaf], {}, 1, "not a listening stream socket"),
                ([datagrams], {}, 1, "not a listening stream socket"),
                ([exposed], {}, 1, "not a loopback address")):
            result = run_with(sockets, [DISK], **how)
            equal(result[0], status, "exit status with %r: %s" % (how, result[1]))
            expect(text in result[1], "%r in: %s" % (text, result[1]))
        status, said = run_with([good], ["--stdio", DISK])
        equal((status, "--stdio excludes" in said), (2, True), said)


def notify_address(scratch, is_abstract):
    """A name for NOTIFY_SOCKET, as it is bound and as it is passed on."""
    name = scratch("notify")
    return ("\0" + name, "@" + name) if is_abstract else (name, name)


@test("the service manager hears READY, how many clients there are, and STOPPING")
def notify():
    for is_abstract in (False, True):
        with Scratch() as scratch:
            bound, passed = notify_address(scratch, is_abstract)
            manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            manager.bind(bound)
            manager.settimeout(PATIENCE)
            server = Server(DISK, environment={"NOTIFY_SOCKET": passed})
            try:
                equal(manager.recv(999), b"READY=1", "first message")
                with Client(server) as client:
                    client.open(b"disk")
                    equal(manager.recv(999), b"STATUS=1 clients", "after a client has come")
                equal(manager.recv(999), b"STATUS=0 clients", "after it has left")
                start = time.monotonic()
                for _ in range(100):
                    Client(server).socket.close()
                time.sleep(2)
                told = []
                while (select.select([manager], [], [], 0)[0] or
                       told[-1:] not in ([], [b"STATUS=0 clients"])):
                    told.append(manager.recv(999))
                expect(len(told) <= time.monotonic() - start + 2, told)
                manager.settimeout(PATIENCE)
                server.process.send_signal(signal.SIGTERM)
                equal(manager.recv(999), b"STOPPING=1", "after SIGTERM")
            finally:
                server.stop()


@test("a service manager that is busy: READY=1 is not lost")
def notify_busy():
    with Scratch() as scratch:
        bound, passed = notify_address(scratch, False)
        manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        manager.bind(bound)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.connect(bound)
            other.setblocking(False)
            sent = 0
            try:
                while True:
                    other.send(b"busy")
                    sent += 1
            except BlockingIOError:
                pass
        late = threading.Timer(1, lambda: [manager.recv(999) for _ in range(sent)])
        late.start()
        server = Server(DISK, environment={"NOTIFY_SOCKET": passed})
        try:
            late.join()
            manager.settimeout(PATIENCE)
            equal(manager.recv(999), b"READY=1", "what was to be told")
        finally:
            server.stop()


@test("a service manager that cannot be reached: refused with a reason")
def notify_wrong():
    for path in ("/nonexistent/notify", "relative", "@", "/" + "x" * 200, "@nobody-is-here"):
        os.environ["NOTIFY_SOCKET"] = path
        try:
            run_wrong(["--listen", "127.0.0.1:0", DISK], 1, "NOTIFY_SOCKET")
        finally:
            del os.environ["NOTIFY_SOCKET"]


@test("--socket-mode and --socket-owner")
def socket_access():
    server = Server("--socket-mode", "0620", DISK)
    try:
        equal(os.stat(server.path).st_mode & 0o777, 0o620, "mode")
    finally:
        server.stop()
    server = Server(DISK)
    try:
        equal(os.stat(server.path).st_mode & 0o777, 0o600, "mode that nobody has given")
    finally:
        server.stop()
    for mode in ("", "8", "1777", "x", "-1", "0x1"):
        run_wrong(["--socket", "/nonexistent/s", "--socket-mode", mode, DISK], 2, "--socket-mode")
    for option, value in (("--socket-owner", "nobody"), ("--socket-mode", "0600")):
        run_wrong(["--listen", "127.0.0.1:0", option, value, DISK], 2, option + " needs --socket")
    with Scratch() as scratch:
        for owner, text in (("no such", "no such user"), ("nobody:no such", "no such group"),
                            ("4294967295:1", "no such user"), ("123456789", "USER:GROUP")):
            run_wrong(["--socket", scratch("s"), "--socket-owner", owner, DISK], 1, text)
            expect(not os.path.exists(scratch("s")), "a socket is left behind")
    if os.geteuid():
        return
    server = Server("--socket-owner", "nobody", DISK)
    try:
        status = os.stat(server.path)
        equal((status.st_uid, status.st_gid), (65534, 65534), "owner")
    finally:
        server.stop()
    server = Server("--socket-owner", "12:34", DISK)
    try:
        status = os.stat(server.path)
        equal((status.st_uid, status.st_gid), (12, 34), "owner by number")
    finally:
        server.stop()


@test("--vsock: addresses that make no sense, and those that others can reach, are refused")
def vsock_wrong():
    for address in ("x", "", ":", "1:", ":1", "-1", "1:x", "4294967296", "1:2:3", "any:1"):
        run_wrong(["--vsock", address, DISK], 2, "not PORT or CID:PORT")
    for address in ("10809", "2:10809", "4294967295:1"):
        run_wrong(["--vsock", address, DISK], 1, "not a loopback address")


@test("--listen: addresses that make no sense are refused")
def listen_wrong():
    for address in ("127.0.0.1:99999", "127.0.0.1: 80", "127.0.0.1:-1", "127.0.0.1:", ":1", "[::1",
                    "[::1]1", "127.0.0.1:65536", "127.0.0.1:http", "", ":", "[]"):
        run_wrong(["--listen", address, DISK], 2, "not ADDRESS or ADDRESS:PORT")


def apart(scratch, commands):
    """The server, as a program, in a network of its own in which these were run before."""
    with open(scratch("apart"), "w", encoding="utf-8") as script:
        script.write("#!/bin/sh\nexec unshare -nm sh -c 'ip link set lo up && %s && "
                     'exec "$0" "$@"\' %s "$@"\n' % (commands, nbdclient.TESTSERVER))
    os.chmod(scratch("apart"), 0o700)
    return scratch("apart")


@test("--listen: loopback addresses, whatever other addresses the machine has")
def listen_loopback():
    with Scratch() as scratch:
        for other in ("fd00::1/128", "192.0.2.1/32"):
            program = apart(scratch, "ip addr add %s dev lo" % other)
            for address in ("127.0.0.1:0", "[::1]:0", "localhost:0"):
                Server("--listen", address, DISK, program=program).stop()


@test("--listen: a name, at those of its addresses that the machine has")
def listen_name():
    with Scratch() as scratch:
        with open(scratch("hosts"), "w", encoding="utf-8") as hosts:
            hosts.write("127.0.0.1 both\n::1 both six\n")
        named = "mount --bind %s /etc/hosts" % scratch("hosts")
        without = named + " && echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6"
        for commands, count in ((named, 2), (without, 1)):
            server = Server("--listen", "both:0", DISK, program=apart(scratch, commands))
            try:
                found = re.findall(r"listening on \S+:\d+", server.log())
                equal(len(found), count, "addresses: " + server.log())
            finally:
                server.stop()
        run_wrong(["--no-sandbox", "--listen", "six:0", DISK], 1, "cannot listen on six:0",
                  program=apart(scratch, without))


def statuses(pid):
    """What the kernel says of each thread of a process."""
    found = []
    for task in os.listdir("/proc/%d/task" % pid):
        with open("/proc/%d/task/%s/status" % (pid, task), encoding="utf-8") as file:
            found.append(dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line))
    return found


def expect_confined(pid, user, group, capabilities=0):
    """Every thread of a process has given up all but what it may have."""
    tasks = statuses(pid)
    for status in tasks:
        equal(status["Uid"].split(), [str(user)] * 4, "user of " + status["Name"])
        equal(status["Gid"].split(), [str(group)] * 4, "group of " + status["Name"])
        equal((status["NoNewPrivs"], status["Seccomp"]), ("1", "2"), "new privileges, seccomp")
        for kind in ("CapPrm", "CapEff"):
            equal(int(status[kind], 16), capabilities, kind + " of " + status["Name"])
        equal(int(status["CapInh"], 16) | int(status["CapAmb"], 16), 0, "CapInh, CapAmb")
        if not os.geteuid():
            equal(status["Groups"].split(), [], "other groups")
            equal(int(status["CapBnd"], 16), capabilities, "CapBnd of " + status["Name"])
    return len(tasks)


def janitor_of(server):
    """The process that removes the files."""
    # The server serves once the child is what it should be.
    with Client(server) as client:
        client.open(b"disk")
    pid = server.process.pid
    with open("/proc/%d/task/%d/children" % (pid, pid), encoding="utf-8") as file:
        children = file.read().split()
    equal(len(children), 1, "children of the server")
    with open("/proc/%s/comm" % children[0], encoding="utf-8") as file:
        equal(file.read(), "fleeced-janitor\n", "name of the child")
    return int(children[0])


def use_all(server):
    """What a server's threads do, all of it."""
    clients = []
    for _ in range(4):
        client = Client(server)
        clients.append(client)
        client.open(b"disk+release", contexts=["base:allocation", "qemu:dirty-bitmap:one"])
        cookies = {client.request(READ, n * 64 * K, 64 * K): n * 64 * K for n in range(64)}
        for _ in range(64):
            answer = client.answer()
            equal(answer["error"], 0, "error of a READ")
            offset = cookies.pop(answer["cookie"])
            equal(answer["data"], pattern(offset, 64 * K), "data")
        client.status(0, 8 * M)
        equal(client.error(CACHE, 0, M), 0, "CACHE")
        equal(client.error(FLUSH), 0, "FLUSH")
        equal(client.error(READ, 8 * M, 512), EINVAL, "READ beyond the end")
    equal(clients[0].error(TRIM, 0, 64 * K), 0, "TRIM")
    return clients


def run_confined(user, group, *arguments):
    """A server that serves as somebody."""
    server = Server("--allow-release", *arguments, DISK, program=nbdclient.PLAIN_TESTSERVER,
                    listen=True)
    try:
        clients = use_all(server)
        threads = expect_confined(server.process.pid, user, group)
        # That of the server, and of each client one, which would be all if nothing waited.
        expect(threads > 1 + len(clients), "only %d threads" % threads)
        equal(os.stat("/proc/%d/mem" % server.process.pid).st_uid, 0,
              "who may look into the server")
        for client in clients:
            client.socket.close()
        with Client(server, tcp=True) as client:
            client.open(b"disk")
            equal(client.read(M, 512), pattern(M, 512), "data over TCP")
    finally:
        server.stop()
    equal(server.said.count("error:"), 0, server.said)


@test("the server gives up its privileges, and so do all its threads")
def confined():
    if os.geteuid():
        run_confined(os.geteuid(), os.getegid())
        return
    nobody, daemon = pwd.getpwnam("nobody"), pwd.getpwnam("daemon")
    groups = os.getgroups()
    os.setgroups([4, 24])
    try:
        run_confined(nobody.pw_uid, nobody.pw_gid)
        run_confined(daemon.pw_uid, daemon.pw_gid, "--user", "daemon")
        run_confined(12, 34, "--user", "12:34")
        run_confined(0, 0, "--user", "root")
    finally:
        os.setgroups(groups)


@test("the janitor keeps the right to remove files, and nothing else")
def janitor_confined():
    server = Server(DISK, program=nbdclient.PLAIN_TESTSERVER)
    try:
        pid = janitor_of(server)
        expect_confined(pid, os.geteuid(), os.getegid(), 0 if os.geteuid() else 2)
        files = os.listdir("/proc/%d/fd" % pid)
        equal(len(files), 4, "files that it has open: the log, the server, the two to remove")
        expect("2" in files, "stderr is not open")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(pid, number)
    finally:
        server.stop()


@test("a janitor that was killed does not keep the server from serving and ending")
def janitor_killed():
    server = Server(DISK)
    try:
        os.kill(janitor_of(server), signal.SIGKILL)
        with Client(server) as client:
            client.open(b"disk")
            equal(client.read(0, 512), pattern(0, 512), "data")
        server.process.send_signal(signal.SIGTERM)
        equal(server.wait(), 0, "exit status")
        for name in (server.path, server.pid_file):
            if os.path.exists(name):
                os.unlink(name)
    finally:
        server.stop()


@test("the path of a socket is not taken before the janitor has removed its file")
def janitor_slow():
    server = Server(DISK)
    pid = janitor_of(server)
    os.kill(pid, signal.SIGSTOP)
    try:
        server.process.kill()
        server.process.wait()
        run_wrong(["--socket", server.path, DISK], 1, "Address already in use")
        expect(os.path.exists(server.path), "the socket file is gone")
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_for(lambda: not os.path.exists(server.path), "the socket file is left behind")
    # The janitor may be about to remove more.
    subprocess.run(["rm", "-rf", server.directory], check=True)


@test("--stdio inside of the sandbox")
def confined_stdio():
    ours, theirs = socket.socketpair()
    with subprocess.Popen([nbdclient.PLAIN_TESTSERVER, "--stdio", DISK], stdin=theirs,
                          stdout=theirs, stderr=subprocess.DEVNULL) as process:
        theirs.close()
        with Client.on(ours) as client:
            client.open(b"disk")
            equal(client.read(0, 512), pattern(0, 512), "data")
            expect_confined(process.pid, *((65534, 65534) if not os.geteuid()
                                           else (os.geteuid(), os.getegid())))
            client.request(DISC)
            client.expect_end()
        equal(process.wait(timeout=PATIENCE), 0, "exit status")


@test("--no-sandbox keeps everything; --user that cannot be had is refused")
def unconfined():
    server = Server("--no-sandbox", DISK, program=nbdclient.PLAIN_TESTSERVER)
    try:
        status, = statuses(server.process.pid)
        equal((status["NoNewPrivs"], status["Seccomp"]), ("0", "0"), "new privileges, seccomp")
    finally:
        server.stop()
    run_wrong(["--stdio", "--user", "nobody", "--no-sandbox", DISK], 2, "--no-sandbox")
    with Scratch() as scratch:
        for user, text in (("no such", "no such user"), ("nobody:no such", "no such group"),
                           (":", "no such user"), ("4294967295", "no such user")):
            run_wrong(["--socket", scratch("s"), "--pid-file", scratch("p"), "--user", user, DISK],
                      1, text, nbdclient.PLAIN_TESTSERVER)
            equal(os.listdir(scratch.path), [], "files left behind")
        if not os.geteuid():
            os.chmod(scratch.path, 0o777)
            # Where another user can read it.
            program = shutil.copy(nbdclient.PLAIN_TESTSERVER, scratch("program"))
            run_wrong(["-u", "nobody", "--", program, "--socket", scratch("s"), "--user", "daemon",
                       DISK], 1, "only root can", "runuser")
            equal(os.listdir(scratch.path), ["program"], "files left behind")


def vsock_loopback():
    """Can a program on this machine reach another one through vsock?"""
    try:
        with socket.socket(socket.AF_VSOCK) as probe:
            probe.bind((1, socket.VMADDR_PORT_ANY))
        return True
    except OSError:
        return False


def over_vsock():
    server = Server("--vsock", "1:0", "--insecure", "--vsock", "0", DISK)
    try:
        port = int(re.search(r"listening on vsock 1:(\d+)", server.log()).group(1))
        expect(re.search(r"listening on vsock port \d+", server.log()), server.log())
        raw = socket.socket(socket.AF_VSOCK)
        raw.connect((1, port))
        with Client.on(raw) as client:
            client.open(b"disk")
            equal(client.read(512, 512), pattern(512, 512), "data")
        wait_for(lambda: "vsock 1:" in server.log().split("opened export")[0].rsplit("\n")[-1],
                 server.log())
    finally:
        server.stop()


def ask_much(server, length):
    """A client that asks for much and reads nothing."""
    client = Client(server).open(b"big")
    for n in range(4):
        client.request(READ, n * length, length)
    return client


@test("clients that read nothing cannot take the memory of others, nor grow the server")
def memory_of_others():
    server = Server(BIG)
    greedy = []
    try:
        greedy = [ask_much(server, 32 * M) for _ in range(24)]
        with Client(server) as client:
            client.open(b"big", contexts=["base:allocation"])
            for n in range(20):
                equal(client.read(n * M, M), pattern(n * M, M), "data for another client")
                client.status(0, 1 << 31)
        with open("/proc/%d/status" % server.process.pid, encoding="utf-8") as status:
            resident = int(re.search(r"VmRSS:\s+(\d+) kB", status.read()).group(1))
        # 128 MiB for all, and what the sanitizers keep, of which ThreadSanitizer has more.
        limit = 320 * K * int(os.environ.get("FLEECED_TEST_MEMORY", 1))
        expect(resident < limit, "%d KiB resident" % resident)
    finally:
        for client in greedy:
            client.socket.close()
        server.stop()


@test("of 1 MiB each, what a slow reader asks for does not keep that of others waiting")
def slow_reader():
    server = Server(BIG)
    greedy = []
    try:
        for _ in range(4):
            greedy.append(Client(server).open(b"big"))
            # More than the server makes at once, so that some wait for their share.
            greedy[-1].send(b"".join(greedy[-1].packed(READ, n * M, M) for n in range(100)))
        with Client(server) as client:
            client.open(b"big", contexts=["base:allocation"])
            for n in range(20):
                equal(client.read(n * M, M), pattern(n * M, M), "data for another client")
                equal(client.read(n * M, 4096), pattern(n * M, 4096), "a little for it")
                client.status(0, 1 << 31)
        # Who reads at last gets all of it.
        for n in range(100):
            equal(greedy[0].answer()["error"], 0, "READ %d of the slow reader" % n)
    finally:
        for client in greedy:
            client.socket.close()
        server.stop()


class Pipes:
    """The standard input and output of a process, as a socket for Client."""

    def __init__(self, process):
        self.process = process

    def settimeout(self, _):
        """The test as a whole is what ends."""

    def sendall(self, data):
        """As that of a socket."""
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def recv(self, length):
        """As that of a socket."""
        return self.process.stdout.read1(length)


@test("--stdio on pipes ends when the reader has stalled or is gone, and the writer stays")
def stalled_pipes():
    for is_gone in (False, True):
        command = [nbdclient.TESTSERVER, "--stdio", BIG]
        with subprocess.Popen(command + nbdclient.sandbox_options(command[0]),
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL) as process:
            client = Client.on(Pipes(process)).open(b"big")
            for n in range(4):
                client.request(READ, n * M, M)
            wait_for(lambda: select.select([process.stdout], [], [], 0)[0], "no reply")
            if is_gone:
                process.stdout.close()
            else:
                process.send_signal(signal.SIGTERM)
                wait_for(lambda: not int(statuses(process.pid)[0]["ShdPnd"], 16), "signal")
                time.sleep(1.2)
                process.send_signal(signal.SIGTERM)
            equal(process.wait(timeout=PATIENCE), 0, "exit status")


@test("what a client sends after its end does not cost it the replies before")
def sends_too_much():
    server = Server(BIG, listen=True)
    try:
        with Client(server, tcp=True) as client:
            client.open(b"big")
            wanted = client.request(READ, 0, 64 * K)
            client.request(DISC)
            client.send(bytes(256 * K))
            wait_for(lambda: "closed export" in server.log(), server.log())
            equal(client.answer_to(wanted, {wanted: 64 * K})["data"], pattern(0, 64 * K), "data")
            client.expect_end()
    finally:
        server.stop()


@test("a client that reads nothing is disconnected after --stall-timeout, with a line in the log")
def stalled():
    server = Server("--stall-timeout", "1", BIG)
    try:
        with ask_much(server, 64 * K) as slow, Client(server) as idle:
            idle.open(b"big")
            slow.send(b"".join(slow.packed(READ, n * 64 * K, 64 * K) for n in range(64)))
            wait_for(lambda: "took too long to read a reply" in server.log(), "not disconnected")
            equal(idle.read(0, 512), pattern(0, 512), "data for one that was only idle")
        equal(server.log().count("took too long"), 1, server.log())
    finally:
        server.stop()


@test("a client that reads slowly, but reads, is not disconnected")
def slow_but_reading():
    server = Server("--stall-timeout", "1", BIG)
    try:
        with Client(server) as client:
            client.open(b"big")
            client.request(READ, 0, 1 * M)
            # 16 s for 1 MiB and one more: far longer than the timeout alone.
            time.sleep(2)
            equal(client.answer()["data"], pattern(0, M), "data")
    finally:
        server.stop()


@test("standard descriptors that are closed at the start are not given to devices or clients",
      counts_descriptors=True)
def closed_descriptors():
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "socket")
        program = nbdclient.TESTSERVER
        arguments = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", program, "--socket", path, DISK]
        with subprocess.Popen(arguments + nbdclient.sandbox_options(program)) as process:
            try:
                wait_for(lambda: os.path.exists(path) or process.poll() is not None, "no socket")
                for number in range(3):
                    equal(os.readlink("/proc/%d/fd/%d" % (process.pid, number)), "/dev/null",
                          "descriptor %d" % number)
            finally:
                process.send_signal(signal.SIGTERM)


def come_and_go(server, count):
    """Clients that cause lines of the log."""
    for _ in range(count):
        with Client(server) as client:
            client.open(b"disk")
            equal(client.read(0, 4), pattern(0, 4), "data")


def read_log(pipe, wanted, cause=lambda: None):
    """Read until something was said."""
    said = b""
    deadline = time.monotonic() + PATIENCE
    while wanted not in said:
        expect(time.monotonic() < deadline, "the log does not say it: %r" % said[-200:])
        cause()
        if select.select([pipe], [], [], 0.1)[0]:
            said += os.read(pipe, 4096)


@test("a log that nobody reads holds up neither clients nor the end, and says what was lost")
def log_stalls():
    command = [nbdclient.TESTSERVER, *nbdclient.sandbox_options(nbdclient.TESTSERVER)]
    with Scratch() as scratch:
        server = types.SimpleNamespace(path=scratch("socket"))
        ours, theirs = os.pipe()
        fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, 4096)
        process = subprocess.Popen([*command, "--socket", server.path, DISK],
                                   stdin=subprocess.DEVNULL, stderr=theirs)
        os.close(theirs)
        try:
            read_log(ours, b"ready")
            come_and_go(server, 200)
            read_log(ours, b"lines of the log were lost", lambda: come_and_go(server, 1))
            come_and_go(server, 200)
            process.terminate()
            equal(process.wait(20), 0, "exit status")
        finally:
            process.kill()
            process.wait()
            os.close(ours)


@test("strangers do not fill the log, which says how many lines were too many")
def log_flood():
    server = Server(DISK)
    begin = time.monotonic()
    try:
        for _ in range(5000):
            with Client(server, greet=False) as client:
                client.receive(18)
                client.send(struct.pack(">I", 0x80))
                client.expect_end()
            if "lines of the log were lost" in server.log():
                break
        lines = server.log().splitlines()
        expect(len(lines) > 1000 and "lost" in lines[-1] + lines[-2], lines[-1])
        expect(len(lines) < 1020 + 2 * (time.monotonic() - begin), "%d lines" % len(lines))
        come_and_go(server, 1)
        wait_for(lambda: "closed export disk" in server.log(), "a client still has its line")
    finally:
        server.stop()


@test("without descriptors for new clients, these wait, and the log says it once",
      counts_descriptors=True)
def no_descriptors():
    server = Server(DISK)
    clients = []
    try:
        used = len(os.listdir("/proc/%d/fd" % server.process.pid))
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (used + 2, used + 2))
        for _ in range(4):
            clients.append(Client(server, greet=False))
        for client in clients[:2]:
            equal(len(client.receive(18)), 18, "greeting")
        line = "cannot serve a new client: Too many open files"
        deadline = time.monotonic() + PATIENCE
        while line not in server.log():
            expect(time.monotonic() < deadline, "the log does not say it: " + server.log())
            time.sleep(0.02)
        # It is tried five times a second.
        time.sleep(1)
        equal(server.log().count(line), 1, "lines of the log")
        for client in clients[:2]:
            client.socket.close()
        for client in clients[2:]:
            equal(len(client.receive(18)), 18, "greeting of one that has waited")
    finally:
        for client in clients:
            client.socket.close()
        server.stop()


@test("the log says once when all connections are in use")
def all_in_use():
    server = Server("--max-connections", "2", DISK)
    try:
        for _ in range(2):
            with Client(server) as one, Client(server) as two:
                one.open(b"disk")
                two.open(b"disk")
        wait_for(lambda: "all 2 connections are in use" in server.log(), server.log())
        equal(server.log().count("connections are in use"), 1, server.log())
    finally:
        server.stop()


def main():
    tap = Tap()
    for title, function in TESTS:
        if function in COUNTS_DESCRIPTORS and "FLEECED_TEST_VALGRIND" in os.environ:
            tap.skip(title, "valgrind has descriptors of its own")
        else:
            tap.run(title, function)
    title = "--vsock serves a client on this machine"
    if vsock_loopback():
        tap.run(title, over_vsock)
    else:
        tap.skip(title, "no loopback of vsock here (module vsock_loopback)")
    return tap.finish()


if __name__ == "__main__":
    sys.exit(main())
