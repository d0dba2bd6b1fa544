#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will overwrite many small clusters, one after the other: their old data gets
# to the COW device together, in fewer writes than there are copies, and each is right.
# What goes wrong with one cluster of such a write costs no other one, and clusters that
# are released meanwhile leave no slot behind.
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=32768
CLUSTERS=128
BYTES=$((CLUSTERS * 4096))
# What it takes to hold up the worker that stores copies: four are under way, one waits.
PLUG=5
PLUG_AT=$((8 << 20))
# Of the COW device; in the middle of what is written at once.
BAD_CLUSTER=37
BAD_SLOT=$((PLUG + BAD_CLUSTER))

load_fleece
no_probing
make_arena 64
make_disk disk $SECTORS
cow_size=$(cow_sectors 8 1024)
make_disk hold "$cow_size"
make_narrow cow "$cow_size"
make_origin origin disk
or_bail pattern origin write 1 0 -
good_cow=$(dmsetup table "$PREFIX-cow")
loop=$(cut -d' ' -f4 <<< "$good_cow")
bad_start=$((2048 + BAD_SLOT * 8))
bad_cow="0 $bad_start linear $loop 0
$bad_start 8 error
$((bad_start + 8)) $((cow_size - bad_start - 8)) linear $loop $((bad_start + 8))"

# plug: from now on the COW device ends nothing, and copies pile up.
plug()
{
	local i

	defer dmsetup resume "$PREFIX-cow-below"
	stall cow-below
	for ((i = 0; i < PLUG; i++)); do
		or_bail pattern origin write 2 $((PLUG_AT + i * 4096)) 4k
		wait_until 30 has_flying cow $((i + 1)) || bail "preparation: each is written alone"
	done
}

# unplug [TABLE]: what has stalled goes to the table that it finds.
unplug()
{
	[ $# -eq 0 ] || or_bail dmsetup load "$PREFIX-cow-below" --table "$1"
	unstall cow-below
}

# overwrite: CLUSTERS clusters of the origin with zeroes, each with a write of its own.
overwrite()
{
	dd if=/dev/zero "of=$(path_of origin)" bs=4k count="$CLUSTERS" oflag=direct status=none
}

cow_writes()
{
	device_stat cow 5
}

end_snapshot()
{
	or_bail dm_remove snap
	or_bail replace_table cow "$good_cow"
	or_bail replace_table cow-below "$(slice_table cow-below)"
	or_bail pattern origin write 1 0 1M
	or_bail pattern origin write 1 $PLUG_AT 64k
}

test_together()
{
	local before

	make_snapshot snap disk cow 8
	before=$(cow_writes)
	plug
	succeeds "the live writes succeed" overwrite
	is "the old data is in RAM" "$(snapshot_field snap staged)" $((PLUG * 4096 + BYTES))
	gets_now "and is read from there" ok snap verify 1 0 1M
	unplug
	wait_copied snap || not_ok "all copies get to the COW device"
	is "each cluster was copied into a slot" "$(copied_and_used)" \
		"$((PLUG + CLUSTERS)) $((PLUG + CLUSTERS))"
	is "writes of the COW device, each of 256 KiB at the most" \
		$(($(cow_writes) - before)) $((PLUG + BYTES / 262144))
	gets "the snapshot has the old data" ok snap verify 1 0 -
	gets "the origin the new" ok origin verify zero 0 $BYTES
	end_snapshot
}

test_bad_slot()
{
	local before

	or_bail replace_table cow "$bad_cow"
	make_snapshot snap disk cow 8 "2 on_cbw_error break_cluster"
	before=$(cow_writes)
	plug
	succeeds "a bad slot, break_cluster: the live writes succeed" overwrite
	unplug
	wait_copied snap || not_ok "a bad slot: all other copies get to the COW device"
	is "a bad slot: one cluster is lost" \
		"$(snapshot_field snap state) $(snapshot_field snap lost)" "active 1"
	at_most "a bad slot: writes, as the clusters of one are written again, each alone" \
		$(($(cow_writes) - before)) $((CLUSTERS * 3 / 4))
	gets "a bad slot: those before it are right" ok snap verify 1 0 $((BAD_CLUSTER * 4096))
	gets "a bad slot: it cannot be read" EIO snap read $((BAD_CLUSTER * 4096)) 4096
	gets "a bad slot: those behind it are right" ok \
		snap verify 1 $(((BAD_CLUSTER + 1) * 4096)) -
	end_snapshot
}

test_break()
{
	make_snapshot snap disk cow 8
	plug
	succeeds "a bad device: the live writes succeed" overwrite
	unplug "0 $cow_size error"
	wait_until 30 snapshot_field_is snap state broken
	is "a bad device: the snapshot is broken with EIO" \
		"$(snapshot_field snap state) $(snapshot_field snap errno)" "broken 5"
	wait_copied snap || not_ok "a bad device: the copies under way end"
	is "a bad device: nothing is left in RAM" "$(snapshot_field snap staged)" 0
	gets "a bad device: no read succeeds" EIO snap read 0 $BYTES
	end_snapshot
}

# Released are a half of each write that is under way.
test_release()
{
	local half=$((BYTES / 4)) first=$((2048 + PLUG * 8))

	make_snapshot snap disk cow 8
	plug
	succeeds "a device that stalls: the live writes succeed" overwrite
	defer dmsetup resume "$PREFIX-hold"
	stall hold
	unplug "0 $first linear $ARENA ${DISK_START[cow-below]}
$first $((cow_size - first)) linear $(path_of hold) $first"
	wait_until 30 snapshot_field_is snap staged $BYTES
	wait_until 30 has_flying cow 2
	is "a device that stalls: the rest is under way" \
		"$(snapshot_field snap staged) $(device_stat cow 9)" "$BYTES 2"
	or_bail message snap release 0 $((half / 512))
	or_bail message snap release $((2 * half / 512)) $((half / 512))
	unstall hold
	wait_copied snap || not_ok "a device that stalls: it takes the data in the end"
	is "released meanwhile, clusters have no slots" "$(snapshot_field snap used)" \
		$((PLUG + CLUSTERS / 2))
	gets "and cannot be read" ENODATA snap read 0 $half
	gets "the others are right" ok snap verify 1 $half $half
	gets "neither can those of the other write" ENODATA snap read $((2 * half)) $half
	gets "of which the others are right too" ok snap verify 1 $((3 * half)) -
	end_snapshot
}

# What is gathered has no slot on the COW device when it is released.
test_release_early()
{
	make_snapshot snap disk cow 8
	plug
	or_bail overwrite
	or_bail message snap release 0 $((BYTES / 2 / 512))
	unplug
	wait_copied snap || not_ok "released before it is written: the other copies go on"
	is "released before it is written, nothing has a slot" "$(snapshot_field snap used)" \
		$((PLUG + CLUSTERS / 2))
	gets "released before it is written, nothing can be read" ENODATA snap read 0 $((BYTES / 2))
	gets "the others are right" ok snap verify 1 $((BYTES / 2)) -
	end_snapshot
}

test_together
test_bad_slot
test_break
test_release
test_release_early
finish
