# SPDX-License-Identifier: GPL-2.0-only
"""A client of the NBD protocol that sends what it is told, right or wrong.

Part of the tests of fleeced, together with what they share: a server of their
own, and TAP. Knows nothing of what an answer should be.
"""
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
BUILD = os.path.join(HERE, os.environ.get("FLEECED_TEST_BUILD", "build"))
SANITIZED_TESTSERVER = os.path.join(BUILD, "testserver")
FLEECED = os.path.join(BUILD, "fleeced")

# Built without sanitizers, which cannot work inside of the sandbox.
PLAIN_TESTSERVER = os.path.join(BUILD, "plain", "testserver")

# How long a server may take to start or to end. Under valgrind it takes longer.
PATIENCE = 20 * int(os.environ.get("FLEECED_TEST_SLOWDOWN", "1"))

TESTSERVER = PLAIN_TESTSERVER if os.environ.get("FLEECED_TEST_SANDBOX") else SANITIZED_TESTSERVER


def sandbox_options(program):
    """What a program is told so that it can run."""
    return [] if program == PLAIN_TESTSERVER else ["--no-sandbox"]


NBDMAGIC = 0x4e42444d41474943
IHAVEOPT = 0x49484156454f5054
REPLY_MAGIC = 0x3e889045565a9
REQUEST_MAGIC = 0x25609513
SIMPLE_MAGIC = 0x67446698
CHUNK_MAGIC = 0x668e33ef
EXTENDED_REQUEST_MAGIC = 0x21e41c71
EXTENDED_CHUNK_MAGIC = 0x6e8a278c

EXPORT_NAME, ABORT, LIST, PEEK, STARTTLS, INFO, GO = 1, 2, 3, 4, 5, 6, 7
STRUCTURED, LIST_META, SET_META, EXTENDED = 8, 9, 10, 11

ACK, SERVER, REP_INFO, META = 1, 2, 3, 4
UNSUP, POLICY, INVALID, TLS_REQD, UNKNOWN, SHUTDOWN, TOO_BIG, EXT_HEADER_REQD = (
    (1 << 31) | n for n in (1, 2, 3, 5, 6, 7, 9, 10))

READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN = 1, 2, 4, 8, 16, 32

EPERM, EIO, EINVAL, EOVERFLOW, ESHUTDOWN = 1, 5, 22, 75, 108

NONE, DATA, HOLE, BLOCK_STATUS, BLOCK_STATUS_EXT, ERROR, ERROR_OFFSET = (
    0, 1, 2, 5, 6, 0x8001, 0x8002)

SIMPLE_FORM, STRUCTURED_FORM, EXTENDED_FORM = range(3)
FORMS = (SIMPLE_FORM, STRUCTURED_FORM, EXTENDED_FORM)


class Failed(Exception):
    """A test's expectation that was not met."""


def expect(condition, what):
    """Fail the running test unless the condition holds."""
    if not condition:
        raise Failed(what)


def wait_for(condition, what, seconds=60):
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        expect(time.monotonic() < deadline, "waited in vain: " + what)
        time.sleep(0.02)


def equal(got, wanted, what):
    """Fail the running test unless both are equal."""
    if got != wanted:
        raise Failed("%s: got %r, expected %r" % (what, got, wanted))


def pattern(offset, length):
    """Data of the memory backend."""
    first = offset & ~7
    words = b"".join(
        struct.pack(">Q", (at * 0x9e3779b97f4a7c15) & (2 ** 64 - 1))
        for at in range(first, offset + length, 8))
    return words[offset - first:offset - first + length]


class Server:
    """A server with its own directory; stopped and checked by stop()."""

    def __init__(self, *arguments, program=TESTSERVER, listen=False, environment=None,
                 before=None):
        self.directory = tempfile.mkdtemp(prefix="fleeced-test-")
        self.path = os.path.join(self.directory, "socket")
        self.pid_file = os.path.join(self.directory, "pid")
        self.log_path = os.path.join(self.directory, "log")
        if before:
            before(self.path)
        command = [program, "--socket", self.path, "--pid-file", self.pid_file]
        command += sandbox_options(program)
        if listen:
            command += ["--listen", "127.0.0.1:0"]
        environment = dict(os.environ, **(environment or {}))
        environment["ASAN_OPTIONS"] = "quarantine_size_mb=8:abort_on_error=0"
        if environment.get("FLEECE_ROOT"):
            # There, process ids are not those of /proc, where leaks are looked for.
            environment["ASAN_OPTIONS"] += ":detect_leaks=0"
        with open(self.log_path, "w") as log:
            self.said = ""
            self.process = subprocess.Popen(
                command + list(arguments), stdin=subprocess.DEVNULL, stderr=log,
                env=environment)
        deadline = time.monotonic() + PATIENCE
        while not os.path.exists(self.pid_file) or "fleeced: ready" not in self.log():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Failed("the server does not start: " + self.log())
            time.sleep(0.01)

    def log(self):
        """Everything that the server has said."""
        with open(self.log_path, errors="replace") as log:
            return log.read()

    def port(self):
        """TCP port of a server with listen=True."""
        return int(self.log().split("listening on 127.0.0.1:")[1].split()[0])

    def wait(self, seconds=PATIENCE):
        """Exit status of a server that was told to end."""
        return self.process.wait(timeout=seconds)

    def stop(self):
        """End the server; whatever is wrong with its end fails the test."""
        try:
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)
            status = self.wait()
            equal(status, 0, "exit status of the server, which said:\n" + self.log())
            expect(not os.path.exists(self.path), "the socket file is left behind")
            expect(not os.path.exists(self.pid_file), "the pid file is left behind")
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self.said = self.log()
            shutil.rmtree(self.directory)


