#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""This test will check each rule of the protocol on the wire (TAP).

The titles begin with the number of the conformance item, which are listed in
the project's notes on NBD. The server runs under sanitizers, with snapshots in
memory.
"""
import contextlib
import fcntl
import os
import random
import re
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

import nbdclient
import wire_content  # noqa: F401  puts its tests into the lists
import wire_endurance  # noqa: F401
import wire_extended  # noqa: F401
from nbdclient import *  # noqa: F403  the protocol's own names
from wirecases import *  # noqa: F403  what is served, and the lists of tests

# Greeting

@test("C1 C2 the greeting is fixed newstyle with flags 3")
def greeting(server):
    with Client(server) as client:
        equal(client.greeting, b"NBDMAGICIHAVEOPT\0\3", "greeting")


@test("C3 unknown client flags: disconnected")
def unknown_client_flags(server):
    for flags in (0x23, 4, 0x80000000, 0xffffffff):
        with Client(server, flags=flags) as client:
            client.expect_end()


@test("C4 a client without fixed newstyle can use EXPORT_NAME, and nothing else")
def not_fixed_newstyle(server):
    with Client(server, flags=0) as client:
        client.send_option(EXPORT_NAME, b"plain")
        equal(client.receive(134)[:8], struct.pack(">Q", 1000000), "size")
        equal(client.read(0, 512), pattern(0, 512), "data")
    for option in (LIST, GO, STRUCTURED, STARTTLS):
        with Client(server, flags=2) as client:
            client.send_option(option)
            client.expect_end()


@test("C5 the same over TCP")
def over_tcp(server):
    with Client(server, tcp=True) as client:
        client.open(b"disk")
        equal(client.read(4096, 70000), pattern(4096, 70000), "data")


@test("C6 the number of options is limited, and not by few")
def many_options(server):
    with Client(server) as client:
        for _ in range(200):
            client.option(LIST)
        try:
            for _ in range(200):
                client.option(LIST)
        except (EOFError, BrokenPipeError):
            return
        raise Failed("400 options were accepted")


# Options

@test("C8 wrong magic of an option: disconnected")
def wrong_option_magic(server):
    with Client(server) as client:
        client.send(struct.pack(">QII", IHAVEOPT ^ 1, LIST, 0))
        client.expect_end()


@test("C9 C10 unknown options get ERR_UNSUP and leave the next one in step")
def unknown_options(server):
    with Client(server) as client:
        for option in (0, 12, 0x7ffffff0, 0xffffffff):
            for length in (0, 1, 100, 65536):
                equal(client.option_error(option, b"\xff" * length), UNSUP, "reply")
        equal(client.option(LIST)[-1][0], ACK, "LIST afterwards")


@test("C11 options of more than 64 KiB are skipped, of more than 32 MiB end the connection")
def oversized_options(server):
    with Client(server) as client:
        for option in (0x7ffffff0, LIST, GO, SET_META, STRUCTURED):
            equal(client.option_error(option, bytes(65537)), TOO_BIG, "reply")
        equal(client.option_error(77, bytes(32 * M)), TOO_BIG, "reply to 32 MiB")
        equal(client.option(LIST)[-1][0], ACK, "LIST afterwards")
        client.send_option(77, b"", length=32 * M + 1)
        client.expect_end()
    with Client(server) as client:
        client.send_option(EXPORT_NAME, b"x" * 70, length=0xffffffff)
        client.expect_end()


@test("C12 nothing is replied before an option's data was read")
def data_before_reply(server):
    for option in (0x7ffffff0, LIST, STARTTLS, SET_META):
        with Client(server) as client:
            client.send_option(option, bytes(50), length=100)
            client.socket.settimeout(0.1)
            try:
                client.receive(1)
            except socket.timeout:
                pass
            else:
                raise Failed("an early reply")
            client.socket.settimeout(PATIENCE)
            client.send(bytes(50))
            expect(client.reply(option)[0] >> 31, "an error")


@test("C13 C14 names with NUL, bad UTF-8 or more than 4096 bytes: ERR_INVALID with text "
      "(CVE-2017-15118)")
def bad_names(server):
    with Client(server) as client:
        client.negotiate(STRUCTURED_FORM)
        for name in (b"a\0b", b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"x" * 4097):
            for option in (INFO, GO):
                equal(client.option_error(option, go_data(name)), INVALID, "INFO or GO")
            for option in (LIST_META, SET_META):
                equal(client.option_error(option, meta_data(name, ())), INVALID, "name")
                equal(client.option_error(option, meta_data(b"disk", (name,))), INVALID, "query")
        equal(client.option_error(GO, go_data(b"x" * 4096)), UNKNOWN, "a long name")
    with Client(server) as client:
        client.send_option(EXPORT_NAME, b"disk\0")
        client.expect_end()


@test("C14 a client's text cannot forge log lines")
def log_injection(server):
    with Client(server) as client:
        client.send_option(EXPORT_NAME, b"x\nfleeced: error: forged \x1b[31m")
        client.expect_end()
    deadline = time.monotonic() + PATIENCE
    while "?fleeced:?error:?forged" not in server.log():
        expect(time.monotonic() < deadline, "the refusal is logged: " + server.log())
        time.sleep(0.01)
    expect("\x1b" not in server.log(), "control characters in the log")


@test("C15 a second STRUCTURED_REPLY: ERR_INVALID")
def twice_structured(server):
    with Client(server) as client:
        client.negotiate(STRUCTURED_FORM)
        equal(client.option_error(STRUCTURED), INVALID, "reply")


@test("C17 a client that keeps asking for what is not there is not disconnected")
def stubborn(server):
    with Client(server) as client:
        for _ in range(30):
            equal(client.option_error(GO, go_data(b"nothing")), UNKNOWN, "reply")
        client.go(b"disk")


@test("C20 EXPORT_NAME: 134 bytes, or 10 without zeroes; the empty name is the default")
def export_name(server):
    for flags, length in ((1, 134), (3, 10), (0, 134), (2, 10)):
        for name in (b"", b"disk"):
            with Client(server, flags=flags) as client:
                client.send_option(EXPORT_NAME, name)
                data = client.receive(length)
                equal(struct.unpack(">Q", data[:8])[0], SIZE, "size")
                equal(data[10:], bytes(length - 10), "padding")
                equal(client.read(512, 512), pattern(512, 512), "data right after it")


@test("C20 EXPORT_NAME of an unknown export: disconnected")
def export_name_unknown(server):
    for name in (b"nothing", b"disk ", b"x" * 4096, b"x" * 60000):
        with Client(server) as client:
            client.send_option(EXPORT_NAME, name)
            client.expect_end()


@test("C21 ABORT: ACK, whatever its data, then the end")
def abort(server):
    for data in (b"", b"x", bytes(65537)):
        with Client(server) as client:
            client.send_option(ABORT, data)
            equal(client.reply(ABORT), (ACK, b""), "reply")
            client.expect_end()


@test("C22 LIST: all exports with descriptions; with data ERR_INVALID")
def list_exports(server):
    with Client(server) as client:
        replies = client.option(LIST)
        equal(replies.pop(), (ACK, b""), "end")
        found = {}
        for kind, data in replies:
            equal(kind, SERVER, "reply")
            length, = struct.unpack(">I", data[:4])
            found[data[4:4 + length].decode()] = data[4 + length:].decode()
        equal(list(found), ["disk", "disk@one", "disk@two", "disk+release", "big", "big@five",
                            "big@fine", "big+release", "plain"], "names")
        expect("checkpoint one 00000000-0000-4000-8000-000000000000" in found["disk"]
               and "000000000001 (this moment)" in found["disk"], "uuids in " + found["disk"])
        expect("000000000000" not in found["disk@two"], "uuids in " + found["disk@two"])
        equal(client.option_error(LIST, b"x"), INVALID, "LIST with data")


@test("C23 PEEK_EXPORT: ERR_UNSUP")
def peek(server):
    with Client(server) as client:
        equal(client.option_error(PEEK), UNSUP, "PEEK_EXPORT")
        equal(client.option_error(PEEK, b"disk"), UNSUP, "PEEK_EXPORT with a name")


@test("C24 STARTTLS: refused, with data ERR_INVALID, and the connection goes on in the clear")
def starttls(server):
    with Client(server) as client:
        expect(client.option_error(STARTTLS) in (UNSUP, POLICY), "STARTTLS")
        equal(client.option_error(STARTTLS, b"x"), INVALID, "STARTTLS with data")
        client.open(b"disk")


@test("C25 INFO and GO with lengths that do not fit: ERR_INVALID, in step "
      "(CVE-2022-26495, CVE-2022-26496)")
def go_lengths(server):
    good = go_data(b"disk", (1, 2))
    with Client(server) as client:
        for option in (INFO, GO):
            for data in [good[:n] for n in range(len(good))] + [good + b"x"] + [
                    struct.pack(">I", n) + good[4:]
                    for n in (5, 100, 4096, 65535, 0x7fffffff, 0xfffffffc, 0xffffffff)] + [
                    go_data(b"disk")[:-2] + b"\xff\xff"]:
                equal(client.option_error(option, data), INVALID, "reply to %r" % data)
        client.go(b"disk")


@test("C25 INFO may be repeated, changes nothing, and says the same as GO (CVE-2019-14851)")
def info_then_go(server):
    with Client(server) as client:
        client.option_error(INFO, go_data(b"nothing"))
        first = client.go(b"disk", INFO, (1, 2, 3))
        client.go(b"plain", INFO)
        equal(client.go(b"disk", INFO, (3, 2, 1, 1)), first, "second INFO")
        equal(client.go(b"disk", GO, (1, 2, 3)), first, "GO")
        equal(struct.unpack(">Q", first[0][:8])[0], SIZE, "size")
        equal(client.read(0, 8), pattern(0, 8), "data right after it")


@test("C25 unknown information requests are ignored; an unknown export gets ERR_UNKNOWN alone")
def info_requests(server):
    with Client(server) as client:
        equal(set(client.go(b"disk", INFO, (4, 77, 0xffff, 0x8000))), {0}, "items")
        equal(client.option_error(INFO, go_data(b"nothing", (0, 1, 2))), UNKNOWN, "INFO")
        equal(client.option_error(GO, go_data(b"disk@three")), UNKNOWN, "GO")


@test("C26 the baseline: a client that knows no more gets all it needs")
def baseline(server):
    with Client(server, flags=1) as client:
        equal(client.option(LIST)[-1], (ACK, b""), "LIST")
        equal(client.option_error(0x7777), UNSUP, "unknown option")
        equal(client.go(b"disk", INFO), client.go(b"disk", GO), "INFO and GO")
        equal(client.read(512, 512), pattern(512, 512), "READ")
        equal(client.error(WRITE, 0, 512, 0, bytes(512)), EPERM, "WRITE")
        client.request(DISC)
        client.expect_end()


@test("C27 structured replies with data: ERR_INVALID; without them READ is answered simply")
def structured_with_data(server):
    with Client(server) as client:
        equal(client.option_error(STRUCTURED, b"x"), INVALID, "reply")
        client.go(b"disk")
        answer = client.ask(READ, 0, 512)
        expect(answer["simple"] and answer["data"] == pattern(0, 512), "simple reply")
        equal(client.error(READ, 0, 512, DF), EINVAL, "DF without structured replies")
        equal(client.error(STATUS, 0, 512), EINVAL, "BLOCK_STATUS without contexts")


@test("C28 LIST_META_CONTEXT: none, exact, and namespace queries; ids are 0")
def list_meta(server):
    cases = (
        ((), ALL_CONTEXTS),
        (("base:",), ["base:allocation"]),
        (("base:allocation",), ["base:allocation"]),
        (("qemu:",), ["qemu:dirty-bitmap:one", "qemu:dirty-bitmap:two"]),
        (("qemu:dirty-bitmap:",), ["qemu:dirty-bitmap:one", "qemu:dirty-bitmap:two"]),
        (("qemu:dirty-bitmap:two",), ["qemu:dirty-bitmap:two"]),
        (("fleece:clean:", "base:"), ["base:allocation", "fleece:clean:one", "fleece:clean:two"]),
        (("fleece:", "fleece:access"), ["fleece:clean:one", "fleece:clean:two",
                                        "fleece:access"]),
        (("x-other:", "qemu:allocation-depth", "base", "", ":", "qemu:dirty-bitmap:on",
          "qemu:dirty-bitmap:ones", "base:allocation:"), []),
    )
    with Client(server) as client:
        for form in (SIMPLE_FORM, STRUCTURED_FORM):
            client.negotiate(form)
            for queries, wanted in cases:
                equal(client.meta(LIST_META, b"disk", *queries), [(name, 0) for name in wanted],
                      "contexts for %r" % (queries,))
        equal([n for n, _ in client.meta(LIST_META, b"disk@two")],
              ["base:allocation", "qemu:dirty-bitmap:two", "fleece:clean:two", "fleece:access"],
              "contexts of NAME@CHECKPOINT")
        equal(client.meta(LIST_META, b"plain"), [("base:allocation", 0)], "contexts of a plain one")
        equal(client.option_error(LIST_META, meta_data(b"nothing", ())), UNKNOWN, "unknown export")


@test("C28 C29 malformed queries: ERR_INVALID, in step")
def meta_lengths(server):
    good = meta_data(b"disk", ("base:allocation", "qemu:"))
    with Client(server) as client:
        client.negotiate(STRUCTURED_FORM)
        for option in (LIST_META, SET_META):
            for data in [good[:n] for n in range(len(good))] + [good + b"\0"] + [
                    good[:8] + struct.pack(">I", n) + good[12:] for n in (1, 3, 0xffffffff)] + [
                    good[:12] + struct.pack(">I", n) + good[16:]
                    for n in (0, 14, 16, 4097, 0xffffffff)]:
                equal(client.option_error(option, data), INVALID, "reply to %r" % data)
        equal(len(client.meta(SET_META, b"disk", "base:allocation")), 1, "contexts afterwards")


@test("C29 SET_META_CONTEXT needs structured replies")
def set_meta_first(server):
    with Client(server) as client:
        equal(client.option_error(SET_META, meta_data(b"disk", ("base:allocation",))), INVALID,
              "reply")


@test("C29 SET_META_CONTEXT: exact names only, each once, with unique ids")
def set_meta(server):
    with Client(server) as client:
        client.negotiate(STRUCTURED_FORM)
        equal(client.meta(SET_META, b"disk"), [], "no query selects none")
        equal(client.meta(SET_META, b"disk", "base:", "qemu:", "qemu:dirty-bitmap:", "fleece:", ""),
              [], "wildcards select none")
        chosen = client.meta(SET_META, b"disk", "fleece:access", "base:allocation",
                             "qemu:dirty-bitmap:nothing", "fleece:access", "base:allocation")
        equal([n for n, _ in chosen], ["fleece:access", "base:allocation"], "selected")
        equal(len({i for _, i in chosen}), 2, "ids")
        client.go(b"disk")
        equal(set(client.status(0, SIZE)), {"fleece:access", "base:allocation"}, "answered")


@test("C29 a selection is replaced, also by one that fails")
def set_meta_replaced(server):
    failing = (
        (INVALID, b"\0"),
        (UNKNOWN, meta_data(b"nothing", ("base:allocation",))),
        (INVALID, meta_data(b"disk", ("base:allocation",)) + b"x"),
        (TOO_BIG, bytes(65537)),
        (ACK, meta_data(b"disk", ())),
    )
    for wanted, data in failing:
        with Client(server) as client:
            client.negotiate(STRUCTURED_FORM)
            equal(len(client.meta(SET_META, b"disk", "base:allocation")), 1, "selected")
            equal(client.option_error(SET_META, data) if wanted != ACK
                  else client.option(SET_META, data)[0][0], wanted, "second selection")
            client.go(b"disk")
            equal(client.error(STATUS, 0, 512), EINVAL, "BLOCK_STATUS")


@test("C29 too many contexts: ERR_TOO_BIG and none")
def set_meta_many(server):
    extra = Server("many=mem:size=1M" + "".join(",cp=c%d" % n for n in range(40)))
    try:
        with Client(extra) as client:
            client.negotiate(STRUCTURED_FORM)
            names = ["qemu:dirty-bitmap:c%d" % n for n in range(33)]
            equal(client.option(SET_META, meta_data(b"many", names))[0][0], TOO_BIG, "33 contexts")
            equal(len(client.meta(SET_META, b"many", *names[:32])), 32, "32 contexts")
            client.go(b"many")
            equal(len(client.status(0, M)), 32, "answered")
    finally:
        extra.stop()


@test("C28 C29 more than 1024 queries: ERR_TOO_BIG; unknown contexts share a line of the log")
def meta_queries(server):
    with Client(server) as client:
        client.negotiate(STRUCTURED_FORM)
        for option in (LIST_META, SET_META):
            equal(client.option_error(option, meta_data(b"disk", ["x:"] * 1025)), TOO_BIG,
                  "1025 queries")
        before = len(server.log())
        equal(client.meta(SET_META, b"disk", "base:allocation", *["x:a", "x:b"] * 511, "x:c"),
              [("base:allocation", 1)], "1024 queries")
        lines = [line for line in server.log()[before:].splitlines() if "no context" in line]
        equal(len(lines), 1, "lines in the log")
        expect("no context x:a, nor 1022 more" in lines[0], lines[0])


@test("C29 a selection is for one export name")
def set_meta_other_name(server):
    for option in (GO, EXPORT_NAME):
        for name, wanted in ((b"disk", 0), (b"disk@one", EINVAL), (b"big", EINVAL)):
            with Client(server) as client:
                client.negotiate(STRUCTURED_FORM)
                client.meta(SET_META, b"disk", "base:allocation")
                if option == GO:
                    client.go(name)
                else:
                    client.send_option(EXPORT_NAME, name)
                    client.receive(10)
                equal(client.error(STATUS, 0, 512), wanted, "BLOCK_STATUS on %r" % name)


@test("C31 C32 BLOCK_SIZE when asked: minimum 1, preferred the cluster, maximum 32 MiB")
def block_sizes(server):
    with Client(server) as client:
        for requests in ((), (1, 2), (4,)):
            expect(3 not in client.go(b"disk", INFO, requests), "BLOCK_SIZE unasked")
        for name, preferred in ((b"disk", 65536), (b"disk@one", 65536), (b"plain", 65536)):
            for requests in ((3,), (3, 3, 1, 2)):
                items = client.go(name, INFO, requests)
                sizes = struct.unpack(">III", items[3])
                equal(sizes, (1, preferred, 32 * M), "block sizes")
                equal(struct.unpack(">Q", items[0][:8])[0] % sizes[0], 0, "size of the export")


@test("C32 a client that does not ask for BLOCK_SIZE is served all the same, unaligned too")
def block_size_not_needed(server):
    for form in FORMS:
        with Client(server) as client:
            client.open(b"plain", form)
            equal(set(client.items), {0}, "items of GO")
            equal(client.read(999983, 17), pattern(999983, 17), "the last bytes")


@test("C31 NAME and DESCRIPTION when asked, the default export by its real name")
def info_items(server):
    with Client(server) as client:
        equal(set(client.go(b"", INFO)), {0}, "items when none was asked for")
        items = client.go(b"", INFO, (1, 2))
        equal(items[1], b"disk", "name")
        expect(b"only what changed since one is accessible" in items[2], "description")
        equal(client.go(b"disk@one", INFO, (1,))[1], b"disk@one", "name")


@test("1.4 transmission flags of read-only and release exports")
def flags(server):
    def get(client, name):
        return struct.unpack(">QH", client.go(name, INFO)[0])[1]
    with Client(server) as client:
        has, ro, flush, fua, trim, df, multi, cache = 1, 2, 4, 8, 0x20, 0x80, 0x100, 0x400
        equal(get(client, b"disk"), has | ro | flush | multi | cache, "NAME")
        equal(get(client, b"disk+release"), has | flush | fua | trim | multi | cache, "release")
        client.negotiate(STRUCTURED_FORM)
        equal(get(client, b"plain"), has | ro | flush | multi | cache | df, "structured")


# Requests

@test("C40 wrong magic of a request: disconnected, nothing sent")
def wrong_request_magic(server):
    for form in FORMS:
        for magic in {REQUEST_MAGIC, EXTENDED_REQUEST_MAGIC, 0} - {
                EXTENDED_REQUEST_MAGIC if form == EXTENDED_FORM else REQUEST_MAGIC}:
            with Client(server) as client:
                client.open(b"disk", form)
                client.request(READ, 0, 512, magic=magic)
                client.expect_end()


@test("C41 many requests at once: each answered once, with its own data")
def pipelined(server):
    for form in FORMS:
        with Client(server) as client:
            client.open(b"big", form)
            wanted = {}
            requests = b""
            for n in range(128):
                offset, length = (n * 7919) * 512 + n, 1 + (n * 37) % 9000
                requests += client.packed(READ, offset, length)
                wanted[client.cookie] = (offset, length)
            client.send(requests)
            lengths = {cookie: length for cookie, (_, length) in wanted.items()}
            while wanted:
                answer = client.answer(lengths)
                offset, length = wanted.pop(answer["cookie"])
                equal(answer["error"], 0, "error")
                expect(answer["data"] == pattern(offset, length), "data")


@own("C41 requests that come together, some of which wait for a device: each answered once")
def mixed():
    server = Server("disk=mem:size=1G,plain,cached=64K")
    try:
        for form in FORMS:
            with Client(server) as client:
                client.open(b"disk", form)
                wanted, requests = {}, b""
                for n in range(1000):
                    offset, length = n * 104729 * 512 % (1 << 29), 1 + (n * 37) % 40000
                    wanted[n] = (offset, length)
                    requests += struct.pack(">IHHQQ" + ("Q" if form == EXTENDED_FORM else "I"),
                                            EXTENDED_REQUEST_MAGIC if form == EXTENDED_FORM
                                            else REQUEST_MAGIC, 0, READ, n, offset, length)
                client.send(requests)
                lengths = {cookie: length for cookie, (_, length) in wanted.items()}
                while wanted:
                    answer = client.answer(lengths)
                    offset, length = wanted.pop(answer["cookie"])
                    equal(answer["error"], 0, "error")
                    expect(answer["data"] == pattern(offset, length), "data")
    finally:
        server.stop()


@test("C42 WRITE: its data is consumed, then EPERM; also 64 MiB")
def write_refused(server):
    for name in (b"disk", b"disk+release"):
        for form in FORMS:
            with Client(server) as client:
                client.open(name, form)
                for length in (0, 1, 512, 100000):
                    equal(client.error(WRITE, 0, length, 0, b"\x25\x60\x95\x13" * (length // 4)
                                       + bytes(length % 4)), EPERM, "WRITE")
                equal(client.error(WRITE, 2 ** 64 - 1, 3, 0xffff, b"abc"), EPERM, "odd WRITE")
                equal(client.read(0, 16), pattern(0, 16), "READ afterwards")
    with Client(server) as client:
        client.open(b"disk")
        equal(client.error(WRITE, 0, 64 * M, 0, bytes(64 * M)), EPERM, "64 MiB")
        equal(client.read(0, 16), pattern(0, 16), "READ afterwards")
        client.request(WRITE, 0, 64 * M + 1)
        client.expect_end()


@test("C44 unknown commands and flags: EINVAL, the connection stays")
def unknown_commands(server):
    for form in FORMS:
        with Client(server) as client:
            client.open(b"disk", form)
            for command in (8, 9, 255, 0xffff):
                equal(client.error(command, 0, 512), EINVAL, "command %d" % command)
            for command, wrong in ((READ, REQ_ONE), (READ, NO_HOLE), (READ, 0x8000), (FLUSH, DF),
                                   (FLUSH, FUA), (CACHE, FAST_ZERO), (STATUS, DF), (CACHE, FUA)):
                equal(client.error(command, 0, 0, wrong), EINVAL,
                      "command %d with flag %d" % (command, wrong))
            equal(client.read(0, 16), pattern(0, 16), "READ afterwards")


@test("C44 FUA: tolerated on READ, valid for every command of a release export")
def fua(server):
    with Client(server) as client:
        client.open(b"disk")
        equal(client.read(0, 16, FUA), pattern(0, 16), "READ")
    with Client(server) as client:
        client.open(b"disk+release", contexts=["base:allocation"])
        equal(client.read(0, 16, FUA), pattern(0, 16), "READ")
        for command, length in ((FLUSH, 0), (TRIM, 0), (CACHE, 512), (STATUS, 512)):
            equal(client.error(command, 0, length, FUA), 0, "command %d" % command)


@test("C45 ranges beyond the end, also those that wrap around: EINVAL")
def ranges(server):
    with Client(server) as client:
        client.open(b"disk+release", contexts=["base:allocation"])
        for command in (READ, TRIM, CACHE, STATUS):
            for offset, length in ((SIZE, 1), (SIZE - 511, 512), (0, SIZE + 1), (SIZE + 512, 512),
                                   (2 ** 64 - 512, 512), (2 ** 64 - 512, 513), (2 ** 63, 512),
                                   (2 ** 64 - 1, 0xffffffff), (512, 0xffffffff)):
                equal(client.error(command, offset, length), EINVAL,
                      "command %d of %d bytes at %d" % (command, length, offset))
        equal(client.read(SIZE - 512, 512), pattern(SIZE - 512, 512), "the last sector")


@test("C46 order of checks: permission before flags, flags before range")
def check_order(server):
    with Client(server) as client:
        client.open(b"disk")
        equal(client.error(TRIM, 2 ** 64 - 1, 512, 0xffff), EPERM, "TRIM")
        equal(client.error(WRITE_ZEROES, 2 ** 64 - 1, 512, 0xffff), EPERM, "WRITE_ZEROES")
        equal(client.error(77, 2 ** 64 - 1, 512, 0xffff), EINVAL, "unknown command")


@test("C47 length 0: READ succeeds with no data, BLOCK_STATUS gets EINVAL, others succeed")
def zero_lengths(server):
    for form in FORMS:
        with Client(server) as client:
            client.open(b"disk+release", form,
                        ["base:allocation"] if form != SIMPLE_FORM else ())
            for offset in (0, 777, SIZE, 4 * M):
                answer = client.ask(READ, offset, 0)
                equal((answer["error"], answer["data"]), (0, b""), "READ")
                if form != SIMPLE_FORM:
                    equal(answer["chunks"], [(NONE, b"")], "chunks")
                equal(client.error(STATUS, offset, 0), EINVAL, "BLOCK_STATUS")
                equal(client.error(TRIM, offset, 0), 0, "TRIM")
                equal(client.error(CACHE, offset, 0), 0, "CACHE")
            equal(client.error(READ, SIZE + 1, 0), EINVAL, "READ beyond the end")


@test("C49 READ of more than 32 MiB: EOVERFLOW; DF is served")
def long_reads(server):
    for form in FORMS:
        with Client(server) as client:
            client.open(b"big", form)
            equal(client.error(READ, 0, 32 * M + 1), EOVERFLOW, "READ")
            equal(client.error(READ, 0, 0xffffffff), EOVERFLOW, "READ")
            if form == EXTENDED_FORM:
                equal(client.error(READ, 0, 20 * T), EOVERFLOW, "READ of 20 TiB")
            equal(len(client.read(0, 32 * M)), 32 * M, "READ of the maximum")
            if form != SIMPLE_FORM:
                data = client.read(3 * T, 64 * K, DF)
                expect(data == pattern(3 * T, 64 * K), "data with DF")


@test("C51 DISC: outstanding requests are answered, then the end")
def disc(server):
    with Client(server) as client:
        client.open(b"disk")
        cookies = {client.request(READ, n * 4096, 4096) for n in range(20)}
        client.request(DISC, 123, 456, 0xffff)
        while cookies:
            cookies.remove(client.answer()["cookie"])
        client.expect_end()


@test("C51 a client that only stops sending gets its answers")
def half_close(server):
    with Client(server) as client:
        client.open(b"disk")
        cookies = {client.request(READ, n * 4096, 4096) for n in range(20)}
        client.socket.shutdown(socket.SHUT_WR)
        while cookies:
            cookies.remove(client.answer()["cookie"])
        client.expect_end()


# Replies

@test("C60 C48 simple replies: errors without data, and the next reply in step")
def simple_errors(server):
    with Client(server) as client:
        client.open(b"disk", form=SIMPLE_FORM)
        equal(client.error(READ, 4 * M, 65536), EPERM, "denied")
        equal(client.error(READ, 6 * M, 512), EIO, "a bad place")
        equal(client.read(0, 4096), pattern(0, 4096), "READ afterwards")


@test("C61 C62 C63 structured READs: one data chunk inside the request, errors as chunks")
def structured_reads(server):
    with Client(server) as client:
        client.open(b"disk")
        for offset, length in ((0, 1), (1, 511), (511, 2), (65536, 65536), (12345, 54321)):
            answer = client.ask(READ, offset, length)
            expect(not answer["simple"], "a chunk")
            equal(len(answer["chunks"]), 1, "chunks")
            equal(answer["offset"], offset, "offset")
            expect(answer["data"] == pattern(offset, length), "data")
        for command, offset, length in ((READ, SIZE, 1), (READ, 4 * M, 512), (77, 0, 0)):
            answer = client.ask(command, offset, length)
            expect(not answer["simple"] and answer["error"] and answer["text"], "error chunk")


@test("C66 C48 denied: EPERM with text; a bad place: EIO with text; the connection stays")
def denied_and_bad(server):
    with Client(server) as client:
        client.open(b"disk", contexts=["base:allocation", "fleece:access"])
        for offset, length in ((4 * M, 512), (4 * M - 512, 1024), (5 * M - 1, 2), (3 * M, 3 * M)):
            answer = client.ask(READ, offset, length)
            equal(answer["error"], EPERM, "denied READ")
            expect("not accessible" in answer["text"], "text: " + answer["text"])
        answer = client.ask(READ, 6 * M + 1000, 10)
        equal(answer["error"], EIO, "READ of a bad place")
        expect(answer["text"], "text")
        equal(client.read(5 * M, 512), pattern(5 * M, 512), "READ beside it")
        extents = client.status(0, SIZE)
        equal(extents["fleece:access"], [(4 * M, 0), (M, 1), (3 * M, 0)], "fleece:access")
        equal(extents["base:allocation"], [(SIZE, 0)], "C70 data, never a hole")


@test("C67 C70 all contexts, whole and in parts, agree with the map")
def block_status(server):
    dirty = [(64 * K, 0), (64 * K, 1), (M - 128 * K, 0), (M, 1), (6 * M, 0)]
    with Client(server) as client:
        client.open(b"disk", contexts=ALL_CONTEXTS)
        extents = client.status(0, SIZE)
        equal(extents["qemu:dirty-bitmap:one"], dirty, "dirty bitmap")
        equal(extents["fleece:clean:one"], [(n, 1 - f) for n, f in dirty], "clean bitmap")
        equal(extents["qemu:dirty-bitmap:two"], [(SIZE, 0)], "bitmap of this moment")
        equal(extents["fleece:clean:two"], [(SIZE, 1)], "clean since this moment")
        equal(client.status(70 * K, 100 * K)["qemu:dirty-bitmap:one"],
              [(58 * K, 1), (42 * K, 0)], "a part")
        equal(client.status(64 * K + 1, 3)["qemu:dirty-bitmap:one"], [(3, 1)], "three bytes")
        offset = 0
        while offset < SIZE:
            one = client.status(offset, SIZE - offset, REQ_ONE)
            length = one["base:allocation"][0][0]
            wanted = any(a <= offset < a + n for a, n in ((64 * K, 64 * K), (M, M)))
            equal(one["qemu:dirty-bitmap:one"], [(length, int(wanted))], "REQ_ONE at %d" % offset)
            offset += length
        equal(offset, SIZE, "end of REQ_ONE")


@test("C68 lengths up to 2^32-1 on 20 TiB, extents below 2^32 (CVE-2025-47711, -47712)")
def long_status(server):
    with Client(server) as client:
        client.open(b"big", contexts=["base:allocation", "qemu:dirty-bitmap:five"])
        for length in (0xffffffff, 0xfffffe00, 0xfffff000, 0x80000000):
            for offset in (0, T - 4096, T, 2 * T - 512, 17 * T, 20 * T - length):
                extents = client.status(offset, length)["qemu:dirty-bitmap:five"]
                equal(extents[0][1], int(T <= offset < 2 * T), "status at %d" % offset)
                total = sum(n for n, _ in extents)
                if offset % 512 == 0:
                    equal(total % 512, 0, "C67 whole sectors")
                expect(total >= length - 511, "C67 the answer is not needlessly short")
        equal(client.error(STATUS, 20 * T - 512, 0xffffffff), EINVAL, "beyond the end")


@test("C67 a fragmented map: bounded answers that a client can continue")
def fragmented(server):
    with Client(server) as client:
        client.open(b"big", contexts=["qemu:dirty-bitmap:fine"])
        offset = 5 * T
        for _ in range(3):
            extents = client.status(offset, 0xfffffe00)["qemu:dirty-bitmap:fine"]
            equal(len(extents), 131072, "extents")
            expect(all(n == 512 for n, _ in extents), "lengths")
            equal(extents[0][1], (offset // 512) & 1, "first status")
            offset += 512 * len(extents)


@test("C69 BLOCK_STATUS without contexts: EINVAL")
def status_not_negotiated(server):
    with Client(server) as client:
        client.open(b"disk")
        equal(client.error(STATUS, 0, 512), EINVAL, "BLOCK_STATUS")


@test("C73 FLUSH succeeds, with offset or length EINVAL; C74 CACHE succeeds")
def flush_and_cache(server):
    for name in (b"disk", b"disk+release", b"plain"):
        with Client(server) as client:
            client.open(name)
            equal(client.error(FLUSH), 0, "FLUSH")
            equal(client.error(FLUSH, 512, 0), EINVAL, "FLUSH with an offset")
            equal(client.error(FLUSH, 0, 512), EINVAL, "FLUSH with a length")
            equal(client.error(CACHE, 0, 1000), 0, "CACHE")


# Tests with servers of their own

@own("C72 TRIM on NAME+release releases whole clusters, on NAME it gets EPERM")
def trim():
    server = Server("--allow-release", DISK)
    try:
        with Client(server) as client, Client(server) as other:
            other.open(b"disk", contexts=["fleece:access"])
            client.open(b"disk+release")
            equal(other.error(TRIM, 0, 65536), EPERM, "TRIM on NAME")
            equal(client.error(TRIM, 1, 65536), 0, "TRIM of no whole cluster")
            equal(len(other.read(0, 131072)), 131072, "READ of what is still there")
            equal(client.error(TRIM, 100, 200000), 0, "TRIM")
            equal(other.error(READ, 65536, 512), EPERM, "READ of what was released")
            equal(other.read(0, 65536), pattern(0, 65536), "READ beside it")
            equal(other.status(0, M)["fleece:access"], [(65536, 0), (131072, 1),
                                                        (M - 196608, 0)], "fleece:access")
            equal(client.error(TRIM, 0, SIZE), 0, "TRIM of everything")
            equal(other.error(READ, SIZE - 1, 1), EPERM, "READ of the last byte")
    finally:
        server.stop()


@own("release exports exist only with --allow-release")
def no_release():
    server = Server(DISK)
    try:
        with Client(server) as client:
            equal(client.option_error(GO, go_data(b"disk+release")), UNKNOWN, "GO")
            client.open(b"disk")
            equal(client.error(TRIM, 0, 65536), EPERM, "TRIM")
            equal(client.read(0, 16), pattern(0, 16), "READ")
    finally:
        server.stop()


@own("--read-once: what was delivered is released, what failed is not")
def read_once():
    server = Server("--read-once", DISK)
    try:
        with Client(server) as client:
            client.open(b"disk", contexts=["fleece:access"])
            equal(client.read(0, 131072), pattern(0, 131072), "first READ")
            equal(client.error(READ, 3 * M, 2 * M), EPERM, "READ that fails")
            wait_released(client, 65536)
            equal(client.read(3 * M, 512), pattern(3 * M, 512), "READ of what was not delivered")
            equal(client.status(0, M)["fleece:access"], [(131072, 1), (M - 131072, 0)], "access")
    finally:
        server.stop()


@own("C69 C66 a snapshot that breaks: EIO with the cause for reads and maps, the connection stays")
def broken():
    server = Server("--allow-release", DISK)
    try:
        with Client(server) as client:
            client.open(b"disk+release", contexts=ALL_CONTEXTS)
            client.status(0, SIZE)
            client.read(0, 512)
            server.process.send_signal(signal.SIGUSR1)
            deadline = time.monotonic() + PATIENCE
            while not client.error(READ, 0, 512):
                expect(time.monotonic() < deadline, "the snapshot does not break")
            for command in (READ, STATUS, TRIM):
                for offset in (0, 4 * M, 6 * M):
                    answer = client.ask(command, offset, 65536)
                    equal(answer["error"], EIO, "error of command %d" % command)
                    expect("broken" in answer["text"] and "4711" in answer["text"],
                           "text: " + answer["text"])
            equal(client.error(FLUSH), 0, "FLUSH")
        with Client(server) as client:
            client.open(b"disk", form=SIMPLE_FORM)
            equal(client.error(READ, 0, 512), EIO, "simple reply")
    finally:
        server.stop()


@own("C6 a mere port probe leaves no line in the log")
def port_probe():
    server = Server(DISK)
    try:
        for greet in (False, True):
            with Client(server, greet=greet):
                pass
        with Client(server) as client:
            equal(client.option(ABORT), [(ACK, b"")], "answer to ABORT")
            client.expect_end()
        server.process.send_signal(signal.SIGTERM)
        equal(server.wait(), 0, "exit status")
        equal([line for line in server.log().splitlines() if "process" in line], [], "log")
    finally:
        server.stop()


@contextlib.contextmanager
def crowd_at(server):
    """Clients that are closed, before the server ends, whatever becomes of the test."""
    clients = []
    try:
        yield clients
    finally:
        for one in clients:
            one.socket.close()
        server.stop()


@own("C6 idle handshakes are ended in time and do not starve others (CVE-2024-7409)")
def idle_handshakes():
    server = Server("--max-connections", "20", "--handshake-timeout", "5", DISK)
    with crowd_at(server) as idle:
        for n in range(20):
            idle.append(Client(server, greet=n % 2 == 0))
        start = time.monotonic()
        with Client(server) as client:
            client.open(b"disk")
            equal(client.read(0, 16), pattern(0, 16), "data")
            expect(time.monotonic() - start < 20, "it took too long")
            for one in idle[::2]:
                one.expect_end()
            time.sleep(5.2)
            equal(client.read(0, 16), pattern(0, 16), "data after the handshake's time")


@own("C6 clients that choose no export take no place of others, however many and for how long")
def crowd_of_idle():
    server = Server("--max-connections", "2", "--handshake-timeout", "0", DISK)
    with crowd_at(server) as idle:
        with Client(server) as first:
            first.open(b"disk")
            for _ in range(150):
                idle.append(Client(server))
            # The oldest had to go, the others need not.
            idle[0].expect_end()
            equal(idle[-1].option(LIST)[-1][0], ACK, "LIST of the last")
            with Client(server) as second:
                second.open(b"disk")
                equal(second.read(0, 16), pattern(0, 16), "data for one that chooses")
            equal(first.read(0, 16), pattern(0, 16), "data for one that has chosen")
        equal(server.log().count("the oldest are disconnected"), 1, server.log())


@own("--max-connections: however many wait for a place, who comes later is not disconnected")
def crowd_of_waiting():
    server = Server("--max-connections", "1", "--handshake-timeout", "0", DISK)
    with crowd_at(server) as waiting:
        with Client(server) as first:
            first.open(b"disk")
            for _ in range(128):
                waiting.append(Client(server))
                waiting[-1].send_option(GO, go_data(b"disk"))
            # Those that have not got so far yet would count as who has chosen none.
            time.sleep(0.5)
            for _ in range(5):
                waiting.append(Client(server))
                equal(waiting[-1].option(LIST)[-1][0], ACK, "LIST of one that comes")
        expect("the oldest are disconnected" not in server.log(), server.log())


@own("--max-connections: who chooses an export when all are in use waits for a place")
def wait_for_slot():
    for option in (GO, EXPORT_NAME):
        server = Server("--max-connections", "1", "--handshake-timeout", "0", DISK)
        try:
            with Client(server) as first, Client(server) as second, Client(server) as third:
                first.open(b"disk")
                waiting = [second.socket, third.socket]
                for client in (second, third):
                    client.send_option(option, go_data(b"disk") if option == GO else b"disk")
                expect(not select.select(waiting, (), (), 0.3)[0], "a second one was served")
                first.request(DISC)
                chosen, _, _ = select.select(waiting, (), (), 20)
                equal(len(chosen), 1, "clients that got the place")
                waiting.remove(chosen[0])
                chosen[0].close()
                equal(select.select(waiting, (), (), 20)[0], waiting, "the last one")
        finally:
            server.stop()


@own("--max-connections: the wait for a place ends with the time of the handshake")
def wait_in_vain():
    server = Server("--max-connections", "1", "--handshake-timeout", "5", DISK)
    try:
        with Client(server) as first:
            first.open(b"disk")
            with Client(server) as second:
                second.send_option(GO, go_data(b"disk"))
                second.expect_end()
            expect("disconnected: all connections are in use" in server.log(), server.log())
            equal(first.read(0, 16), pattern(0, 16), "data for the first")
    finally:
        server.stop()


@own("C16 who waits for a place when the server ends gets ERR_SHUTDOWN")
def stop_waiting_for_slot():
    server = Server("--max-connections", "1", "--handshake-timeout", "0", DISK)
    try:
        with Client(server) as first, Client(server) as second:
            first.open(b"disk")
            second.send_option(GO, go_data(b"disk"))
            time.sleep(0.2)
            server.process.send_signal(signal.SIGTERM)
            equal(second.reply(GO)[0], SHUTDOWN, "answer to GO")
            first.request(DISC)
            equal(second.option(ABORT), [(ACK, b"")], "ABORT")
    finally:
        server.stop()


@own("C6 a client that sends its handshake byte by byte is ended in time too")
def slow_handshake():
    server = Server("--handshake-timeout", "1", DISK)
    try:
        with Client(server, greet=False) as client:
            start = time.monotonic()
            message = struct.pack(">IQII", 3, IHAVEOPT, 99, 1000) + bytes(1000)
            try:
                for n in range(len(message)):
                    client.send(message[n:n + 1])
                    time.sleep(0.05)
                    expect(time.monotonic() - start < 10, "still connected")
            except (BrokenPipeError, ConnectionResetError):
                pass
    finally:
        server.stop()


@own("--max-connections: others wait, and are served when there is room")
def max_connections():
    server = Server("--max-connections", "2", DISK)
    try:
        with Client(server) as first, Client(server) as second:
            first.open(b"disk")
            second.open(b"disk")
            with Client(server) as third:
                third.send_option(GO, go_data(b"disk"))
                expect(not select.select([third.socket], (), (), 0.3)[0], "a third was served")
                first.request(DISC)
                expect(not third.reply(GO)[0] >> 31, "the third was refused")
    finally:
        server.stop()
    for limit in (0, 1, 3, 4):
        server = Server("--max-connections", str(limit), DISK)
        try:
            with Client(server) as client:
                flags = struct.unpack(">QH", client.go(b"disk", INFO)[0])[1]
                equal(bool(flags & 0x100), limit in (0, 4), f"CAN_MULTI_CONN of {limit}")
        finally:
            server.stop()


@own("--max-connections: who only asks what there is takes no place, and gets an answer")
def ask_without_slot():
    server = Server("--max-connections", "1", DISK)
    try:
        with Client(server) as curious, Client(server) as client:
            curious.go(b"disk", INFO)
            client.open(b"disk")
            curious.go(b"disk", INFO)
            equal(curious.option(LIST)[-1][0], ACK, "LIST while all are in use")
            equal(client.read(0, 16), pattern(0, 16), "data for one that chooses")
    finally:
        server.stop()


@own("a client that does not read its replies holds up nobody, and its memory is bounded")
def slow_reader():
    server = Server(BIG)

    def flood(client):
        try:
            for n in range(3000):
                client.request(READ, n * M, 8 * M)
        except OSError:
            pass
    try:
        with Client(server) as slow, Client(server) as client:
            slow.open(b"big")
            client.open(b"big")
            thread = threading.Thread(target=flood, args=(slow,), daemon=True)
            thread.start()
            time.sleep(1)
            equal(client.read(T, 512), pattern(T, 512), "data for another client")
            with open("/proc/%d/status" % server.process.pid) as status:
                resident = int(re.search(r"VmRSS:\s+(\d+) kB", status.read()).group(1))
            expect(resident < 300 * K, "%d KiB resident" % resident)
            slow.socket.shutdown(socket.SHUT_RDWR)
            thread.join(10)
            equal(client.read(T, 512), pattern(T, 512), "data after it has gone")
    finally:
        server.stop()


@own("C50 C16 SIGTERM: requests in work are answered, new ones get ESHUTDOWN, exit status 0")
def shutdown():
    server = Server("disk=mem:size=8M,delay=8000,cp=one")
    try:
        with Client(server) as client, Client(server) as shaking:
            client.open(b"disk")
            shaking.option(LIST)
            cookies = {client.request(READ, n * 4096, 4096): n * 4096 for n in range(4)}
            time.sleep(3)
            server.process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + PATIENCE
            while os.path.exists(server.path):
                expect(time.monotonic() < deadline, "the socket file is left behind")
                time.sleep(0.01)
            late = client.request(READ, 0, 512)
            equal(shaking.option_error(GO, go_data(b"disk")), SHUTDOWN, "GO")
            equal(shaking.option(ABORT), [(ACK, b"")], "ABORT")
            answers = [client.answer() for _ in range(5)]
            for answer in answers:
                if answer["cookie"] == late:
                    equal(answer["error"], ESHUTDOWN, "late request")
                    expect(answer["text"], "text")
                else:
                    offset = cookies.pop(answer["cookie"])
                    equal(answer["error"], 0, "request in work")
                    equal(answer["data"], pattern(offset, 4096), "data")
            equal(cookies, {}, "requests not answered")
            client.expect_end()
            equal(server.wait(), 0, "exit status")
    finally:
        server.stop()


def server_with_hangup(handler):
    before = signal.signal(signal.SIGHUP, handler)
    try:
        return Server(DISK)
    finally:
        signal.signal(signal.SIGHUP, before)


@own("a SIGHUP that is ignored when the server starts stays so")
def shutdown_ignored():
    server = server_with_hangup(signal.SIG_IGN)
    try:
        server.process.send_signal(signal.SIGHUP)
        with Client(server) as client:
            client.open(b"disk")
            equal(client.read(0, 512), pattern(0, 512), "data")
    finally:
        server.stop()


@own("C50 SIGTERM, SIGINT and SIGHUP with idle clients, and with none: soon, exit status 0 "
     "(CVE-2024-7409)")
def shutdown_idle():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        for clients in (0, 3):
            server = server_with_hangup(signal.SIG_DFL)
            with crowd_at(server) as idle:
                idle.extend(Client(server) for _ in range(clients))
                if clients:
                    idle[0].open(b"disk")
                start = time.monotonic()
                server.process.send_signal(number)
                equal(server.wait(), 0, "exit status")
                expect(time.monotonic() - start < nbdclient.PATIENCE / 2, "it took too long")


def pending_signals(process):
    """Are there any that the process has not taken?"""
    status = content("/proc/%d/status" % process.pid).decode()
    return int(re.search(r"ShdPnd:\s+(\w+)", status).group(1), 16)


@own("a second signal does not wait for clients")
def shutdown_twice():
    server = Server(BIG)
    try:
        with Client(server) as client:
            client.open(b"big")
            for n in range(8):
                client.request(READ, n * M, 8 * M)
            time.sleep(0.5)
            server.process.send_signal(signal.SIGTERM)
            wait_for(lambda: not pending_signals(server.process), "the first one is taken")
            server.process.send_signal(signal.SIGTERM)
            time.sleep(1.2)
            expect(server.process.poll() is None, "the same one, sent twice, ended it")
            start = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            equal(server.wait(), 0, "exit status")
            expect(time.monotonic() - start < nbdclient.PATIENCE / 2, "it took too long")
    finally:
        server.stop()


@own("--stdio serves one client and ends")
def stdio():
    ours, theirs = socket.socketpair()
    command = [nbdclient.TESTSERVER, "--stdio", DISK]
    with subprocess.Popen(command + nbdclient.sandbox_options(command[0]), stdin=theirs,
                          stdout=theirs, stderr=subprocess.DEVNULL) as process:
        theirs.close()
        client = Client.on(ours)
        equal(client.greeting[:8], b"NBDMAGIC", "greeting")
        client.open(b"disk")
        expect(not struct.unpack(">QH", client.items[0])[1] & 0x100, "CAN_MULTI_CONN")
        equal(client.read(0, 512), pattern(0, 512), "data")
        client.request(DISC)
        client.expect_end()
        equal(process.wait(timeout=PATIENCE), 0, "exit status")


@own("command lines that make no sense: refused with a reason and status 2")
def usage():
    disk = "disk=mem:size=1M"
    run_wrong([], 2, "no device")
    run_wrong([disk], 2, "--socket, --listen, --vsock or --stdio")
    run_wrong(["--stdio", "--socket", "/x", disk], 2, "--stdio excludes")
    run_wrong(["--socket", "/x", "--socket", "/y", disk], 2, "twice")
    run_wrong(["--nonsense", disk], 2, "nonsense")
    run_wrong(["--listen"], 2, "argument")
    for number in ("", "x", "-1", "1x", "100001", "99999999999999999999"):
        run_wrong(["--stdio", "--max-connections", number, disk], 2, "--max-connections")
        run_wrong(["--stdio", "--stall-timeout", number, disk], 2, "--stall-timeout")
        run_wrong(["--stdio", "--handshake-timeout", number, disk], 2, "--handshake-timeout")
    run_wrong(["--stdio", "--stall-timeout", "86401", disk], 2, "up to 86400")
    run_wrong(["--listen", "127.0.0.1:0"] * 17 + [disk], 2, "too many addresses")
    run_wrong(["--stdio", "--tls-certs", "x", "--tls-psk", "x", disk], 2, "exclude each other")
    for address in (":1", "[::1", "127.0.0.1:", "127.0.0.1:x", "[]:1"):
        run_wrong(["--listen", address, disk], 2, "--listen is not")
    for option in ("--socket", "--pid-file", "--user", "--tls-certs", "--tls-psk"):
        run_wrong(["--stdio", option, "", disk], 2, option + " is empty")
    run_wrong(["--help"], 0, "Usage")
    run_wrong(["--version"], 0, "fleeced ")


@own("devices, names and addresses that cannot be used: refused with a reason and status 1")
def unusable():
    disk = "disk=mem:size=1M,cp=one"
    run_wrong(["--stdio", "a b=mem:size=1M"], 1, "no usable export name")
    run_wrong(["--stdio", "%s=mem:size=1M" % ("x" * 300)], 1, "no usable export name")
    run_wrong(["--stdio", disk, "disk=mem:size=2M"], 1, "is taken")
    run_wrong(["--stdio", disk, "disk@one=mem:size=2M"], 1, "is taken")
    run_wrong(["--stdio", "--allow-release", "p=mem:size=1M,plain"], 1, "--allow-release")
    run_wrong(["--stdio", "--read-once", "p=mem:size=1M,plain"], 1, "--read-once")
    for address in ("0.0.0.0", "0.0.0.0:0", "[::]:0", "192.0.2.1:10809"):
        run_wrong(["--listen", address, disk], 1, "loopback")
    run_wrong(["--listen", "192.0.2.1:0", "--insecure", disk], 1, "cannot listen")
    run_wrong(["--socket", "/nonexistent/socket", disk], 1, "cannot listen")
    run_wrong(["--socket", "/" + "x" * 200, disk], 1, "too long")
    run_wrong(["--stdio", "--pid-file", "/nonexistent/pid", disk], 1, "cannot write")


def start_at(path):
    """A server that may not be able to start."""
    command = [nbdclient.TESTSERVER, "--socket", path, DISK]
    return subprocess.Popen(command + nbdclient.sandbox_options(command[0]),
                            stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def end_all(processes):
    """End those that run; how many did."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.send_signal(signal.SIGTERM)
        equal(process.wait(timeout=PATIENCE), 0, "exit status")
    return len(running)


