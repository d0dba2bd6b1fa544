#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will send both targets every kind of malformed message: each fails
# with its errno, with the reason in the kernel's log, and changes nothing.
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=32760
INVALID="Invalid argument"
load_fleece
make_arena 64
make_disk disk $SECTORS
make_disk cow "$(cow_sectors 128 256)"
make_origin origin disk
or_bail message origin checkpoint_create taken
make_snapshot snap disk cow 128
origin_before=$(status_of origin)
snap_before=$(status_of snap)
list_before=$(message origin checkpoint_list)

test_origin()
{
	local name long

	long=$(printf '%064d' 0)
	refuses_message "unknown message" "$INVALID" "message|unknown" origin frobnicate
	refuses_message "checkpoint_create without name" "$INVALID" "checkpoint_create|argument|message" \
		origin checkpoint_create
	refuses_message "checkpoint_create with two names" "$INVALID" "checkpoint_create|argument|message" \
		origin checkpoint_create a b
	for name in -x .x a/b 'a:b' 'a*b' "$long"; do
		refuses_message "checkpoint named $name" "$INVALID" "name" \
			origin checkpoint_create "$name"
	done
	refuses_message "checkpoint that exists" "File exists" "checkpoint_create.*taken.*(exist|errno 17)" \
		origin checkpoint_create taken
	refuses_message "checkpoint_delete without name" "$INVALID" "checkpoint_delete|argument|message" \
		origin checkpoint_delete
	refuses_message "checkpoint_delete of an unknown one" "No such" "checkpoint" \
		origin checkpoint_delete nobody
	refuses_message "checkpoint_list with an argument" "$INVALID" "checkpoint_list|argument|message" \
		origin checkpoint_list taken
	refuses_message "a snapshot's message to the origin" "$INVALID" "message|unknown" \
		origin release 0 128
}

test_snapshot()
{
	local range

	refuses_message "unknown message" "$INVALID" "message|unknown" snap frobnicate
	refuses_message "an origin's message to the snapshot" "$INVALID" "message|unknown" \
		snap checkpoint_create a
	refuses_message "cow_resize with an argument" "$INVALID" "cow_resize" snap cow_resize 8
	refuses_message "release without range" "$INVALID" "release|argument|message" snap release
	refuses_message "release without length" "$INVALID" "release|argument|message" snap release 0
	refuses_message "release of too many numbers" "$INVALID" "release|argument|message" \
		snap release 0 128 128
	for range in "x 128" "0 x" "-8 128" "0 -128" "0 128x" "99999999999999999999 8"; do
		# shellcheck disable=SC2086 # two words
		refuses_message "release $range" "$INVALID|out of range" "release|range|message" \
			snap release $range
	done
	for range in "$SECTORS 128" "0 $((SECTORS + 8))" "128 18446744073709551608"; do
		# shellcheck disable=SC2086 # two words
		refuses_message "release $range, beyond the end" "$INVALID|out of range" \
			"release|range|end" snap release $range
	done
}

test_origin
test_snapshot
is "the origin is untouched" "$(status_of origin)" "$origin_before"
is "its checkpoints are untouched" "$(message origin checkpoint_list)" "$list_before"
is "the snapshot is untouched" "$(status_of snap)" "$snap_before"
finish
