#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will try to change a snapshot in every way, and to give it and its
# origin away while they are in use.
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=32760
load_fleece
make_arena 64
make_disk disk $SECTORS
make_disk cow "$(cow_sectors 128 256)"
make_origin origin disk
or_bail pattern origin write 1 0 -

# refuses_change NAME VERB...
refuses_change()
{
	local result

	result=$(pattern "${@:2}" 2>&1)
	like "$1 is refused" "$result" "^E[A-Z]+$"
}

test_changes()
{
	refuses_change "$1: a write" snap write 2 0 4k
	refuses_change "$1: a write of one sector" snap write 2 512 512
	refuses_change "$1: a large write" snap write 2 0 4M
	refuses_change "$1: zeroes" snap zero 0 64k
	refuses_change "$1: a discard that is not offered" snap discard 0 64k
	gets "$1: nothing has changed" ok snap verify 1 0 -
	gets "$1: nor on the origin" ok origin verify 1 0 -
	is "$1: nothing was copied" "$(status_of snap)" "active 0/256 128 256/256 0 0 0 0 0 0 0"
}

test_in_use()
{
	exec 8< "$(path_of snap)"
	fails "an open snapshot is not removed" "busy" dmsetup remove "$PREFIX-snap"
	gets "it can still be read" ok snap verify 1 0 1M
	exec 8<&-
	exec 8< "$(path_of origin)"
	fails "an open origin is not removed" "busy" dmsetup remove "$PREFIX-origin"
	exec 8<&-
}

test_reload()
{
	or_bail pattern origin write 2 0 1M
	wait_copied snap
	succeeds "the same table again can be loaded" \
		replace_table snap "$(snapshot_table disk cow 128)"
	gets "the snapshot is the same, copied part" ok snap verify 1 0 1M
	gets "the snapshot is the same, the rest" ok snap verify 1 1M -
	is "with the same copies" "$(snapshot_field snap copied)" 16
	log_mark
	fails "another cluster is refused" "failed" \
		dmsetup load "$PREFIX-snap" --table "$(snapshot_table disk cow 256)"
	expect_log "and the log says why" "table|cluster"
	succeeds "the origin's same table again can be loaded" \
		replace_table origin "0 $SECTORS fleece $(path_of disk) - 128"
	or_bail pattern origin write 3 1M 1M
	gets "the snapshot is still of its time" ok snap verify 1 0 -
}

make_snapshot snap disk cow 128
test_changes "writable node"
test_in_use
test_reload
or_bail dm_remove snap
or_bail pattern origin write 1 0 2M
or_bail dm_create snap "$(snapshot_table disk cow 128)" --readonly
is "a node made read-only is read-only" "$(blockdev --getro "$(path_of snap)")" 1
test_changes "read-only node"
finish
