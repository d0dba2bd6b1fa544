# SPDX-License-Identifier: GPL-2.0-only
"""Programs that the tests of clients run: those of this machine, or with
$FLEECE_ROOT, the root of another Debian release, those of that release.

See ../vm/userspace for how that one comes to be; files in /tmp have the same name
inside and outside.
"""
import os
import shutil
import subprocess

from nbdclient import equal

ROOT = os.environ.get("FLEECE_ROOT")
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
TESTS = []


def test(title, package, *tools):
    """Register a test that needs tools of a package."""
    def register(function):
        TESTS.append((title, package, tools, function))
        return function
    return register


def run_tests(tap, world):
    """All that were registered; a skip names what is missing."""
    for title, package, tools, function in TESTS:
        missing = [tool for tool in tools if not has(tool)]
        if missing:
            tap.skip(title, "%s missing: apt install %s" % (", ".join(missing), package))
        else:
            tap.run(title, function, world)


def inside(*command):
    """The command as it has to be run."""
    if not ROOT:
        return list(command)
    return ["chroot", ROOT, "/usr/bin/env", "-i", "PATH=" + PATH, "HOME=/tmp", "LC_ALL=C.UTF-8",
            *command]


def run(*command, status=0, data=None):
    """Run a command, check its exit status, return its output."""
    result = subprocess.run(inside(*command), input=data, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, timeout=120, check=False)
    if status is not None:
        equal(result.returncode, status, "exit status of %s, which said %s" % (
            " ".join(command), result.stderr.decode(errors="replace")))
    return result.stdout.decode(errors="replace")


def has(tool):
    """Is this program there? python3-libnbd stands for Python's module."""
    if tool == "python3-libnbd":
        return works("/usr/bin/python3", "-c", "import nbd")
    if tool == "virtnbdbackup":
        return works("/usr/bin/python3", "-c", "import libvirtnbdbackup.nbdcli")
    return shutil.which(tool, path=":".join((ROOT or "") + directory for directory in
                                            PATH.split(":"))) is not None


def works(*command):
    """Does the command succeed?"""
    return subprocess.run(inside(*command), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL, check=False).returncode == 0
