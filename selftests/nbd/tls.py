#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""This test will check TLS on the wire, and who is let in (TAP).

The titles begin with the number of the conformance item. The server runs under
sanitizers, with a snapshot in memory.
"""
import os
import re
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import time

import nbdclient
from nbdclient import *  # noqa: F403  the protocol's own names
from tls_pki import Pki
from wirecases import DISK, M

# The most options of one client.
OPTIONS_MAX = 256
ALL = (LIST, INFO, GO, STRUCTURED, EXTENDED, LIST_META, SET_META, PEEK, 0x7ffffff0)
TESTS = []
PKI = None


def test(title):
    """Register a test."""
    def register(function):
        TESTS.append((title, function))
        return function
    return register


def context(identity="backup", version=None):
    """What a client has and accepts."""
    result = ssl.create_default_context(cafile=PKI.path("authority", "cert.pem"))
    if identity:
        result.load_cert_chain(PKI.path(identity, "client-cert.pem"),
                               PKI.path(identity, "client-key.pem"))
    if version:
        result.minimum_version = version
        result.maximum_version = version
    return result


class Secure(Client):
    """A client that has switched to TLS."""

    def __init__(self, server, identity="backup", version=None, tcp=False):
        super().__init__(server, tcp=tcp)
        self.plain = self.socket
        equal(self.option(STARTTLS), [(ACK, b"")], "C24 STARTTLS")
        self.socket = context(identity, version).wrap_socket(
            self.socket, server_hostname="localhost", suppress_ragged_eofs=False)


def command(*arguments):
    """The server's command line."""
    return [nbdclient.TESTSERVER, *nbdclient.sandbox_options(nbdclient.TESTSERVER), *arguments]


def refused(server, reason, identity="backup", version=None):
    """The handshake must fail, and the log must say why."""
    before = len(server.log())
    try:
        with Secure(server, identity, version) as client:
            client.option(LIST)
    except (ssl.SSLError, ConnectionError, EOFError):
        pass
    else:
        raise Failed("the client was let in")
    deadline = time.monotonic() + PATIENCE
    while not re.search(reason, server.log()[before:]):
        expect(time.monotonic() < deadline,
               "the log should say %r: %s" % (reason, server.log()[before:]))
        time.sleep(0.01)


def remote_end(plain):
    """What comes from the server until its end, at most one alert: is there one?"""
    data = b""
    try:
        while True:
            piece = plain.recv(4096)
            if not piece:
                break
            data += piece
    except ConnectionResetError:
        pass
    expect(not data or (data[0] == 21 and len(data) == 7), "an answer in the clear: %r" % data)


@test("C80 before TLS, every option but STARTTLS and ABORT gets ERR_TLS_REQD, with text")
def needs_tls(server):
    with Client(server) as client:
        for option in ALL:
            for data in (b"", go_data(b"disk"), b"x" * 100000):
                equal(client.option_error(option, data), TLS_REQD, "option %d" % option)
        equal(client.option(STARTTLS), [(ACK, b"")], "STARTTLS after them")
    with Client(server) as client:
        equal(client.option(ABORT), [(ACK, b"")], "C21 ABORT")
        client.expect_end()


@test("a client that leaves without TLS gets one line of the log, one that goes on with it none")
def leaves_without_tls(server):
    line = "has left without TLS, which this server needs"
    before = server.log().count(line)
    with Client(server) as client:
        client.option_error(LIST)
        client.option_error(STRUCTURED)
        client.option(ABORT)
        client.expect_end()
    deadline = time.monotonic() + PATIENCE
    while server.log().count(line) == before:
        expect(time.monotonic() < deadline, "no line in the log: " + server.log())
        time.sleep(0.01)
    with Client(server) as client:
        equal(client.option_error(LIST), TLS_REQD, "LIST")
        equal(client.option(STARTTLS), [(ACK, b"")], "STARTTLS")
    with Client(server) as client:
        client.option(ABORT)
        client.expect_end()
    with Client(server) as client:
        for _ in range(OPTIONS_MAX):
            client.option_error(LIST)
        client.expect_end()
    time.sleep(0.2)
    equal(server.log().count(line), before + 1, "lines in the log")
    equal(server.log().count("more than %d options" % OPTIONS_MAX), 1,
          "lines about the client that had too many options")


