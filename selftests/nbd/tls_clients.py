#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""This test will let the clients that people use work with fleeced over TLS (TAP).

A client that is not installed is a skip that names its package; $FLEECE_ROOT is the
root of a release whose clients are meant, see tools.py.
"""
import os
import re
import shutil
import sys
import tempfile
import time

from nbdclient import PATIENCE, Server, Tap, content, equal, expect, pattern
from tls_pki import Pki, USER
from tools import run, run_tests, test

M = 1 << 20
SIZE = 16 * M
DISK = "disk=mem:size=16M,cluster=64K,cp=monday/1M-2M,here=tuesday"


class World:
    """A server for each way to prove who one is, and a directory for results."""

    def __init__(self):
        self.pki = Pki()
        allowed = self.pki.server("common", allowed_clients="backup\n")
        self.x509 = Server("--tls-certs", allowed, DISK, listen=True)
        self.psk = Server("--tls-psk", self.pki.keys, DISK, listen=True)
        self.directory = tempfile.mkdtemp(prefix="fleeced-tls-")

    def certificate_uri(self, client="backup"):
        """The export over TCP, with a certificate."""
        return "nbds://127.0.0.1:%d/disk?tls-certificates=%s" % (
            self.x509.port(), self.pki.path(client))

    def key_uri(self, user=USER, keys=None):
        """The export over the Unix socket, with a shared key."""
        return "nbds+unix://%s@/disk?socket=%s&tls-psk-file=%s" % (
            user, self.psk.path, keys or self.pki.keys)

    def certificate_image(self, client="backup"):
        """Options of qemu for the same."""
        return ("--object", "tls-creds-x509,id=tls0,endpoint=client,dir=" + self.pki.path(client),
                "--image-opts", "driver=nbd,server.type=inet,server.host=127.0.0.1,server.port=%d,"
                "export=disk,tls-creds=tls0" % self.x509.port())

    def key_image(self, user=USER, directory=None):
        """Options of qemu for the same."""
        return ("--object", "tls-creds-psk,id=tls0,endpoint=client,dir=%s,username=%s" % (
            directory or self.pki.path("psk"), user), "--image-opts",
            "driver=nbd,server.type=unix,server.path=%s,export=disk,tls-creds=tls0"
            % self.psk.path)

    def file(self, name):
        """Path for a result."""
        return os.path.join(self.directory, name)

    def close(self):
        """End the servers and remove the results."""
        shutil.rmtree(self.directory)
        self.pki.remove()
        try:
            self.x509.stop()
        finally:
            self.psk.stop()


def expect_log(server, start, expression):
    """The log says something, after what it said before, and maybe after the client's end."""
    deadline = time.monotonic() + PATIENCE
    while not re.search(expression, server.log()[start:]):
        expect(time.monotonic() < deadline, "the log should say %r: %s" % (
            expression, server.log()[start:]))
        time.sleep(0.01)


@test("nbdinfo with a certificate, and with a key", "libnbd-bin", "nbdinfo")
def nbdinfo(world):
    for server, uri in ((world.x509, world.certificate_uri()), (world.psk, world.key_uri())):
        start = len(server.log())
        equal(run("nbdinfo", "--size", uri).strip(), str(SIZE), "size")
        # Not the slow one, which clients of version 1.3 with a key like best.
        expect_log(server, start, "TLS1.3 with AES-[0-9]+-GCM, client")
        run("nbdinfo", "--is", "tls", uri)
        expect(" with TLS" in run("nbdinfo", uri), "nbdinfo says that it uses TLS")
        expect("1048576     1048576    1  dirty" in run(
            "nbdinfo", "--map=qemu:dirty-bitmap:monday", uri), "map")


@test("nbdcopy with a certificate, and with a key, several connections", "libnbd-bin", "nbdcopy")
def nbdcopy(world):
    for number, uri in enumerate((world.certificate_uri(), world.key_uri())):
        target = world.file("nbdcopy-%d" % number)
        run("nbdcopy", "--connections=4", uri, target)
        expect(content(target) == pattern(0, SIZE), "the copy is equal")


