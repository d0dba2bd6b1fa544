#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""This test will run the examples of fleeced(8) as they stand there (TAP).

Each one is run with the indentation that it has when the page is read, in a mount and a network
namespace of its own, where /run is empty, db1.example.com is this machine, and `fleeced` serves a
snapshot in memory in place of /dev/mapper/root-snap. A server that stays in the foreground is
stopped when another one comes.
"""
import glob
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

from nbdclient import PATIENCE, TESTSERVER, Tap, content, equal, expect, pattern, sandbox_options

PAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../userspace/fleeced/fleeced.8")
DEVICE = "/dev/mapper/root-snap"
PORT = 10809
SIZE = 4 << 20
SNAPSHOT = "mem:size=4M,cp=monday/1M-2M"
# What stands before each line of an example: the indentation of a section, and that of .RS.
INDENT = " " * 14

# What an example must say, by a word of it.
SAYS = {
    "nbdinfo --list": 'export="root":',
    "nbdinfo --map": "1048576 +1048576 +1 +dirty",
    "qemu-img map": r'"start": 1048576, "length": 1048576,.*"data": false',
    "nbdinfo 'nbds:": "export-size: 4194304",
}


def read_examples():
    """All of them, as they are read."""
    with open(PAGE, encoding="utf-8") as file:
        section = file.read().split("\n.SH EXAMPLES\n")[1].split("\n.SH ")[0]
    examples = re.findall(r"^\.nf\n\.RS\n(.*?)^\.RE\n\.fi$", section, re.M | re.S)
    equal(section.count(".nf"), len(examples), "examples with an indentation")
    expect(len(examples) > 5, "the examples were not found")
    examples = [text.replace("\\-", "-").replace("\\e", "\\") for text in examples]
    return ["".join(INDENT + line for line in text.splitlines(True)) for text in examples]


class World:
    """A directory to work in, and the server in the foreground."""

    def __init__(self):
        self.directory = tempfile.mkdtemp(prefix="fleeced-examples-")
        self.server = None
        # What an earlier example has set is known in later ones.
        self.settings = ""
        self.bin = os.path.join(self.directory, "bin")
        os.mkdir(self.bin)
        with open(os.path.join(self.bin, "fleeced"), "w", encoding="utf-8") as file:
            file.write('#!/bin/bash\nexec %s "${@/#root=%s/root=%s}"\n' % (
                " ".join([TESTSERVER] + sandbox_options(TESTSERVER)),
                DEVICE.replace("/", "\\/"), SNAPSHOT))
        os.chmod(file.name, 0o755)

    def start(self, text):
        """Bash with the example, and the file with what it says."""
        output = tempfile.TemporaryFile("w+", dir=self.directory)
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", self.settings + text], cwd=self.directory,
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            env=dict(os.environ, PATH=self.bin + ":" + os.environ["PATH"]))
        return process, output

    def run(self, text):
        """Run an example; return what it said."""
        process, output = self.start(text)
        try:
            status = process.wait(timeout=PATIENCE)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        output.seek(0)
        said = output.read()
        equal(status, 0, "exit status of the example, which said " + said)
        self.settings += "".join(re.findall(r"^ *[a-z]+=\S+\n", text, re.M))
        return said

    def serve(self, text):
        """Run an example that ends with a server in the foreground, until that is ready."""
        self.stop()
        self.server, output = self.start(text)
        deadline = time.monotonic() + PATIENCE
        while not is_listening():
            if self.server.poll() is not None or time.monotonic() > deadline:
                output.seek(0)
                expect(False, "the server does not start: " + output.read())
            time.sleep(0.05)

    def stop(self):
        """End the server in the foreground, if there is one."""
        if self.server:
            os.killpg(self.server.pid, signal.SIGTERM)
            self.server.wait(timeout=PATIENCE)
            deadline = time.monotonic() + PATIENCE
            while is_listening():
                expect(time.monotonic() < deadline, "the server does not end")
                time.sleep(0.05)
        self.server = None

    def take(self, name):
        """What an example has made, which the next one has to make again."""
        path = os.path.join(self.directory, name)
        if not os.path.exists(path):
            return None
        data = content(path)
        os.remove(path)
        return data

    def check_images(self, text):
        """Those that the example has made are right."""
        image = os.path.join(self.directory, "root.qcow2")
        if os.path.exists(image):
            subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", image,
                            image + ".raw"], check=True)
            os.remove(image)
        for name, made in (("root.img", "root.img"), ("root.qcow2", "root.qcow2.raw")):
            data = self.take(made)
            equal(data is not None, " %s\n" % name in text, name + " is there")
            expect(data in (None, pattern(0, SIZE)), name + " is not right")

    def stop_background(self):
        """The server that an example has left in the background ends, and takes its files along."""
        with open("/run/fleeced.pid", encoding="utf-8") as file:
            os.kill(int(file.read()), signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        while glob.glob("/run/fleeced*"):
            expect(time.monotonic() < deadline, "it leaves files behind")
            time.sleep(0.05)


def is_listening():
    """Does a server answer?"""
    with socket.socket() as probe:
        return not probe.connect_ex(("127.0.0.1", PORT))


def run_example(world, text):
    if re.search(r"^ *fleeced [^\n]*[^&\n]\n\Z", text, re.M):
        world.serve(text)
        return
    said = world.run(text)
    world.check_images(text)
    for word, wanted in SAYS.items():
        if word in text:
            expect(re.search(wanted, said), "%r in what the example said: %s" % (wanted, said))


def tools_of(text):
    """Programs, and a device of the kernel's client that is not the machine's."""
    tools = set(re.findall(r"^ *(nbdinfo|nbdcopy|qemu-img|certtool|psktool)\b", text, re.M))
    return tools | ({"a machine of its own: recipes_snapshot.sh"} if "/dev/nbd0" in text else set())


def run_all(tap):
    """Each example is a test; what cannot run here says why."""
    examples = []
    tap.run("the examples of fleeced(8) can be read", lambda: examples.extend(read_examples()))
    world = World()
    for text in examples:
        title = text.strip().splitlines()[0]
        missing = sorted(tool for tool in tools_of(text) if not shutil.which(tool))
        if missing:
            tap.skip(title, "needs " + ", ".join(missing))
        else:
            tap.run(title, run_example, world, text)
    world.stop()
    tap.run("the server in the background ends, and leaves nothing behind", world.stop_background)
    shutil.rmtree(world.directory)


def prepare():
    """The namespaces are ours alone."""
    hosts = tempfile.NamedTemporaryFile("w", prefix="fleeced-hosts-")
    hosts.write("127.0.0.1 localhost db1.example.com\n")
    hosts.flush()
    for command in (["ip", "link", "set", "lo", "up"], ["mount", "-t", "tmpfs", "none", "/run"],
                    ["mount", "--bind", hosts.name, "/etc/hosts"]):
        subprocess.run(command, check=True)


def main():
    tap = Tap()
    if sys.argv[1:] == ["inside"]:
        prepare()
        run_all(tap)
        return tap.finish()
    namespaces = ["unshare", "--mount", "--net"]
    if subprocess.run(namespaces + ["true"], stderr=subprocess.DEVNULL, check=False).returncode:
        tap.skip("the examples of fleeced(8)", "making namespaces needs root")
        return tap.finish()
    return subprocess.run(namespaces + [sys.executable, __file__, "inside"],
                          check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