@test("C80 EXPORT_NAME before TLS: disconnected, whatever the client's flags")
def export_name_in_the_clear(server):
    for flags in (0, 1, 2, 3):
        for name in (b"", b"disk", b"nothing"):
            with Client(server, flags=flags) as client:
                client.send_option(EXPORT_NAME, name)
                client.expect_end()


@test("C80 without fixed newstyle there is no way to TLS: disconnected")
def not_fixed_newstyle(server):
    with Client(server, flags=2) as client:
        client.send_option(STARTTLS)
        client.expect_end()


@test("C24 STARTTLS with data: ERR_INVALID, and without data it works then")
def starttls_with_data(server):
    with Client(server) as client:
        equal(client.option_error(STARTTLS, b"x"), INVALID, "STARTTLS with data")
        equal(client.option_error(STARTTLS, b"x" * 100000), INVALID, "STARTTLS with much data")
        equal(client.option(STARTTLS), [(ACK, b"")], "STARTTLS")


@test("C24 STARTTLS inside TLS: ERR_INVALID, and the session goes on; never ERR_TLS_REQD")
def second_starttls(server):
    with Secure(server) as client:
        equal(client.option_error(STARTTLS), INVALID, "second STARTTLS")
        for option in ALL:
            expect(client.option(option)[-1][0] != TLS_REQD, "TLS_REQD inside TLS")
    with Secure(server) as client:
        client.open(b"disk")
        equal(client.read(0, 512), pattern(0, 512), "data")


@test("C24 nothing said before TLS counts inside (options in one piece with STARTTLS)")
def state_is_forgotten(server):
    with Client(server) as client:
        client.send(struct.pack(">QII", IHAVEOPT, STRUCTURED, 0)
                    + struct.pack(">QII", IHAVEOPT, EXTENDED, 0)
                    + struct.pack(">QII", IHAVEOPT, STARTTLS, 0))
        equal(client.reply(STRUCTURED)[0], TLS_REQD, "STRUCTURED_REPLY")
        equal(client.reply(EXTENDED)[0], TLS_REQD, "EXTENDED_HEADERS")
        equal(client.reply(STARTTLS)[0], ACK, "STARTTLS")
        client.socket = context().wrap_socket(client.socket, server_hostname="localhost")
        equal(client.option_error(SET_META, meta_data(b"disk", ["base:allocation"])), INVALID,
              "C29 contexts without structured replies")
        client.go(b"disk")
        cookie = client.request(READ, 0, 512)
        answer = client.answer_to(cookie, {cookie: 512})
        expect(answer["simple"], "replies are simple again")


@test("C24 what is injected behind STARTTLS is not taken for something inside (CVE-2021-3716)")
def injection(server):
    for injected in (struct.pack(">QII", IHAVEOPT, LIST, 0),
                     struct.pack(">QII", IHAVEOPT, EXPORT_NAME, 4) + b"disk",
                     struct.pack(">QII", IHAVEOPT, STRUCTURED, 0) * 200, b"\x16"):
        before = len(server.log())
        with Client(server) as client:
            client.send(struct.pack(">QII", IHAVEOPT, STARTTLS, 0) + injected)
            equal(client.reply(STARTTLS), (ACK, b""), "STARTTLS")
            hello = hello_of(context())
            try:
                client.send(hello)
                client.socket.shutdown(socket.SHUT_WR)
            except (BrokenPipeError, ConnectionResetError, OSError):
                pass
            remote_end(client.socket)
        expect("opened export" not in server.log()[before:], "the injected option counted")