def run_wrong(arguments, status, text, program=TESTSERVER):
    """A command line that must be refused, with a reason."""
    result = subprocess.run([program] + arguments, stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE,
                            check=False)
    output = result.stdout.decode()
    equal(result.returncode, status, "exit status of %r: %s" % (arguments, output))
    expect(text in output, "%r in the output of %r: %s" % (text, arguments, output))


class Client:
    """One connection. Methods that read raise EOFError at the end."""

    def __init__(self, server, flags=3, greet=True, tcp=False):
        if tcp:
            self.socket = socket.create_connection(("127.0.0.1", server.port()))
        else:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(server.path)
        self.begin(flags, greet)

    @classmethod
    def on(cls, connected, flags=3):
        """A client on a socket that is connected already."""
        client = cls.__new__(cls)
        client.socket = connected
        client.begin(flags, True)
        return client

    def begin(self, flags, greet):
        """What is the same for all kinds of sockets."""
        self.socket.settimeout(PATIENCE)
        self.cookie = 1
        self.form = SIMPLE_FORM
        self.contexts = {}
        if greet:
            self.greeting = self.receive(18)
            self.send(struct.pack(">I", flags))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        """Send raw bytes."""
        self.socket.sendall(data)

    def receive(self, length):
        """Read exactly so many bytes."""
        data = b""
        while len(data) < length:
            try:
                piece = self.socket.recv(length - len(data))
            except ConnectionResetError:
                piece = b""
            if not piece:
                raise EOFError("end after %d of %d bytes" % (len(data), length))
            data += piece
        return data

    def expect_end(self):
        """The server must disconnect, and say nothing before."""
        try:
            data = self.receive(1)
        except EOFError:
            return
        raise Failed("expected a disconnect, got the byte %r" % data)

    def send_option(self, option, data=b"", length=None):
        """Send an option, possibly with a wrong length."""
        self.send(struct.pack(">QII", IHAVEOPT, option, len(data) if length is None else length)
                  + data)

    def reply(self, option):
        """One reply to an option: type and data."""
        magic, code, kind, length = struct.unpack(">QIII", self.receive(20))
        equal(magic, REPLY_MAGIC, "magic of an option reply")
        equal(code, option, "option in a reply")
        return kind, self.receive(length)

    def option(self, option, data=b"", length=None):
        """All replies to an option, the last one being ACK or an error."""
        self.send_option(option, data, length)
        replies = []
        while not replies or (replies[-1][0] != ACK and not replies[-1][0] >> 31):
            replies.append(self.reply(option))
        return replies

    def option_error(self, option, data=b"", length=None):
        """The error that an option gets, and it alone; with text."""
        replies = self.option(option, data, length)
        equal(len(replies), 1, "number of replies")
        kind, text = replies[0]
        if kind >> 31:
            text.decode("utf-8")
            expect(0 < len(text) <= 4096, "an error has a text")
        return kind

    def go(self, name=b"", option=GO, requests=()):
        """INFO or GO: the items by their type."""
        replies = self.option(option, go_data(name, requests))
        equal(replies[-1][0], ACK, "end of INFO or GO")
        items = {}
        for kind, data in replies[:-1]:
            equal(kind, REP_INFO, "reply to INFO or GO")
            items[struct.unpack(">H", data[:2])[0]] = data[2:]
        return items

    def negotiate(self, form):
        """Ask for structured replies or extended headers."""
        if form != SIMPLE_FORM:
            option = EXTENDED if form == EXTENDED_FORM else STRUCTURED
            equal(self.option(option), [(ACK, b"")], "answer to option %d" % option)
        self.form = form

    def meta(self, option, name, *queries):
        """Names and ids of the contexts listed or set."""
        replies = self.option(option, meta_data(name, queries))
        equal(replies[-1][0], ACK, "end of LIST or SET_META_CONTEXT")
        result = []
        for kind, data in replies[:-1]:
            equal(kind, META, "reply to LIST or SET_META_CONTEXT")
            result.append((data[4:].decode(), struct.unpack(">I", data[:4])[0]))
        if option == SET_META:
            self.contexts = {number: name for name, number in result}
        return result

    def open(self, name=b"", form=STRUCTURED_FORM, contexts=()):
        """A whole handshake."""
        self.negotiate(form)
        if contexts:
            equal(len(self.meta(SET_META, name, *contexts)), len(contexts), "contexts set")
        self.items = self.go(name)
        return self

    def packed(self, command, offset=0, length=0, flags=0, payload=b"", magic=None):
        """The bytes of a request, whose cookie is self.cookie then.

        For those who send many at once: of those sent one by one and not read yet, each
        takes as much of the socket's buffer as 768 bytes do, so that 70 may be too many.
        """
        self.cookie += 1
        extended = self.form == EXTENDED_FORM
        if magic is None:
            magic = EXTENDED_REQUEST_MAGIC if extended else REQUEST_MAGIC
        return struct.pack(">IHHQQQ" if extended else ">IHHQQI", magic, flags, command,
                           self.cookie, offset, length) + payload

    def request(self, *arguments, **options):
        """Send a request, return its cookie; arguments as those of packed()."""
        self.send(self.packed(*arguments, **options))
        return self.cookie

    def receive_header(self):
        """Header of a reply: flags, type, cookie, offset, length; or of a simple one, as None,
        error, cookie."""
        magic, = struct.unpack(">I", self.receive(4))
        if self.form == EXTENDED_FORM:
            equal(magic, EXTENDED_CHUNK_MAGIC, "magic of a reply")
            return struct.unpack(">HHQQQ", self.receive(28))
        if magic == SIMPLE_MAGIC:
            return (None,) + struct.unpack(">IQ", self.receive(12))
        equal((magic, self.form), (CHUNK_MAGIC, STRUCTURED_FORM), "magic of a reply")
        flags, kind, cookie, length = struct.unpack(">HHQI", self.receive(16))
        return flags, kind, cookie, None, length

    def answer(self, lengths=None):
        """Next reply, complete: cookie, error, and data, extents or text.

        A simple reply to a READ has data if its length is known: lengths maps
        cookies to lengths.
        """
        result = {"error": 0, "data": b"", "text": "", "status": {}, "simple": False,
                  "chunks": []}
        while True:
            header = self.receive_header()
            result["cookie"] = header[2]
            if header[0] is None:
                result["simple"] = True
                result["error"] = header[1]
                if not result["error"] and lengths:
                    result["data"] = self.receive(lengths.get(result["cookie"], 0))
                return result
            flags, kind, _, offset, length = header
            equal(flags & ~1, 0, "flags of a chunk")
            payload = self.receive(length)
            result["header offset"] = offset
            result["chunks"].append((kind, payload))
            self.take_chunk(result, kind, payload)
            if flags & 1:
                return result

    def take_chunk(self, result, kind, payload):
        """Add a chunk to an answer."""
        if kind in (ERROR, ERROR_OFFSET):
            tail = 8 if kind == ERROR_OFFSET else 0
            expect(not result["error"], "two errors in one reply")
            result["error"], length = struct.unpack(">IH", payload[:6])
            equal(len(payload), 6 + length + tail, "length of an error chunk")
            result["text"] = payload[6:6 + length].decode("utf-8")
            if tail:
                result["bad offset"], = struct.unpack(">Q", payload[-8:])
        elif kind in (DATA, HOLE):
            self.take_content(result, kind, payload)
        elif kind in (BLOCK_STATUS, BLOCK_STATUS_EXT):
            self.take_status(result, kind, payload)
        else:
            equal((kind, payload), (NONE, b""), "chunk")

    def take_content(self, result, kind, payload):
        """Add data, or a hole, which must follow what has come."""
        offset, = struct.unpack(">Q", payload[:8])
        result.setdefault("offset", offset)
        equal(offset, result["offset"] + len(result["data"]), "C63 offset of a chunk")
        if kind == HOLE:
            equal(len(payload), 12, "C63 length of a hole chunk")
            length, = struct.unpack(">I", payload[8:])
            expect(length, "C63 an empty hole")
            result["data"] += bytes(length)
        else:
            expect(payload[8:], "C63 an empty data chunk")
            result["data"] += payload[8:]

    def take_status(self, result, kind, payload):
        """Add the extents of one context."""
        extended = self.form == EXTENDED_FORM
        equal(kind, BLOCK_STATUS_EXT if extended else BLOCK_STATUS, "C71 type of a status chunk")
        number, = struct.unpack(">I", payload[:4])
        start = 8 if extended else 4
        expect(number in self.contexts, "a context that was not selected")
        expect(number not in result["status"], "C67 two chunks of one context")
        extents = list(struct.iter_unpack(">QQ" if extended else ">II", payload[start:]))
        if extended:
            equal(struct.unpack(">I", payload[4:8])[0], len(extents), "C71 count of extents")
        result["status"][self.contexts[number]] = extents

    def ask(self, command, offset=0, length=0, flags=0, payload=b""):
        """A request and its answer."""
        if payload and self.form == EXTENDED_FORM:
            flags |= PAYLOAD_LEN
        cookie = self.request(command, offset, length, flags, payload)
        answer = self.answer_to(cookie, {cookie: length} if command == READ else None)
        if self.form == EXTENDED_FORM:
            equal(answer["header offset"], offset, "C61 offset in the header")
        return answer

    def answer_to(self, cookie, lengths=None):
        """The next reply, which must be that to a certain request."""
        answer = self.answer(lengths)
        equal(answer["cookie"], cookie, "C41 cookie of the answer")
        return answer

    def error(self, command, offset=0, length=0, flags=0, payload=b""):
        """The error that a request gets; structured ones with a text."""
        answer = self.ask(command, offset, length, flags, payload)
        if answer["error"] and self.form != SIMPLE_FORM:
            expect(0 < len(answer["text"]) <= 4096, "an error has a text")
        return answer["error"]

    def read(self, offset, length, flags=0):
        """Data that must be readable."""
        answer = self.ask(READ, offset, length, flags)
        equal(answer["error"], 0, "error of a READ: " + answer["text"])
        return answer["data"]

    def status(self, offset, length, flags=0, only=None):
        """Extents of each context, or of the contexts of these ids, after
        checking what holds for all answers."""
        wanted = length
        payload = b""
        if only is not None:
            payload = struct.pack(">Q%dI" % len(only), length, *only)
            length, flags = len(payload), flags | PAYLOAD_LEN
        answer = self.ask(STATUS, offset, length, flags, payload)
        equal(answer["error"], 0, "error of a BLOCK_STATUS: " + answer["text"])
        equal(len(answer["status"]), len(self.contexts if only is None else only),
              "C67 contexts answered")
        totals = {sum(length for length, _ in extents) for extents in answer["status"].values()}
        equal(len(totals), 1, "C67 ranges covered by the contexts")
        expect(0 < totals.copy().pop() <= wanted, "C67 the range covered is one asked for")
        for extents in answer["status"].values():
            expect(all(n for n, _ in extents), "C67 no extent is empty")
            expect(all(f >> 32 == 0 for _, f in extents), "C71 upper half of a status")
            expect(all(a[1] != b[1] for a, b in zip(extents, extents[1:])),
                   "C67 neighbours differ")
            expect(not flags & REQ_ONE or len(extents) == 1, "C67 REQ_ONE gets one extent")
        return answer["status"]


