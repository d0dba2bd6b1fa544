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
make_arena 96
make_disk disk $SECTORS
make_disk other $SECTORS
make_disk cow "$(cow_sectors 128 256)"
make_disk cow2 "$(cow_sectors 128 256)"
make_origin origin disk
or_bail pattern origin write 1 0 -

# test_changes WHAT ERROR DISCARD_ERROR: what writes and discards fail with.
test_changes()
{
	local written

	written="$(device_stat disk 7) $(device_stat cow 7)"
	gets "$1: a write is refused" "$2" snap write 2 0 4k
	gets "$1: a write of one sector is refused" "$2" snap write 2 512 512
	gets "$1: a write past all caches is refused" "$2" snap dsync 2 0 4k
	gets "$1: a large write is refused" "$2" snap huge 2 0 4M
	gets "$1: zeroes are refused" "$2" snap zero 0 64k
	[ -z "${3:-}" ] ||
		gets "$1: a discard that is not offered is refused" "$3" snap discard 0 64k
	is "$1: nothing was written below" "$(device_stat disk 7) $(device_stat cow 7)" "$written"
	gets "$1: nothing has changed" ok snap verify 1 0 -
	gets "$1: nor on the origin" ok origin verify 1 0 -
	gets "$1: nor below it" ok disk verify 1 0 -
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

# refuses_reload WHAT DISK COWDISK CLUSTER [FEATURES]
refuses_reload()
{
	log_mark
	fails "$1 is refused" "not supported" \
		dmsetup load "$PREFIX-snap" --table "$(snapshot_table "${@:2}")"
	expect_log "$1: the log says why" "arguments of a snapshot cannot be changed"
}

test_reload()
{
	local feature

	or_bail pattern origin write 2 0 1M
	wait_copied snap
	succeeds "the same table again can be loaded" \
		replace_table snap "$(snapshot_table disk cow 128)"
	gets "the snapshot is the same, copied part" ok snap verify 1 0 1M
	gets "the snapshot is the same, the rest" ok snap verify 1 1M -
	is "with the same copies" "$(snapshot_field snap copied)" 16
	refuses_reload "another cluster" disk cow 256
	refuses_reload "another COW device" disk cow2 128
	make_origin origin2 other
	refuses_reload "another origin" other cow 128
	for feature in "since start" "checkpoint start" "on_cbw_error break_cluster" \
		"cbw_timeout 1" "on_cow_full wait" "low_water 1" "staging 8"; do
		refuses_reload "$feature" disk cow 128 "2 $feature"
	done
	refuses_reload "release_on_discard" disk cow 128 "1 release_on_discard"
	is "no refused table is kept" \
		"$(dmsetup info -c --noheadings -o tables_loaded "$PREFIX-snap")" Live
	succeeds "the origin's same table again can be loaded" \
		replace_table origin "0 $SECTORS fleece $(path_of disk) - 128"
	or_bail pattern origin write 3 1M 1M
	gets "the snapshot is still of its time" ok snap verify 1 0 -
}

# A device that is read-only as a whole lets no write come as far as the target.
make_snapshot snap disk cow 128
test_changes "writable node" EPERM EOPNOTSUPP
test_in_use
test_reload
or_bail dm_remove snap
or_bail pattern origin write 1 0 2M
or_bail dm_create snap "$(snapshot_table disk cow 128)" --readonly
is "a node made read-only is read-only" "$(blockdev --getro "$(path_of snap)")" 1
test_changes "read-only node" EPERM EOPNOTSUPP
or_bail dm_remove snap
# That discards release needs one that can be written to.
make_snapshot snap disk cow 128 "1 release_on_discard"
is "a device that is to be discarded from can be written to" \
	"$(blockdev --getro "$(path_of snap)")" 0
test_changes "device for discards" EIO
finish