def hello_of(how):
    """First message of a client."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = how.wrap_bio(incoming, outgoing, server_hostname="localhost")
    try:
        session.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


@test("C81 TLS 1.2 and 1.3 work, with all forms of replies, over TCP too")
def versions(server):
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        for form in FORMS:
            with Secure(server, version=version, tcp=form == SIMPLE_FORM) as client:
                client.open(b"disk", form)
                for offset, length in ((0, 1), (4096, 16384), (1, 16300), (100, 65500),
                                       (3, 3 * M)):
                    equal(client.read(offset, length), pattern(offset, length), "data")
                    equal(client.error(FLUSH), 0, "FLUSH")


@test("C81 a client that knows TLS 1.1 only is refused, and the log says what is needed")
def old_version(server):
    hello = bytearray(hello_of(context(version=ssl.TLSVersion.TLSv1_2)))
    hello[9:11] = b"\x03\x02"
    before = len(server.log())
    with Client(server) as client:
        equal(client.option(STARTTLS), [(ACK, b"")], "STARTTLS")
        client.send(bytes(hello))
        remote_end(client.socket)
    wait_log(server, before, "TLS handshake failed.*TLS 1.2 or newer is needed")


def wait_log(server, start, expression):
    """Wait for a line in the log."""
    deadline = time.monotonic() + PATIENCE
    while not re.search(expression, server.log()[start:]):
        expect(time.monotonic() < deadline, "the log should say %r: %s" % (
            expression, server.log()[start:]))
        time.sleep(0.01)


@test("C81 after DISC, and after ABORT inside TLS, the session is closed, not cut off")
def clean_end(server):
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        with Secure(server, version=version) as client:
            client.open(b"disk")
            client.request(DISC)
            equal(client.socket.recv(1), b"", "end of the session")
        with Secure(server, version=version) as client:
            equal(client.option(ABORT), [(ACK, b"")], "ABORT")
            equal(client.socket.recv(1), b"", "end of the session")


@test("C41 many requests at once, answers in any order")
def many_requests(server):
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        with Secure(server, version=version) as client:
            client.open(b"disk", STRUCTURED_FORM)
            wanted = {}
            for number in range(100):
                offset = number * 4999 % (3 * M)
                wanted[client.request(READ, offset, 5000 + number)] = (offset, 5000 + number)
            while wanted:
                answer = client.answer()
                offset, length = wanted.pop(answer["cookie"])
                equal(answer["error"], 0, "error")
                equal(answer["data"], pattern(offset, length), "data")


@test("a client that sends much before it reads an answer does not hold up itself")
def refused_writes(server):
    with Secure(server) as client:
        client.open(b"disk", STRUCTURED_FORM)
        cookies = [client.request(READ, 0, M) for _ in range(4)]
        client.socket.setblocking(True)
        cookies.append(client.request(WRITE, 0, 8 * M, payload=bytes(8 * M)))
        answers = {}
        for _ in cookies:
            answer = client.answer()
            answers[answer["cookie"]] = answer
        equal([answers[cookie]["error"] for cookie in cookies], [0, 0, 0, 0, EPERM], "errors")


@test("C82 a client whose certificate and name are right is let in, and the log names it")
def right_client(server):
    before = len(server.log())
    with Secure(server) as client:
        client.open(b"disk")
    wait_log(server, before, r"TLS1.3 with AES-256-GCM, client .*CN=backup")


@test("C82 no certificate: refused")
def no_certificate(server):
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        refused(server, "TLS handshake failed.*needs a certificate", None, version)


@test("C82 a certificate of another authority, expired, withdrawn, or a server's: refused")
def wrong_certificate(server):
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        for identity, reason in (("forged", "CN=backup.*issuer is unknown"),
                                 ("expired", "CN=backup.*expired"),
                                 ("withdrawn", "CN=withdrawn.*revoked"),
                                 ("misused", "CN=backup.*intended purpose")):
            refused(server, reason, identity, version)


@test("C82 a name that is not in allowed-clients: refused, also one of two common names")
def wrong_name(server):
    refused(server, "CN=stranger.*not in allowed-clients", "stranger")
    for identity in ("twofold", "twofold-too"):
        refused(server, "CN=stranger.*CN=backup.*not in allowed-clients|"
                "CN=backup.*CN=stranger.*not in allowed-clients", identity)


@test("C82 a second common name counts, however long it is: refused")
def long_name(server):
    for identity in ("longer", "longer-too"):
        refused(server, "not in allowed-clients", identity)


@test("C82 allowed-clients takes whole names; an empty one lets nobody in, none everybody")
def names():
    for number, (text, admits) in enumerate((
            ("CN=stranger,O=Example Ltd\n", ("stranger",)),
            ("# CN=backup\n\n  stranger  \r\nback\nbackup2\n", ("stranger",)),
            ("CN=stranger\n", ()), ("", ()), (None, ("backup", "stranger", "withdrawn", "masked")))):
        files = {} if text is None else {"allowed_clients": text}
        server = Server("--tls-certs", PKI.server("names-%d" % number, **files), DISK)
        try:
            for identity in ("backup", "stranger", "withdrawn", "masked"):
                if identity in admits:
                    with Secure(server, identity) as client:
                        client.open(b"disk")
                else:
                    refused(server, "not in allowed-clients", identity)
        finally:
            server.stop()


@test("C6 a client that is slow in the TLS handshake is disconnected in time")
def slow_handshake():
    server = Server("--handshake-timeout", "5", "--tls-psk", PKI.keys, DISK)
    try:
        clients = [Client(server) for _ in range(3)]
        for client in clients:
            equal(client.option(STARTTLS), [(ACK, b"")], "STARTTLS")
        clients[1].send(hello_of(context())[:50])
        for client in clients[:2]:
            client.expect_end()
        deadline = time.monotonic() + PATIENCE
        try:
            for byte in hello_of(context()) * 100:
                clients[2].send(bytes([byte]))
                time.sleep(0.05)
                expect(time.monotonic() < deadline, "bytes one by one are taken for ever")
        except (BrokenPipeError, ConnectionResetError):
            pass
        equal(server.log().count("handshake not finished in time"), 3, "lines in the log")
    finally:
        for client in clients:
            client.socket.close()
        server.stop()


@test("a client that reads nothing is disconnected after --stall-timeout, with a line in the log")
def stalled():
    server = Server("--stall-timeout", "1", "--tls-certs", PKI.path("server"), DISK)
    try:
        with Secure(server) as slow, Secure(server) as idle:
            idle.open(b"disk")
            slow.open(b"disk")
            slow.send(b"".join(slow.packed(READ, n * 4096, 64 * 1024) for n in range(64)))
            wait_log(server, 0, "took too long to read a reply")
            equal(idle.read(0, 512), pattern(0, 512), "data for one that was only idle")
        equal(server.log().count("took too long"), 1, server.log())
    finally:
        server.stop()


def handshake_until(server, count):
    """A client that sends so many bytes of its side of TLS, then is gone. True if it had more."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    option = struct.pack(">QII", IHAVEOPT, LIST, 0)
    with Client(server) as client:
        equal(client.option(STARTTLS), [(ACK, b"")], "STARTTLS")
        finished = False
        while True:
            try:
                if not finished:
                    session.do_handshake()
                    finished = True
                    session.write(option)
            except ssl.SSLWantReadError:
                pass
            data = outgoing.read()
            client.send(data[:count])
            if len(data) >= count:
                return True
            count -= len(data)
            if finished:
                return False
            incoming.write(client.socket.recv(65536))