def go_data(name, requests=()):
    """Data of INFO and GO."""
    return (struct.pack(">I", len(name)) + name + struct.pack(">H", len(requests))
            + b"".join(struct.pack(">H", request) for request in requests))


def meta_data(name, queries):
    """Data of LIST and SET_META_CONTEXT."""
    return (struct.pack(">I", len(name)) + name + struct.pack(">I", len(queries))
            + b"".join(struct.pack(">I", len(query)) + query
                       for query in (q if isinstance(q, bytes) else q.encode() for q in queries)))


def content(path):
    """All bytes of a file."""
    with open(path, "rb") as file:
        return file.read()


class Tap:
    """Runs tests and prints TAP."""

    def __init__(self):
        self.count = 0
        self.failed = 0

    def run(self, title, function, *arguments):
        """One test."""
        self.count += 1
        try:
            function(*arguments)
        except (Failed, EOFError, OSError, subprocess.SubprocessError, struct.error,
                UnicodeDecodeError, AssertionError, LookupError) as problem:
            self.failed += 1
            print("not ok %d - %s" % (self.count, title))
            for line in ("%s: %s" % (type(problem).__name__, problem)).splitlines():
                print("#   " + line)
        else:
            print("ok %d - %s" % (self.count, title))
        sys.stdout.flush()

    def skip(self, title, reason):
        """A test that cannot run here."""
        self.count += 1
        print("ok %d - %s # SKIP %s" % (self.count, title, reason))

    def finish(self):
        """Print the plan; return the exit status."""
        print("1..%d" % self.count)
        return 1 if self.failed else 0
