#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""This test will let fleeced's protocol answer what a fuzzer makes up (TAP).

First the seeds and corpus.txt, which holds one input in hexadecimal on each line;
then new inputs for --seconds. An input that is answered wrongly, crashes, leaks or
hangs is saved; build/fuzz/fuzz FILE shows it again.
"""
import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
BUILD = HERE / "build"
FUZZER = BUILD / "fuzz" / "fuzz"
CORPUS = HERE / "corpus.txt"
KEPT = BUILD / "corpus"
FOUND = BUILD / "found"

# A session that takes longer than this hangs, also on a machine that is busy.
HANG_SECONDS = 60
OPTIONS = ["-max_len=8192", f"-timeout={HANG_SECONDS}", "-rss_limit_mb=2048",
           f"-artifact_prefix={FOUND}/", "-print_final_stats=1"]

CASES = []


def run(text, *arguments):
    """One run of the fuzzer, which is a case."""
    FOUND.mkdir(exist_ok=True)
    before = set(FOUND.iterdir())
    done = subprocess.run([FUZZER, *OPTIONS, *arguments], stdin=subprocess.DEVNULL,
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False,
                          encoding="utf-8", errors="replace")
    CASES.append(done.returncode == 0)
    print("ok" if CASES[-1] else "not ok", len(CASES), "-", text, flush=True)
    for line in done.stderr.splitlines():
        if not CASES[-1] or line.startswith("stat::number_of_executed_units"):
            print("#  ", line)
    for path in sorted(set(FOUND.iterdir()) - before):
        print(f"# the input: {path}, for {CORPUS.name}: {path.read_bytes().hex()}")


def unpack(directory):
    """The seeds, and corpus.txt as files."""
    subprocess.run([BUILD / "fuzz_seeds", directory], check=True)
    for number, line in enumerate(CORPUS.read_text().split()):
        (directory / f"corpus-{number:04}").write_bytes(bytes.fromhex(line))


def update(seeds):
    """corpus.txt becomes the least that covers what the seeds and build/corpus do."""
    with tempfile.TemporaryDirectory() as least:
        subprocess.run([FUZZER, *OPTIONS, "-use_counters=0", "-set_cover_merge=1", least, seeds, KEPT], check=True)
        inputs = {path.read_bytes() for path in pathlib.Path(least).iterdir()}
    CORPUS.write_text("".join(f"{data.hex()}\n" for data in sorted(inputs)))


def fuzz(seeds, arguments):
    """New inputs, kept for the next time or not."""
    seed = arguments.seed or int(time.time())
    print(f"# seed {seed}")
    with tempfile.TemporaryDirectory() as scratch:
        kept = pathlib.Path(scratch)
        if arguments.keep:
            kept = KEPT
            kept.mkdir(exist_ok=True)
        run(f"{arguments.seconds} seconds of new ones", f"-seed={seed}",
            f"-max_total_time={arguments.seconds}", kept, seeds)


def main():
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60, help="of new inputs")
    parser.add_argument("--seed", type=int, default=0, help="default: by the clock")
    parser.add_argument("--keep", action="store_true", help="use and extend build/corpus")
    parser.add_argument("--update", action="store_true", help="make corpus.txt new")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        seeds = pathlib.Path(scratch)
        unpack(seeds)
        if arguments.update:
            update(seeds)
            return 0
        run(f"{len(os.listdir(seeds))} known inputs are answered as they should be",
            "-runs=0", seeds)
        fuzz(seeds, arguments)
    print(f"1..{len(CASES)}")
    return 0 if all(CASES) else 1


sys.exit(main())