@test("clients that die at any place of the TLS handshake leave nothing behind")
def deaths():
    server = Server("--tls-certs", PKI.path("server"), DISK)
    try:
        count = 0
        while handshake_until(server, count):
            count += 13
        expect(count > 500, "the handshake is longer than %d bytes" % count)
        with Secure(server) as client:
            client.open(b"disk")
            equal(client.read(0, 512), pattern(0, 512), "data of a good client")
    finally:
        server.stop()


def send_last(plain, data, wait):
    """Send data past TLS, and leave; wait for the server to do so first."""
    try:
        plain.sendall(data)
        if wait:
            plain.shutdown(socket.SHUT_WR)
            while plain.recv(65536):
                pass
    except ConnectionError:
        pass
    plain.close()


@test("clients that die in the middle of transmission, and garbage there, are logged once")
def deaths_later():
    server = Server("--tls-certs", PKI.path("server"), DISK)
    wrong = (b"\x17\x03\x03\x00\x20" + b"x" * 32, b"\x16\x03\x03\x00\x04\x01\x00\x00\x00",
             b"garbage" * 100, b"\x15\x03\x03\x00\x02\x02\x00", b"\x17\x03\x03\xff\xff" * 9000)
    try:
        for reads in (0, 20):
            for last in (b"", b"\x17", b"\x17\x03\x03\x40\x00half a record") + wrong:
                with Secure(server) as client:
                    client.open(b"disk", STRUCTURED_FORM)
                    for _ in range(reads):
                        client.request(READ, 0, M)
                    plain = socket.socket(fileno=client.socket.detach())
                    plain.settimeout(PATIENCE)
                    send_last(plain, last, not reads)
        with Secure(server) as client:
            client.open(b"disk")
            equal(client.read(0, 512), pattern(0, 512), "data of a good client")
        expect(len(wrong) <= server.log().count("TLS failed") <= 2 * len(wrong),
               "each failure has a line, what a client that left has cut off has none")
    finally:
        server.stop()


