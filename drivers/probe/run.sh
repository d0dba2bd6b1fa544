#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# run.sh OUTPUT PROBE_DIR COMPILER ARGUMENT...
#
# Writes OUTPUT, a header that defines HAVE_x for each PROBE_DIR/HAVE_x.c that
# the compiler accepts. baseline.c must compile and broken.c must not, else the
# answers would mean nothing, and the build stops here with the reason.
set -eu

output=$1
dir=$2
shift 2

compiles() {
	"$@" -c -o /dev/null "$source" >"$output.log" 2>&1
}

source=$dir/baseline.c
if ! compiles "$@"; then
	echo "dm-fleece: cannot compile for this kernel, so it cannot be probed:" >&2
	cat "$output.log" >&2
	exit 1
fi
source=$dir/broken.c
if compiles "$@"; then
	echo "dm-fleece: the compiler accepts a call of a function that does not exist" >&2
	exit 1
fi

{
	echo "/* Made by probe/run.sh: what this kernel has. */"
	for source in "$dir"/HAVE_*.c; do
		name=$(basename "$source" .c)
		if compiles "$@"; then
			echo "#define $name 1"
		else
			echo "/* $name: no */"
		fi
	done
} >"$output.new"
rm -f "$output.log"
mv "$output.new" "$output"
