#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""This test will run every command block of docs/backup.rst as it stands there (TAP).

recipes.py
    with a snapshot in memory, and the clients of this machine or of $FLEECE_ROOT
recipes.py SOCKET EXPORT LIMITED SINCE OLD GOLDEN FILE PORT CERTS
    with exports of a real snapshot: OLD and GOLDEN are images of the moments of the
    checkpoint SINCE and of the snapshot, FILE is "file" in its filesystem, and at 127.0.0.1
    and PORT the same is served with TLS for the client with the certificates in CERTS

A block is announced by a comment `.. recipe: KIND NAME`, KIND being
    full         makes $NEW, an image of the snapshot; must fail on a limited one
    incremental  makes it from $OLD; must succeed on a limited snapshot as well, and fail
                 without its checkpoint
    verify       the next block: must succeed after the one before, and fail when a byte of
                 $NEW is changed
    restore      makes $NEW from a qcow2 chain, files: from the snapshot's filesystem
    show         must succeed
A block without such a comment must be one of prose, which ends its paragraph with ` ::`.
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

from nbdclient import Server, Tap, content, equal, expect, pattern
from tls_pki import Pki
from tools import PATH, has, inside

DOCUMENT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../docs/backup.rst")
PULL = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../userspace/pull")
M = 1 << 20
SIZE = 16 * M
DIRTY = [(M, M), (5 * M, 65536), (16 * M - 65536, 65536)]
CHANGED = "/".join("%d-%d" % (start, start + length) for start, length in DIRTY)
DENIED = ",".join("denied=%d-%d" % pair for pair in (
    (0, M), (2 * M, 5 * M), (5 * M + 65536, 16 * M - 65536)))
TOOLS = ["nbdcopy", "nbdinfo", "nbdfuse", "nbdsh", "nbdkit", "nbd-client", "qemu-img", "qemu-io",
         "qemu-nbd", "fio", "jq", "fleece"]

# Where the kernel's client is tested.
IN_VM = ", which recipes_snapshot.sh has in a VM"


class Block:
    """Commands of the document."""

    def __init__(self, kind, name, text):
        self.kind = kind
        self.name = name
        self.text = text
        self.verify = None
        self.tools = {tool for tool in TOOLS if re.search(r"(^|[|\s(\"'])%s\s" % tool, text, re.M)}
        if "import nbd" in text:
            self.tools.add("python3-libnbd")
        if "$NBD" in text:
            self.tools.add("/dev/nbd0")
        if "$CERTS" in text:
            self.tools.add("certtool")


def read_blocks():
    """All blocks, each with the one that verifies it."""
    with open(DOCUMENT, encoding="utf-8") as file:
        document = file.read()
    blocks = []
    announced = re.findall(r"^\.\. recipe: (\S+) (\S+)[^\n]*\n\n::\n\n((?:\t[^\n]*\n|\n)+)",
                           document, re.M)
    for kind, name, text in announced:
        block = Block(kind, name, re.sub(r"^\t", "", text, flags=re.M).rstrip() + "\n")
        if kind == "verify":
            blocks[-1].verify = block
            blocks[-1].tools |= block.tools
        else:
            blocks.append(block)
    equal(len(re.findall(r"^::$", document, re.M)), len(announced), "blocks announced")
    equal(document.count(".. recipe:"), len(announced), "announcements")
    return blocks


