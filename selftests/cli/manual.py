#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""This test will compare what fleece, fleece-pull and fleeced take, what their --help says and
what is in their manual pages: every option, verb and exit status, in both directions (TAP).
"""
import glob
import os
import re
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
USERSPACE = os.path.join(HERE, "../../userspace")
sys.path.insert(0, os.path.join(HERE, "..", "nbd"))

# pylint: disable=wrong-import-position
from nbdclient import Tap, equal, expect  # noqa: E402

FLEECE = os.path.join(USERSPACE, "fleece/fleece")
FLEECED = os.path.join(USERSPACE, "fleeced/fleeced")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
# Understood by every verb, and told once.
ALWAYS = {"--help"}


def read(*path):
    """Text of a file below userspace."""
    with open(os.path.join(USERSPACE, *path), encoding="utf-8") as file:
        return file.read()


def page(name):
    """Source of a manual page, without its fonts, and its hyphens as they are read."""
    return re.sub(r"\\f.", "", read(name.rsplit(".", 1)[0], name).replace("\\-", "-"))


def run(*command):
    """Exit status and all output."""
    result = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, timeout=60, check=False)
    return result.returncode, result.stdout


def parsed(*pattern):
    """Options in the tables of getopt_long()."""
    names = set()
    for path in glob.glob(os.path.join(USERSPACE, *pattern)):
        names |= set(re.findall(r'\{ "([a-z-]+)", (?:no|required|optional)_argument',
                                read(os.path.relpath(path, USERSPACE))))
    return {"--" + name for name in names}


def verbs():
    """Those that the command knows."""
    return re.findall(r"^  ([a-z]+) ", run(FLEECE, "--help")[1], re.M)


def offered(verb):
    """Options that the help of a verb explains, or that are in its synopsis."""
    lines = run(FLEECE, verb, "--help")[1].splitlines()
    return {option for number, line in enumerate(lines) if not number or line.startswith("  --")
            for option in OPTION.findall(line.split("   ")[0])}


def taken(verb, candidates, told):
    """Options that a verb does not call unknown; others may abbreviate those that are told."""
    found = set()
    for option in candidates:
        output = run(FLEECE, verb, option)[1]
        is_short = any(longer != option and longer.startswith(option) for longer in told)
        if "unknown or ambiguous option" not in output and (option in told or not is_short):
            found.add(option)
    return found


def described():
    """The verbs that the page of the command explains, each with the text on it."""
    text = page("fleece.8").split("\n.SH VERBS\n")[1].split("\n.SH ")[0]
    parts = re.split(r'^\.T[PQ]\n(?=\.B[IR]? "?[a-z])', text, flags=re.M)
    result = {}
    heads = []
    for part in parts:
        head = re.match(r'\.B[IR]? "?([a-z]+)', part)
        if not head:
            continue
        heads.append(head.group(1))
        # With .TQ, what several are explained by follows the last of them.
        for verb in heads:
            result[verb] = result.get(verb, "") + part
        if part.count("\n") > 1:
            heads = []
    return result


def same(got, wanted, what):
    """Two sets of words must be the same."""
    expect(got == wanted, "%s: missing %s, too many %s" % (
        what, sorted(wanted - got), sorted(got - wanted)))


def check_verb(verb, candidates, text):
    told = offered(verb)
    same(told | ALWAYS, taken(verb, candidates, told) | ALWAYS,
         "options in 'fleece %s --help'" % verb)
    missing = told - set(OPTION.findall(text)) - ALWAYS
    expect(not missing, "fleece(8) does not explain %s of %s" % (sorted(missing), verb))


def check_page(candidates):
    text = page("fleece.8").replace("nbdinfo --map", "")
    strange = set(OPTION.findall(text)) - candidates - parsed("fleeced/options.c")
    expect(not strange, "fleece(8) has %s, which nothing takes" % sorted(strange))


def check_fleeced():
    known = parsed("fleeced/options.c")
    expect(len(known) > 10, "the table of options was not found")
    text = page("fleeced.8")
    heads = re.findall(r"^\.TP\n\.BI?R? (.*)$", text.split("\n.SH OPTIONS\n")[1].split("\n.SH ")[0],
                       re.M)
    same(set(OPTION.findall(" ".join(heads))), known, "options that fleeced(8) explains")
    foreign = r"(?m)^\.?(?:certtool|nbdinfo|qemu-img|psktool|nbd-client|    ).*$|.*certtool.*"
    strange = set(OPTION.findall(re.sub(foreign, "", text))) - known
    expect(not strange, "fleeced(8) has %s, which it does not take" % sorted(strange))
    same(set(OPTION.findall(run(FLEECED, "--help")[1])), known, "options in 'fleeced --help'")


def check_statuses():
    statuses = set(re.findall(r"^\t[A-Z_]+ = (\d+),", read("fleece/report.h"), re.M))
    expect(len(statuses) > 5, "the statuses were not found")
    table = page("fleece.8").split("\n.SH EXIT STATUS\n")[1].split(".TE")[0]
    same(set(re.findall(r"^(\d+)\|", table, re.M)), statuses, "exit statuses in fleece(8)")
    text = run(FLEECE, "--help")[1].split("Exit status:")[1]
    same(set(re.findall(r"\d+", text)), statuses, "exit statuses in 'fleece --help'")


def check_synopsis(verb, text):
    """Words in capitals that are typed for things: nothing is left out of the page."""
    synopsis = run(FLEECE, verb, "--help")[1].splitlines()[0]
    words = set(re.findall(r"\b[A-Z]{3,}\b", synopsis)) - {"OPTION"}
    expect(words <= set(re.findall(r"[A-Z]{3,}", text)), "the page names %s of %s otherwise" % (
        sorted(words), verb))


def check_rendering(name):
    path = os.path.join(USERSPACE, name.rsplit(".", 1)[0], name)
    status, output = run("groff", "-t", "-man", "-Tutf8", "-ww", "-z", path)
    equal((status, output), (0, ""), "what groff says of the page")


def main():
    tap = Tap()
    candidates = parsed("fleece/*.c") | parsed("pull/main.c")
    texts = described()
    tap.run("fleece(8) explains each verb, and no other", same, set(texts), set(verbs()), "verbs")
    for verb in verbs():
        tap.run("options of fleece " + verb, check_verb, verb, candidates, texts.get(verb, ""))
        tap.run("arguments of fleece " + verb, check_synopsis, verb, texts.get(verb, ""))
    tap.run("fleece(8) has no option that nothing takes", check_page, candidates)
    tap.run("options of fleeced", check_fleeced)
    tap.run("exit statuses of fleece", check_statuses)
    for name in "fleece.8", "fleeced.8":
        title = "%s is well formed" % name
        if run("sh", "-c", "command -v groff")[0]:
            tap.skip(title, "groff is not installed")
        else:
            tap.run(title, check_rendering, name)
    return tap.finish()


if __name__ == "__main__":
    sys.exit(main())