def links(directory):
    """Where the links in a directory lead."""
    found = []
    for name in os.listdir(directory):
        try:
            found.append(os.readlink(os.path.join(directory, name)))
        except FileNotFoundError:
            pass
    return found


@own("several servers start at once on a socket that was left behind: one of them gets it")
def one_of_many():
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "socket")
        for _ in range(5):
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(path)
            servers = [start_at(path) for _ in range(6)]
            try:
                while sum(server.poll() is None for server in servers) > 1:
                    time.sleep(0.01)
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(path)
                    equal(client.recv(8), b"NBDMAGIC", "greeting")
                equal(os.listdir(directory), ["socket"], "files")
            finally:
                equal(end_all(servers), 1, "servers that run")


@own("a server waits until another one has taken care of the socket file")
def locked_path():
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "socket")
        with open(path + ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            server = start_at(path)
            opened = "/proc/%d/fd" % server.pid
            while not any("socket.lock" in name for name in links(opened)):
                equal(server.poll(), None, "exit status")
            expect(not os.path.exists(path), "the file is there")
            fcntl.flock(lock, fcntl.LOCK_UN)
        while not os.path.exists(path):
            equal(server.poll(), None, "exit status")
            time.sleep(0.01)
        while os.path.exists(path + ".lock"):
            time.sleep(0.01)
        equal(end_all([server]), 1, "servers that run")
        equal(os.listdir(directory), [], "files left behind")


@own("socket files: one in use is respected, one left behind is replaced, others are kept")
def socket_files():
    def leave_behind(path):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(path)
    server = Server(DISK, before=leave_behind)
    try:
        run_wrong(["--socket", server.path, DISK], 1, "cannot listen")
        with Client(server) as client:
            client.open(b"disk")
        equal(os.stat(server.path).st_mode & 0o777, 0o600, "mode of the socket")
        run_wrong(["--socket", server.log_path, DISK], 1, "cannot listen")
        expect(os.path.exists(server.log_path), "a file that is no socket was removed")
    finally:
        server.stop()


@own("kill -9 leaves no files behind, and those of another server alone")
def killed():
    server = Server(DISK)
    try:
        server.process.kill()
        server.process.wait()
        deadline = time.monotonic() + PATIENCE
        while os.path.exists(server.path) or os.path.exists(server.pid_file):
            expect(time.monotonic() < deadline, "files are left behind")
            time.sleep(0.02)
    finally:
        subprocess.run(["rm", "-rf", server.directory], check=True)
    server = Server(DISK)
    try:
        for name in (server.path, server.pid_file):
            os.unlink(name)
            with open(name, "w", encoding="utf-8") as other:
                other.write("of somebody else")
        server.process.send_signal(signal.SIGTERM)
        equal(server.wait(), 0, "exit status")
        expect(os.path.exists(server.path), "another's socket was removed")
        expect(os.path.exists(server.pid_file), "another's pid file was removed")
    finally:
        subprocess.run(["rm", "-rf", server.directory], check=True)


@own("a pid file replaces a pid file or an empty file, and nothing else")
def pid_file_in_the_way():
    directory = tempfile.mkdtemp(prefix="fleeced-test-")
    image = os.path.join(directory, "image")
    path = os.path.join(directory, "socket")
    text = "data of somebody" * 100
    with open(image, "w", encoding="utf-8") as file:
        file.write(text)
    os.mkfifo(os.path.join(directory, "pipe"))
    try:
        small = os.path.join(directory, "small")
        with open(small, "wb") as file:
            file.write(b"12" + bytes(14))
        for name in (image, small, path, directory, os.path.join(directory, "pipe"), "/dev/null"):
            run_wrong(["--socket", path, "--pid-file", name, DISK], 1, "is no pid file")
        with open(image, encoding="utf-8") as file:
            equal(file.read(), text, "the file")
        expect(os.path.exists("/dev/null"), "the device is gone")
        for old in ("", "4711\n"):
            with open(image, "w", encoding="utf-8") as file:
                file.write(old)
            run_wrong(["--socket", path, "--pid-file", image, "--user", "nobody:no-such-group",
                       "--max-connections", "1", DISK], 1, "no such group",
                      nbdclient.PLAIN_TESTSERVER)
            expect(not os.path.exists(image), "the pid file is left behind")
    finally:
        shutil.rmtree(directory)


@own("fleeced itself serves files, of any size, read-only, with base:allocation alone")
def files():
    name = "/tmp/fleeced-test-%d.img" % os.getpid()
    content = random.Random(SEED).randbytes(1000003)
    with open(name, "wb") as image:
        image.write(content)
    try:
        server = Server(name, "second=" + name,
                        program=nbdclient.FLEECED)
        try:
            with Client(server) as client:
                client.open(b"", contexts=["base:allocation"])
                equal(client.read(0, len(content)), content, "data")
                equal(client.read(999999, 4), content[999999:], "the end")
                equal(client.error(READ, 999999, 5), EINVAL, "beyond the end")
                equal(client.error(WRITE, 0, 4, 0, b"abcd"), EPERM, "WRITE")
                equal(client.error(CACHE, 0, 4096), 0, "CACHE")
                equal(client.status(1, 1000002)["base:allocation"], [(1000002, 0)], "status")
                os.truncate(name, 4096)
                for _ in range(2):
                    equal(client.error(READ, 4000, 200), EIO, "a file that shrank")
                equal(server.log().count(name + ": cannot read at 4096: it has become shorter"), 1,
                      "lines of the log")
                equal(client.read(0, 4096), content[:4096], "what is left of it")
            with Client(server) as client:
                equal(client.meta(LIST_META, b"second"), [("base:allocation", 0)], "contexts")
        finally:
            server.stop()
        odd = name + " copy"
        os.link(name, odd)
        try:
            run_wrong(["--stdio", odd], 1, "no usable export name", nbdclient.FLEECED)
        finally:
            os.unlink(odd)
        run_wrong(["--stdio", "/nonexistent"], 1, "cannot open", nbdclient.FLEECED)
        run_wrong(["--stdio", "d=/tmp"], 1, "neither a block device nor", nbdclient.FLEECED)
        run_wrong(["--stdio", "d=/dev/null"], 1, "neither a block device nor", nbdclient.FLEECED)
        run_wrong(["--stdio", "--allow-release", name], 1, "--allow-release", nbdclient.FLEECED)
    finally:
        os.unlink(name)


def fuzz_prefixes():
    """Valid beginnings, so that garbage meets every stage."""
    def option(code, data=b""):
        return struct.pack(">QII", IHAVEOPT, code, len(data)) + data
    flags_only = struct.pack(">I", 3)
    structured = flags_only + option(STRUCTURED)
    meta = structured + option(SET_META, meta_data(b"disk+release", ALL_CONTEXTS))
    go = option(GO, go_data(b"disk+release", (1, 2, 3)))
    return [b"", flags_only, structured, meta, flags_only + go, structured + go, meta + go]


def fuzz_garbage(numbers):
    """Garbage, some of it nearly right."""
    kind = numbers.randrange(4)
    if kind == 0:
        return numbers.randbytes(numbers.randrange(1, 400))
    if kind == 1:
        data = numbers.randbytes(numbers.randrange(0, 200))
        return struct.pack(">QII", IHAVEOPT, numbers.randrange(14),
                           numbers.choice((len(data), numbers.randrange(1 << 32)))) + data
    if kind == 2:
        name = struct.pack(">I", numbers.choice((4, 12, numbers.randrange(1 << 32)))) + b"disk"
        data = name + numbers.randbytes(numbers.randrange(0, 40))
        return struct.pack(">QII", IHAVEOPT, numbers.choice((6, 7, 9, 10)), len(data)) + data
    return b"".join(
        struct.pack(">IHHQQI", REQUEST_MAGIC, numbers.choice((0, 0, 4, 8, 65535)),
                    numbers.randrange(9), numbers.randrange(1 << 64),
                    numbers.choice((0, 512, 4 * M, numbers.randrange(1 << 64))),
                    numbers.choice((0, 1, 512, 65536, numbers.randrange(1 << 32))))
        for _ in range(numbers.randrange(1, 8)))


@own("garbage at every stage of the protocol, for some seconds: the server lives on")
def fuzz():
    print("# seed %d, %d seconds" % (SEED, FUZZ_SECONDS))
    numbers = random.Random(SEED)
    prefixes = fuzz_prefixes()
    server = Server("--allow-release", "--handshake-timeout", "2", DISK)
    rounds = 0
    try:
        end = time.monotonic() + FUZZ_SECONDS
        while time.monotonic() < end:
            rounds += 1
            with Client(server, greet=False) as client:
                client.socket.settimeout(PATIENCE)
                try:
                    client.send(numbers.choice(prefixes))
                    for _ in range(numbers.randrange(1, 6)):
                        client.send(fuzz_garbage(numbers))
                    client.socket.shutdown(socket.SHUT_WR)
                    while client.socket.recv(65536):
                        pass
                except (BrokenPipeError, ConnectionResetError):
                    pass
        expect(rounds > 50, "only %d rounds" % rounds)
        with Client(server) as client:
            client.open(b"disk")
            equal(client.error(FLUSH), 0, "FLUSH of a good client")
    finally:
        server.stop()


def main():
    tap = Tap()
    server = Server("--allow-release", DISK, BIG, PLAIN, listen=True)
    for title, function in TESTS:
        tap.run(title, function, server)
    tap.run("the server has ended well after all of them", server.stop)
    for title, function in OWN:
        tap.run(title, function)
    return tap.finish()


if __name__ == "__main__":
    sys.exit(main())