class Setting:
    """Exports, images, and a directory for each run."""

    def __init__(self, values):
        (self.socket, self.export, self.limited, self.since, self.old, self.golden, self.file,
         self.port, self.certificates) = values
        self.top = tempfile.mkdtemp(prefix="fleeced-recipes-", dir="/tmp")
        self.bin = os.path.join(self.top, "bin")
        self.count = 0
        self.make_fleece()

    def make_fleece(self):
        """The command, so that it is found inside another root, too."""
        os.mkdir(self.bin)
        program = os.path.join(PULL, "fleece-pull")
        if not os.path.exists(program):
            return
        shutil.copy(program, self.bin)
        with open(os.path.join(self.bin, "fleece"), "w", encoding="utf-8") as file:
            file.write('#!/bin/sh\n[ "$1" = pull ] || exit 2\nshift\nexec fleece-pull "$@"\n')
        os.chmod(file.name, 0o755)

    def has(self, tool):
        """Can it be run?"""
        if tool == "fleece":
            return os.path.exists(os.path.join(self.bin, "fleece"))
        if tool == "/dev/nbd0":
            return os.path.exists(tool)
        if tool == "certtool":
            return bool(self.certificates)
        return has(tool) and (tool != "nbdfuse" or os.path.exists("/dev/fuse"))

    def variables(self, **more):
        """What the document says has to be set."""
        self.count += 1
        directory = os.path.join(self.top, str(self.count))
        os.makedirs(os.path.join(directory, "mnt"))
        export = more.get("EXPORT", self.export)
        result = {"URI": "nbd+unix:///%s?socket=%s" % (export, self.socket), "EXPORT": export,
                  "SOCKET": self.socket, "SINCE": self.since, "OLD": self.old,
                  "NEW": os.path.join(directory, "new"), "NBD": "/dev/nbd0",
                  "MOUNT": os.path.join(directory, "mnt"), "HOST": "127.0.0.1",
                  "PORT": str(self.port), "CERTS": self.certificates or ""}
        result.update(more)
        return result

    def run(self, block, variables):
        """Run a block; return its exit status and what it said."""
        words = ["%s=%s" % item for item in variables.items()]
        words.append("PATH=%s:%s" % (self.bin, PATH))
        if "/dev/nbd0" in block.tools:
            wait_for_nbd0()
        command = inside("env", *words, "bash", "-euo", "pipefail", "-c", block.text)
        result = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, timeout=300, check=False)
        return result.returncode, result.stdout.decode(errors="replace")

    def close(self):
        """Remove everything."""
        shutil.rmtree(self.top)


def wait_for_nbd0():
    """One that was just disconnected is busy until the kernel and udev have let go of it."""
    for _ in range(200):
        if not os.path.exists("/sys/block/nbd0/pid"):
            break
        time.sleep(0.1)
    if os.path.exists("/run/udev/control"):
        subprocess.run(["udevadm", "settle"], check=False)


def succeed(setting, block, variables):
    """Run a block that must succeed."""
    status, output = setting.run(block, variables)
    equal(status, 0, "exit status of the block, which said " + output)
    return output


def must_fail(setting, block, variables, when):
    """Run a block that must not succeed."""
    status, output = setting.run(block, variables)
    expect(status != 0, "the block has not failed %s; it said %s" % (when, output))


def is_qcow2(path):
    """Does the file begin so?"""
    with open(path, "rb") as file:
        return file.read(4) == b"QFI\xfb"


def raw_of(path):
    """Bytes of an image, through its chain."""
    if is_qcow2(path):
        subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, path + ".raw"],
                       check=True)
        path += ".raw"
    return content(path)


def check_new(setting, variables):
    """$NEW must be the golden image."""
    expect(raw_of(variables["NEW"]) == content(setting.golden), "the backup is not right")


def old_of(setting, block):
    """The last backup, in the format that the recipe works on."""
    if "-F qcow2" not in block.text and block.kind != "restore":
        return setting.old
    path = os.path.join(setting.top, "old.qcow2")
    if not os.path.exists(path):
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", setting.old, path],
                       check=True)
    return path


def spoil(path):
    """Change one byte of an image."""
    if is_qcow2(path):
        subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 1 1049000 1", path], check=True,
                       stdout=subprocess.DEVNULL)
        return
    with open(path, "r+b") as file:
        file.seek(1049000)
        byte = file.read(1)[0]
        file.seek(1049000)
        file.write(bytes([byte ^ 1]))


