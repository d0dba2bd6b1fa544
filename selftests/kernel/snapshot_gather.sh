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
# Of the COW device; in the middle of what is written at once.
BAD_SLOT=37

load_fleece
no_probing
make_arena 64
make_disk disk $SECTORS
make_disk cow "$(cow_sectors 8 1024)"
make_origin origin disk
or_bail pattern origin write 1 0 -
cow_size=$(blockdev --getsz "$(path_of cow)")
good_cow=$(slice_table cow)
bad_start=$((2048 + BAD_SLOT * 8))
bad_cow="0 $bad_start linear $ARENA ${DISK_START[cow]}
$bad_start 8 error
$((bad_start + 8)) $((cow_size - bad_start - 8)) linear $ARENA $((DISK_START[cow] + bad_start + 8))"

# overwrite [WRITERS]: CLUSTERS clusters of the origin with zeroes, each with a write of its
# own, by so many programs. With one, slots are in the order of clusters.
overwrite()
{
	local count=$((CLUSTERS / ${1:-1})) writer writers=()

	for ((writer = 0; writer < ${1:-1}; writer++)); do
		dd if=/dev/zero of="$(path_of origin)" bs=4k count="$count" \
			seek=$((writer * count)) oflag=direct status=none &
		writers+=($!)
	done
	for writer in "${writers[@]}"; do
		wait "$writer" || return
	done
}

cow_writes()
{
	device_stat cow 5
}

end_snapshot()
{
	or_bail dm_remove snap
	or_bail replace_table cow "$good_cow"
	or_bail pattern origin write 1 0 1M
}

test_together()
{
	local before

	make_snapshot snap disk cow 8
	before=$(cow_writes)
	# Those that begin within a jiffy are written together.
	succeeds "the live writes succeed" overwrite 4
	wait_copied snap || not_ok "all copies get to the COW device"
	is "each cluster was copied into a slot" "$(copied_and_used)" "$CLUSTERS $CLUSTERS"
	at_most "writes of the COW device" $(($(cow_writes) - before)) $((CLUSTERS * 3 / 4))
	gets "the snapshot has the old data" ok snap verify 1 0 1M
	gets "the origin the new" ok origin verify zero 0 $BYTES
	end_snapshot
}

test_bad_slot()
{
	or_bail replace_table cow "$bad_cow"
	make_snapshot snap disk cow 8 "2 on_cbw_error break_cluster"
	succeeds "a bad slot, break_cluster: the live writes succeed" overwrite
	wait_copied snap || not_ok "a bad slot: all other copies get to the COW device"
	is "a bad slot: one cluster is lost" \
		"$(snapshot_field snap state) $(snapshot_field snap lost)" "active 1"
	gets "a bad slot: those before it are right" ok snap verify 1 0 $((BAD_SLOT * 4096))
	gets "a bad slot: it cannot be read" EIO snap read $((BAD_SLOT * 4096)) 4096
	gets "a bad slot: those behind it are right" ok snap verify 1 $(((BAD_SLOT + 1) * 4096)) \
		$(((CLUSTERS - BAD_SLOT - 1) * 4096))
	end_snapshot
}

test_break()
{
	make_snapshot snap disk cow 8
	or_bail replace_table cow "0 $cow_size error"
	succeeds "a bad device: the live writes succeed" overwrite
	wait_until 30 snapshot_field_is snap state broken
	is "a bad device: the snapshot is broken with EIO" \
		"$(snapshot_field snap state) $(snapshot_field snap errno)" "broken 5"
	wait_copied snap || not_ok "a bad device: the copies under way end"
	is "a bad device: nothing is left in RAM" "$(snapshot_field snap staged)" 0
	gets "a bad device: no read succeeds" EIO snap read 0 $BYTES
	end_snapshot
}

# The COW device holds what it is given until it is resumed.
test_release()
{
	make_snapshot snap disk cow 8
	defer dmsetup resume "$PREFIX-cow"
	or_bail dmsetup suspend --nolockfs --noflush "$PREFIX-cow"
	succeeds "a device that stalls: the live writes succeed" overwrite
	is "a device that stalls: the old data is in RAM" "$(snapshot_field snap staged)" $BYTES
	gets "a device that stalls: and is read from there" ok snap verify 1 0 1M
	or_bail message snap release 0 $((CLUSTERS * 8 / 2))
	or_bail dmsetup resume "$PREFIX-cow"
	wait_copied snap || not_ok "a device that stalls: it takes the data in the end"
	is "released meanwhile, clusters have no slots" "$(snapshot_field snap used)" \
		$((CLUSTERS / 2))
	gets "and cannot be read" ENODATA snap read 0 $((BYTES / 2))
	gets "the others are right" ok snap verify 1 $((BYTES / 2)) $((BYTES / 2))
	end_snapshot
}

test_together
test_bad_slot
test_break
test_release
finish
