#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""This test will compare docs/nbd-conformance.rst with the tests that have run (TAP).

conformance.py [--update] TAP

TAP is what the other parts of ./run have printed. With --update the names of the
tests are written into the document instead.
"""
import os
import re
import sys

DOCUMENT = os.path.join(os.path.dirname(os.path.abspath(__file__)),
                        "../../docs/nbd-conformance.rst")
NUMBERS = [*range(1, 18), *range(20, 33), *range(40, 52), *range(60, 75), *range(80, 83)]
ITEM = re.compile(r"(?:C\d+|CVE-\d+-\d+)$")
NAMED = re.compile(r"\b(?:CVE-\d+-\d+|C\d+)\b")
TEST = re.compile(r"  \* ``(.*)``$")
NOT_YET = "  *Not yet.*"


def read_tap(path):
    """Titles of the tests that passed, and the items that any of them names."""
    passed, named = set(), {}
    with open(path) as lines:
        for line in lines:
            found = re.match(r"(not )?ok \d+ - (.*?)( # SKIP.*)?$", line)
            # Inside of the sandbox the same tests run once more, as do clients' elsewhere.
            if not found or re.match(r"(TLS )?sandboxed: ", found.group(2)):
                continue
            if not found.group(1) and not found.group(3):
                passed.add(found.group(2))
            for item in NAMED.findall(found.group(2)):
                named.setdefault(item, set()).add(found.group(2))
    return passed, named


def read_document():
    """Tests by item, and the items that say that they are not there yet."""
    tests, missing, item = {}, set(), None
    with open(DOCUMENT) as lines:
        for line in lines.read().splitlines():
            if ITEM.match(line):
                item = line
                tests[item] = []
            elif TEST.match(line):
                tests[item].append(TEST.match(line).group(1))
            elif line == NOT_YET:
                missing.add(item)
    return tests, missing


def update(named):
    """Write the tests that have run into the document."""
    result, item = [], None
    with open(DOCUMENT) as lines:
        text = re.sub(r"\n\n(?:  \* ``.*``\n)+|\n\n  \*Not yet\.\*\n", "\n", lines.read())
    blocks = re.split(r"\n\n", text.rstrip("\n"))
    for block in blocks:
        item = block.split("\n")[0]
        result.append(block)
        if ITEM.match(item):
            titles = sorted(named.get(item, ()))
            result.append("\n".join("  * ``%s``" % title for title in titles) or NOT_YET)
    with open(DOCUMENT, "w") as document:
        document.write("\n\n".join(result) + "\n")


def report(number, title, problems):
    """One case; returns whether it failed."""
    print("%sok %d - %s" % ("not " if problems else "", number, title))
    for problem in problems:
        print("#   " + problem)
    return bool(problems)


def main():
    passed, named = read_tap(sys.argv[-1])
    if sys.argv[1] == "--update":
        update(named)
        return 0
    tests, missing = read_document()
    wanted = {"C%d" % number for number in NUMBERS}
    items = {item for item in tests if not item.startswith("CVE")}
    failed = report(1, "the list of items is complete", sorted(items ^ wanted))
    failed |= report(2, "each item names tests, and says so itself in their titles",
                     ["%s: no test" % item for item in tests
                      if not tests[item] and item not in missing]
                     + ["%s: not named in: %s" % (item, title) for item in tests
                        for title in tests[item] if item not in NAMED.findall(title)])
    failed |= report(3, "each test that is named has run and passed",
                     ["%s: %s" % (item, title) for item in tests for title in tests[item]
                      if title not in passed])
    failed |= report(4, "each test that names an item is listed (else: make conformance)",
                     ["%s: %s" % (item, title) for item in sorted(named)
                      for title in sorted(named[item]) if title not in tests.get(item, ())])
    print("1..4")
    return failed


if __name__ == "__main__":
    sys.exit(main())