@test("C50 SIGTERM ends the server while clients are in all stages of TLS")
def stop():
    server = Server("--tls-certs", PKI.path("server"), DISK)
    waiting = Client(server)
    waiting.option(STARTTLS)
    negotiating = Secure(server)
    transmitting = Secure(server).open(b"disk")
    try:
        server.process.send_signal(nbdclient.signal.SIGTERM)
        wait_log(server, 0, "ending")
        wait_for(lambda: not os.path.exists(server.path), "the socket is left behind")
        equal(transmitting.error(READ, 0, 512), ESHUTDOWN, "READ")
        equal(negotiating.option_error(LIST), SHUTDOWN, "LIST")
    finally:
        server.stop()
        for client in (waiting, negotiating, transmitting):
            client.socket.close()


@test("TLS on --stdio")
def stdio():
    mine, its = socket.socketpair()
    arguments = command("--stdio", "--tls-certs", PKI.path("server"), DISK)
    with subprocess.Popen(arguments, stdin=its, stdout=its,
                          stderr=subprocess.DEVNULL) as process:
        its.close()
        client = Client.__new__(Client)
        client.socket, client.form, client.contexts, client.cookie = mine, SIMPLE_FORM, {}, 1
        mine.settimeout(PATIENCE)
        equal(client.receive(18)[:8], b"NBDMAGIC", "greeting")
        client.send(struct.pack(">I", 3))
        equal(client.option(STARTTLS), [(ACK, b"")], "STARTTLS")
        client.socket = context().wrap_socket(mine, server_hostname="localhost")
        client.open(b"disk")
        equal(client.read(0, 512), pattern(0, 512), "data")
        client.request(DISC)
        equal(process.wait(20), 0, "exit status")
        client.socket.close()


@test("without --tls-certs and --tls-psk, STARTTLS gets ERR_POLICY")
def no_tls():
    server = Server(DISK)
    try:
        with Client(server) as client:
            equal(client.option_error(STARTTLS), POLICY, "STARTTLS")
            client.open(b"disk")
    finally:
        server.stop()


def refuses(*arguments, status=1):
    """The server must not start; what it says."""
    result = subprocess.run(command("--stdio", *arguments, DISK), check=False,
                            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                            stderr=subprocess.PIPE, timeout=60)
    text = result.stderr.decode()
    equal(result.returncode, status, "exit status with %r, which said %s" % (arguments, text))
    expect("Sanitizer" not in text, text)
    return text


