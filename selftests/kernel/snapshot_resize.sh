#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will grow the COW device of a live snapshot: the message and a resume
# take up the new slots, writes that wait for one go on, what was copied before
# stays where it is, and a COW device that has become smaller is refused.
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=65536
CLUSTER=8
load_fleece
make_arena 128
make_disk disk $SECTORS
make_disk cow "$(cow_sectors $CLUSTER 8192)"
make_origin origin disk
or_bail pattern origin write 1 0 -

# cow_table SLOTS: a COW device with so many slots, on the same sectors.
cow_table()
{
	echo "0 $(cow_sectors $CLUSTER "$1") linear $ARENA ${DISK_START[cow]}"
}

# resize_cow SLOTS
resize_cow()
{
	or_bail replace_table cow "$(cow_table "$1")"
}

free_slots()
{
	echo $(($(snapshot_field snap total) - $(snapshot_field snap used)))
}

# A full snapshot with a writer that waits, grown until all of the origin fits.
test_waiting_writes()
{
	local slots

	resize_cow 4
	make_snapshot snap disk cow $CLUSTER "4 on_cow_full wait cbw_timeout 0"
	is "slots at first" "$(snapshot_field snap total)" 4
	dmsetup wait "$PREFIX-snap" > "$SCRATCH/event" 2>&1 &
	waiter=$!
	pattern origin write 2 0 - > "$SCRATCH/write" 2>&1 &
	writer=$!
	succeeds "the writer has to wait" wait_until 30 snapshot_field_is snap used 4
	wait $waiter
	is "there is an event" "$?" 0
	for slots in 5 300 1000 8192; do
		resize_cow $slots
		is "with $slots slots: the device alone is not enough" \
			"$(($(snapshot_field snap total) < slots))" 1
		succeeds "with $slots slots: the message" message snap cow_resize
		is "with $slots slots: the status" "$(snapshot_field snap total)" $slots
	done
	wait $writer
	is "the writer succeeds" "$(cat "$SCRATCH/write")" ok
	wait_copied snap
	is "all is copied" "$(copied_and_used)" "8192 8192"
	gets "the snapshot has all old data" ok snap verify 1 0 -
	gets "the origin has all new data" ok origin verify 2 0 -
	or_bail dm_remove snap
	or_bail pattern origin write 1 0 -
}

# Slots that come free below, and owners from before and after.
test_mixed()
{
	resize_cow 1024
	make_snapshot snap disk cow $CLUSTER
	or_bail pattern origin write 2 0 3M
	wait_copied snap
	or_bail message snap release 0 1024
	is "slots in use before" "$(snapshot_field snap used)" 640
	resize_cow 8192
	succeeds "growing" message snap cow_resize
	is "slots in use after" "$(snapshot_field snap used)" 640
	gets "data from before" ok snap verify 1 512k -
	or_bail pattern origin write 3 3M -
	wait_copied snap
	gets "data from before and after" ok snap verify 1 512k -
	is "all is copied" "$(snapshot_field snap used)" 8064
	or_bail message snap release 4096 4096
	is "a release frees slots" "$(snapshot_field snap used)" 7552
	gets "the rest is right" ok snap verify 1 4M -
	or_bail dm_remove snap
	or_bail pattern origin write 1 0 -
}

# A resume does what the message does.
test_resume()
{
	resize_cow 100
	make_snapshot snap disk cow $CLUSTER "2 low_water 50"
	or_bail dmsetup suspend "$PREFIX-snap"
	resize_cow 200
	or_bail dmsetup resume "$PREFIX-snap"
	is "a resume takes up new slots" "$(snapshot_field snap total)" 200
	is "a message then changes nothing" "$(message snap cow_resize && free_slots)" 200
	or_bail dm_remove snap
}

test_refusals()
{
	resize_cow 200
	make_snapshot snap disk cow $CLUSTER
	or_bail pattern origin write 2 0 400k
	wait_copied snap
	resize_cow 150
	refuses_message "a smaller COW device" "$INVALID" "smaller" snap cow_resize
	is "nothing is changed" "$(snapshot_field snap total) $(snapshot_field snap used)" "200 100"
	gets "the snapshot is right" ok snap verify 1 0 -
	resize_cow 200
	refuses_message "an argument too many" "$INVALID" "cow_resize" snap cow_resize 300
	or_bail pattern origin write 2 400k 1M
	wait_until 20 snapshot_field_is snap state broken
	refuses_message "a broken snapshot" "error|EIO" "not active" snap cow_resize
	or_bail dm_remove snap
	or_bail pattern origin write 1 0 -
}

# Readers and writers at work while the hash chains are moved.
test_under_load()
{
	local i

	resize_cow 16
	make_snapshot snap disk cow $CLUSTER "4 on_cow_full wait cbw_timeout 0"
	pattern origin write 2 0 - > "$SCRATCH/write" 2>&1 &
	writer=$!
	for ((i = 64; i < 8192; i *= 2)); do
		resize_cow $i
		or_bail message snap cow_resize
		gets "reading while it grows to $i slots" ok snap verify 1 0 4M
	done
	resize_cow 8192
	or_bail message snap cow_resize
	wait $writer
	is "the writer succeeds" "$(cat "$SCRATCH/write")" ok
	gets "all of it is right" ok snap verify 1 0 -
	or_bail dm_remove snap
}

INVALID="nvalid argument"
test_waiting_writes
test_mixed
test_resume
test_refusals
test_under_load
finish