def verify(setting, block, variables):
    """The second block must see what is right and what is wrong."""
    expect(block.verify, "the recipe is not followed by one that verifies")
    succeed(setting, block.verify, variables)
    spoil(variables["NEW"])
    must_fail(setting, block.verify, variables, "with a byte changed")


def full(setting, block):
    variables = setting.variables()
    succeed(setting, block, variables)
    check_new(setting, variables)
    verify(setting, block, variables)
    must_fail(setting, block, setting.variables(EXPORT=setting.limited), "on a limited snapshot")


def incremental(setting, block):
    old = old_of(setting, block)
    before = content(old)
    for export in (setting.limited, setting.export):
        variables = setting.variables(EXPORT=export, OLD=old)
        succeed(setting, block, variables)
        check_new(setting, variables)
    verify(setting, block, variables)
    must_fail(setting, block, setting.variables(OLD=old, SINCE="never"), "without its checkpoint")
    expect(content(old) == before, "the last backup was written to")


def restore(setting, block):
    variables = setting.variables(OLD=old_of(setting, block))
    succeed(setting, block, variables)
    expect(content(variables["NEW"]) == content(setting.old), "it is not right")


def files(setting, block):
    variables = setting.variables()
    succeed(setting, block, variables)
    expect(content(variables["NEW"]) == content(setting.file), "the file is not right")


def show(setting, block):
    succeed(setting, block, setting.variables())


KINDS = {"full": full, "incremental": incremental, "restore": restore, "files": files,
         "show": show}


class Servers:
    """One for the Unix socket, and where certificates can be made, one for TLS."""

    def __init__(self, *exports):
        self.plain = Server(*exports)
        self.pki = self.secret = None
        if shutil.which("certtool"):
            self.pki = Pki()
            self.secret = Server("--tls-certs", self.pki.path("server"), *exports, listen=True)

    def secret_values(self):
        """Port, and directory of a client."""
        return (self.secret.port(), self.pki.path("backup")) if self.secret else (0, None)

    def stop(self):
        """End them; whatever is wrong with that fails the test."""
        if self.secret:
            self.pki.remove()
            self.secret.stop()
        self.plain.stop()


def memory_setting(directory):
    """Servers of our own, and their images."""
    golden, old = os.path.join(directory, "golden"), os.path.join(directory, "old")
    data = bytearray(pattern(0, SIZE))
    with open(golden, "wb") as file:
        file.write(data)
    for start, length in DIRTY:
        data[start:start + length] = b"\x5a" * length
    with open(old, "wb") as file:
        file.write(data)
    servers = Servers("disk=mem:size=16M,cp=monday/%s,here=tuesday" % CHANGED,
                      "part=mem:size=16M,cp=monday/%s,since=monday,%s" % (CHANGED, DENIED))
    return servers, (servers.plain.path, "disk", "part", "monday", old, golden, None,
                     *servers.secret_values())


def run_all(tap, values):
    """Each block is a test; what cannot run here says why."""
    blocks = []
    tap.run("every block of docs/backup.rst is announced", lambda: blocks.extend(read_blocks()))
    setting = Setting(values)
    for block in blocks:
        title = "%s: %s" % (block.kind, block.name)
        missing = sorted(tool for tool in block.tools if not setting.has(tool))
        if missing:
            tap.skip(title, "needs %s%s" % (", ".join(missing), IN_VM if "/dev/nbd0" in missing
                                            else ""))
        elif block.kind == "files" and not setting.file:
            tap.skip(title, "there is no filesystem in this snapshot")
        else:
            tap.run(title, KINDS[block.kind], setting, block)
    setting.close()


def main():
    tap = Tap()
    if len(sys.argv) > 1:
        run_all(tap, sys.argv[1:])
        return tap.finish()
    directory = tempfile.mkdtemp(prefix="fleeced-images-", dir="/tmp")
    servers, values = memory_setting(directory)
    run_all(tap, values)
    shutil.rmtree(directory)
    tap.run("the servers have ended well after all recipes", servers.stop)
    return tap.finish()


if __name__ == "__main__":
    sys.exit(main())
