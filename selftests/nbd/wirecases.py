# SPDX-License-Identifier: GPL-2.0-only
"""What the tests on the wire serve, and the lists that they are put into."""
import time

from nbdclient import EPERM, PATIENCE, READ, expect

K, M, G, T = 1 << 10, 1 << 20, 1 << 30, 1 << 40
SIZE = 8 * M
DISK = ("disk=mem:size=8M,cluster=64K,cp=one/64K-128K/1M-2M,here=two,since=one,"
        "denied=4M-5M,bad=6M-6208K")
BIG = "big=mem:size=20T,cp=five/1T-2T,stripes=fine/512"
PLAIN = "plain=mem:size=1000000,plain"
SEED = 20240807
FUZZ_SECONDS = 6

ALL_CONTEXTS = ["base:allocation", "qemu:dirty-bitmap:one", "qemu:dirty-bitmap:two",
                "fleece:clean:one", "fleece:clean:two", "fleece:access"]
TESTS = []
OWN = []


def test(title):
    """Register a test of the common server."""
    def register(function):
        TESTS.append((title, function))
        return function
    return register


def own(title):
    """Register a test that starts its own servers."""
    def register(function):
        OWN.append((title, function))
        return function
    return register


def wait_released(client, offset):
    """A release follows the reply that it is for: wait until it is there."""
    deadline = time.monotonic() + PATIENCE
    while client.error(READ, offset, 1) != EPERM:
        expect(time.monotonic() < deadline, "what was delivered is not released")
        time.sleep(0.01)