@test("addresses other than loopback ones are allowed with TLS, and only then")
def any_address():
    server = Server("--listen", "0.0.0.0:0", "--tls-psk", PKI.keys, DISK)
    server.stop()
    result = subprocess.run(command("--listen", "0.0.0.0:0", DISK), check=False,
                            stderr=subprocess.PIPE, timeout=60)
    equal(result.returncode, 1, "exit status without TLS")
    expect(b"--tls-certs" in result.stderr, "the message names a way out")


@test("wrong certificates end the start, with the file's name")
def wrong_files():
    good = PKI.path("server")
    for number, (name, change, words) in enumerate((
            ("ca-cert.pem", os.unlink, "No such file"),
            ("server-cert.pem", os.unlink, "No such file"),
            ("server-key.pem", os.unlink, "No such file"),
            ("server-key.pem", lambda path: os.chmod(path, 0o644), "can read"),
            ("server-cert.pem", lambda path: os.chmod(path, 0o666), "can write"),
            ("ca-cert.pem", lambda path: open(path, "w").close(), "ca-cert.pem"),
            ("server-key.pem", lambda path: shutil.copy(
                PKI.path("backup", "client-key.pem"), path), "server-{cert,key}.pem"),
            ("ca-crl.pem", lambda path: shutil.copy(
                PKI.path("server", "ca-cert.pem"), path), "ca-crl.pem"),
            ("allowed-clients", os.mkdir, "not a regular file"),
            ("allowed-clients", lambda path: open(path, "wb").write(b"a\0b"), "not a text"))):
        directory = PKI.path("wrong-%d" % number)
        shutil.copytree(good, directory)
        change(os.path.join(directory, name))
        said = refuses("--tls-certs", directory)
        expect(words in said and name.split("-")[0] in said, "%s: %s" % (name, said))
    refuses("--tls-certs", "/nonexistent")
    refuses("--tls-certs", good, "--tls-psk", PKI.keys, status=2)


@test("wrong files of keys end the start, with the line's number and without the key")
def wrong_keys():
    secret = "12" * 31
    for number, (text, mode, words) in enumerate((
            ("alice:" + secret + "\n", 0o604, "can read"),
            ("alice:" + secret + "\n", 0o602, "can write"),
            ("", 0o600, "no user"), ("\n\n", 0o600, "no user"),
            ("\nalice\n", 0o600, "line 2"), (":" + secret + "\n", 0o600, "line 1"),
            ("alice:" + secret + "x\n", 0o600, "not hexadecimal"),
            ("alice:\n", 0o600, "line 1"), ("alice:1234\n", 0o600, "less than 16 bytes"),
            ("bob:%s\nalice:%s\nbob:%s\n" % (secret, secret, secret), 0o600, "line 3"),
            ("#00:" + secret + "\n", 0o600, "line 1"),
            ("alice:" + secret + "\n\0", 0o600, "not a text"))):
        path = PKI.write("wrong-keys-%d" % number, text, mode)
        said = refuses("--tls-psk", path)
        expect(words in said and path in said, "%r: %s" % (text, said))
        expect(secret[:8] not in said, "a key is shown: " + said)
    refuses("--tls-psk", "/nonexistent")


def main():
    global PKI
    tap = Tap()
    if not shutil.which("certtool"):
        tap.skip("TLS", "certtool is not installed (gnutls-bin)")
        return tap.finish()
    PKI = Pki()
    directory = PKI.server("common", allowed_clients="# who makes backups\nbackup\nwithdrawn\n")
    PKI.withdraw(directory, "withdrawn")
    server = Server("--tls-certs", directory, DISK, listen=True)
    try:
        for title, function in TESTS:
            tap.run(title, function, *([server] if function.__code__.co_argcount else []))
        tap.run("the server has ended well after all of them", server.stop)
    finally:
        PKI.remove()
    return tap.finish()


if __name__ == "__main__":
    sys.exit(main())