@test("qemu-img convert with a certificate, and with a key", "qemu-utils", "qemu-img")
def qemu_img(world):
    for number, image in enumerate((world.certificate_image(), world.key_image())):
        target = world.file("qemu-%d" % number)
        run("qemu-img", "convert", "-O", "raw", *image, target)
        expect(content(target) == pattern(0, SIZE), "the copy is equal")


@test("nbdkit's nbd plugin with a certificate", "nbdkit", "nbdkit", "nbdinfo")
def nbdkit(world):
    size = run("nbdkit", "-U", "-", "nbd", "hostname=127.0.0.1",
               "port=%d" % world.x509.port(), "export=disk", "tls=require",
               "tls-certificates=" + world.pki.path("backup"), "--run",
               'nbdinfo --size "nbd+unix:///?socket=$unixsocket"')
    equal(size.strip(), str(SIZE), "size")


@test("nbdinfo with a name that is not allowed, or another authority: refused",
      "libnbd-bin", "nbdinfo")
def wrong_certificate(world):
    for client, reason in (("stranger", "CN=stranger.*not in allowed-clients"),
                           ("forged", "issuer is unknown|needs a certificate"), ("expired", "expired")):
        start = len(world.x509.log())
        run("nbdinfo", "--size", world.certificate_uri(client), status=1)
        expect_log(world.x509, start, "TLS handshake failed: .*" + reason)


@test("nbdinfo with a wrong key, and as a user who has none: refused alike",
      "libnbd-bin", "nbdinfo")
def wrong_key(world):
    keys = world.pki.write("wrong/keys.psk", "alice:%s\nmallory:%s\n" % ("cd" * 32, "cd" * 32),
                           0o600)
    for user, reason in (("alice", "alice: wrong key"), ("mallory", "mallory: unknown user")):
        start = len(world.psk.log())
        run("nbdinfo", "--size", world.key_uri(user, keys), status=1)
        expect_log(world.psk, start, "TLS handshake failed: " + reason)


@test("qemu-img with a wrong key, or a wrong certificate: refused", "qemu-utils", "qemu-img")
def wrong_qemu(world):
    world.pki.write("wrong-qemu/keys.psk", "alice:%s\n" % ("cd" * 32), 0o600)
    run("qemu-img", "info", *world.key_image("alice", world.pki.path("wrong-qemu")), status=1)
    run("qemu-img", "info", *world.certificate_image("stranger"), status=1)


@test("clients with a key where certificates are wanted, and the reverse: refused",
      "libnbd-bin", "nbdinfo")
def wrong_kind(world):
    for server, reason, uri in (
            (world.x509, "does it use certificates|the client left", "nbds+unix://%s@/disk?socket=%s&tls-psk-file=%s" % (
                USER, world.x509.path, world.pki.keys)),
            (world.psk, "does it use certificates", "nbds://127.0.0.1:%d/disk?tls-certificates=%s" % (
                world.psk.port(), world.pki.path("backup")))):
        start = len(server.log())
        run("nbdinfo", "--size", uri, status=1)
        expect_log(server, start, "TLS handshake failed.*(%s)" % reason)


@test("a client without TLS is told that it is needed", "libnbd-bin", "nbdinfo")
def in_the_clear(world):
    for server in (world.x509, world.psk):
        run("nbdinfo", "--size", "nbd+unix:///disk?socket=" + server.path, status=1)


@test("a client that insists on TLS does not fall back to a server without", "libnbd-bin",
      "nbdinfo")
def no_fall_back(world):
    server = Server(DISK)
    try:
        run("nbdinfo", "--size", "nbds+unix://alice@/disk?socket=%s&tls-psk-file=%s" % (
            server.path, world.pki.keys), status=1)
    finally:
        server.stop()


def main():
    tap = Tap()
    if not shutil.which("certtool"):
        tap.skip("TLS", "certtool is not installed (gnutls-bin)")
        return tap.finish()
    world = World()
    try:
        run_tests(tap, world)
    finally:
        tap.run("the servers have ended well", world.close)
    return tap.finish()


if __name__ == "__main__":
    sys.exit(main())
