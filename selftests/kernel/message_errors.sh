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
	local verb name long

	long=$(printf '%064d' 0)
	refuses_message "unknown message" "$INVALID" "unknown message 'frobnicate'" \
		origin frobnicate
	for verb in checkpoint_create checkpoint_delete; do
		refuses_message "$verb without name" "$INVALID" "unknown message '$verb' with 0" \
			origin $verb
		refuses_message "$verb with two names" "$INVALID" "unknown message '$verb' with 2" \
			origin $verb a b
		for name in -x .x a/b 'a:b' 'a*b' "$long"; do
			refuses_message "$verb $name" "$INVALID" "$verb .* errno 22: the name " \
				origin $verb "$name"
		done
	done
	refuses_message "checkpoint that exists" "File exists" \
		"checkpoint_create 'taken' .*errno 17" origin checkpoint_create taken
	refuses_message "checkpoint_delete of an unknown one" "No such" \
		"checkpoint_delete 'nobody' .*errno 2" origin checkpoint_delete nobody
	refuses_message "checkpoint_list with an argument" "$INVALID" \
		"unknown message 'checkpoint_list' with 1" origin checkpoint_list taken
	refuses_message "a snapshot's message to the origin" "$INVALID" \
		"unknown message 'release' with 2" origin release 0 128
}

test_snapshot()
{
	local range

	refuses_message "unknown message" "$INVALID" "unknown message 'frobnicate'" snap frobnicate
	refuses_message "an origin's message to the snapshot" "$INVALID" \
		"unknown message 'checkpoint_create'" snap checkpoint_create a
	refuses_message "cow_resize with an argument" "$INVALID" \
		"unknown message 'cow_resize' with 1" snap cow_resize 8
	refuses_message "release without range" "$INVALID" "unknown message 'release' with 0" \
		snap release
	refuses_message "release without length" "$INVALID" "unknown message 'release' with 1" \
		snap release 0
	refuses_message "release of too many numbers" "$INVALID" \
		"unknown message 'release' with 3" snap release 0 128 128
	for range in "x 128" "0 x" "-8 128" "0 -128" "0 128x" "99999999999999999999 8"; do
		# shellcheck disable=SC2086 # two words
		refuses_message "release $range" "$INVALID|out of range" "release|range|message" \
			snap release $range
	done
	for range in "$SECTORS 128" "0 $((SECTORS + 8))" "128 18446744073709551608"; do
		# shellcheck disable=SC2086 # two words
		refuses_message "release $range, beyond the end" "out of range" \
			"are beyond the end" snap release $range
	done
}

test_origin
test_snapshot
is "the origin is untouched" "$(status_of origin)" "$origin_before"
is "its checkpoints are untouched" "$(message origin checkpoint_list)" "$list_before"
is "the snapshot is untouched" "$(status_of snap)" "$snap_before"
finish
