#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will keep several snapshots of one origin, of different moments, with
# clusters, policies and lives of their own: each is right, and what happens to
# one of them disturbs neither the others nor the live writes.
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=32768
TIMEOUT_MS=$((3000 * ${FLEECE_SLOWDOWN:-1}))
load_fleece
no_probing
make_arena 128
make_disk disk $SECTORS
make_disk cow-a $((2048 + SECTORS))
make_disk cow-b $((2048 + SECTORS))
make_disk cow-c $((2048 + SECTORS))
make_disk small "$(cow_sectors 128 2)"
make_disk small-b "$(cow_sectors 128 2)"
make_origin origin disk
or_bail pattern origin write 1 0 -

# write_in_background OFFSET LENGTH
write_in_background()
{
	pattern origin write 9 "$1" "$2" > "$SCRATCH/write" 2>&1 &
	writer=$!
}

end_all()
{
	local name

	for name in "$@"; do
		or_bail dm_remove "$name"
	done
	is "without them the origin counts none" "$(origin_field origin snapshots)" 0
	or_bail pattern origin write 1 0 -
}

# Three moments with one write between them, in clusters of three sizes.
test_moments()
{
	make_snapshot a disk cow-a 128
	or_bail pattern origin write 2 1M 1M
	make_snapshot b disk cow-b 8
	or_bail pattern origin write 3 1536k 1M
	make_snapshot c disk cow-c 1024 "2 staging 0"
	is "the origin counts them" "$(origin_field origin snapshots)" 3
	or_bail pattern origin write 4 0 -
	gets "the first: all of it is of its moment" ok a verify 1 0 -
	gets "the second: what was written before it" ok b verify 2 1M 1M
	gets "the second: what was not, before" ok b verify 1 0 1M
	gets "the second: what was not, after" ok b verify 1 2M -
	gets "the third: written by the first write" ok c verify 2 1M 512k
	gets "the third: written by the second write" ok c verify 3 1536k 1M
	gets "the third: not written" ok c verify 1 2560k -
	for name in a b c; do
		wait_copied "$name"
		is "$name is active, and has copied all" \
			"$(snapshot_field "$name" state) $(snapshot_field "$name" copied)" \
			"active $(snapshot_field "$name" clusters)"
	done
	or_bail dm_remove b
	gets "one of them removed: the first is right" ok a verify 1 0 -
	gets "one of them removed: so is the third" ok c verify 3 1536k 1M
	is "one of them removed: two are left" "$(origin_field origin snapshots)" 2
	end_all a c
}

# What several need of the same old data is read once, whatever their clusters.
test_read_once()
{
	local before

	make_snapshot a disk cow-a 128
	make_snapshot b disk cow-b 8
	make_snapshot c disk cow-c 128 "2 staging 0"
	before=$(device_stat disk 3)
	or_bail pattern origin write 2 1M 1M
	or_bail pattern origin write 2 8M 64k
	for name in a b c; do
		wait_copied "$name"
	done
	at_most "the old data of 1088 KiB is read once" $(($(device_stat disk 3) - before)) 2176
	is "all have copied it" "$(snapshot_field a copied) $(snapshot_field b copied) \
$(snapshot_field c copied)" "17 272 17"
	for name in a b c; do
		gets "$name has it" ok "$name" verify 1 0 -
	done
	or_bail dm_remove a
	or_bail pattern origin write 2 4M 4k
	wait_copied b
	wait_copied c
	is "clusters of another size: each has copied its own" \
		"$(snapshot_field b copied) $(snapshot_field c copied)" "273 18"
	gets "and both are right" ok b verify 1 4M 64k
	gets "and both are right, too" ok c verify 1 4M 64k
	end_all b c
}

# Each has its own checkpoint to begin with.
test_since()
{
	or_bail message origin checkpoint_create first
	or_bail pattern origin write 2 1M 128k
	or_bail message origin checkpoint_create second
	or_bail pattern origin write 3 4M 64k
	make_snapshot a disk cow-a 128 "2 since first"
	or_bail pattern origin write 4 8M 64k
	make_snapshot b disk cow-b 128 "2 since second"
	or_bail pattern origin write 5 0 -
	gets "since first: changed between the checkpoints" ok a verify 2 1M 128k
	gets "since first: changed later" ok a verify 3 4M 64k
	gets "since first: nothing else" ENODATA a read 8M 4k
	gets "since second: changed before it" ENODATA b read 1M 4k
	gets "since second: changed after it" ok b verify 3 4M 64k
	gets "since second: changed while the other snapshot was there" ok b verify 4 8M 64k
	or_bail message origin checkpoint_delete first
	or_bail message origin checkpoint_delete second
	end_all a b
}

test_one_breaks()
{
	make_snapshot a disk cow-a 128
	make_snapshot b disk small 128
	make_snapshot c disk cow-c 128 "2 staging 0"
	gets "one full: the write succeeds" ok origin write 2 1M 1M
	wait_until 20 snapshot_field_is b state broken
	is "one full: it is broken" "$(snapshot_field b state) $(snapshot_field b errno)" "broken 28"
	gets "one full: it cannot be read" EIO b read 0 4k
	for name in a c; do
		is "one full: $name is active" "$(snapshot_field "$name" state)" active
		gets "one full: $name is right" ok "$name" verify 1 0 -
	done
	gets "one full: writes go on" ok origin write 3 4M 1M
	gets "one full: and the third stays right" ok c verify 1 0 -
	or_bail dm_remove b
	gets "the broken one removed: the others are right" ok a verify 1 0 -
	end_all a c
}

# A write waits for one of them; the others have their copy, and its life goes on.
test_one_stalls()
{
	make_snapshot a disk small 128 "4 on_cow_full wait cbw_timeout 0"
	or_bail pattern origin write 2 1M 128k
	wait_copied a
	make_snapshot b disk cow-b 128
	write_in_background 4M 64k
	wait_until 30 snapshot_field_is a waiting 1 || bail "one waits: the write waits for it"
	ok "one waits: the write waits for it"
	wait_until 30 snapshot_field_is b copied 1
	is "one waits: the other has made its copy" "$(snapshot_field b copied)" 1
	gets "one waits: the other is right" ok b verify 1 4M 64k
	gets "one waits: so is what it had before" ok b verify 2 1M 128k
	gets "one waits: another write, which it has no need of, goes on" ok origin write 3 1M 4k
	or_bail dm_remove b
	is "the other can be removed meanwhile" "$(origin_field origin snapshots)" 1
	or_bail message a release 2048 128
	wait $writer
	is "one waits: with a slot the write succeeds" "$(cat "$SCRATCH/write")" ok
	gets "one waits: and its copy is right" ok a verify 1 4M 64k
	end_all a
}

# shellcheck disable=SC2317 # called by wait_until
is_waited_for_or_broken()
{
	[ "$(snapshot_field "$1" waiting) $(snapshot_field "$1" state)" != "0 active" ]
}

# A write that waits for one after the other: what it has waited for the first one is not
# of the second one's time.
test_own_time()
{
	make_snapshot a disk small 128 "4 on_cow_full wait cbw_timeout 0"
	make_snapshot b disk small-b 128 "4 on_cow_full wait cbw_timeout $TIMEOUT_MS"
	or_bail pattern origin write 2 1M 128k
	wait_copied a
	wait_copied b
	write_in_background 4M 64k
	wait_until 30 snapshot_field_is a waiting 1 || bail "both full: the first is waited for"
	# By now the second one's time would be over.
	sleep $((TIMEOUT_MS / 1000))
	or_bail message a release 2048 128
	wait_until 30 is_waited_for_or_broken b || bail "both full: the second is waited for"
	or_bail message b release 2048 128
	wait $writer
	is "both full: with a slot in each the write succeeds" "$(cat "$SCRATCH/write")" ok
	is "both full: the time of the second begins when the write waits for it" \
		"$(snapshot_field b state) $(snapshot_field b errno)" "active 0"
	gets "both full: the copy of the first is right" ok a verify 1 4M 64k
	gets "both full: the copy of the second is right" ok b verify 1 4M 64k
	end_all a b
}

# Removed while a write waits for it: the write goes on, and waits for the next.
test_removed_while_waiting()
{
	make_snapshot a disk small 128 "4 on_cow_full wait cbw_timeout 0"
	make_snapshot b disk cow-b 128 "2 staging 0"
	or_bail pattern origin write 2 1M 128k
	wait_copied a
	write_in_background 4M 64k
	wait_until 30 snapshot_field_is a waiting 1 || bail "removed: the write waits"
	or_bail dm_remove a
	wait $writer
	is "removed: the write succeeds" "$(cat "$SCRATCH/write")" ok
	gets "removed: the other has the old data" ok b verify 1 0 -
	end_all b
}

# slow_reads: of the disk, but for its first 64 KiB.
slow_reads()
{
	local start=${DISK_START[disk]}
	local rest="$ARENA $((start + 128))"

	replace_lines disk <<-END
		0 128 linear $ARENA $start
		128 $((SECTORS - 128)) delay $rest 300000 $rest 0
	END
}

# One reads old data, of which a part is released and overwritten, and then another one is
# made: of that part it has to read for itself.
test_released_while_read()
{
	local first second third

	if ! has_module dm-delay; then
		skip "released while read: one reads for itself" "dm-delay is missing"
		return
	fi
	make_snapshot a disk cow-a 128 "2 cbw_timeout 0"
	defer replace_table disk "$(slice_table disk)"
	or_bail slow_reads
	in_background first pattern origin write 2 0 128k
	first=$background
	wait_until 20 snapshot_field_is a waiting 1 || bail "released while read: a write waits"
	in_background second pattern origin write 3 0 4k
	second=$background
	wait_until 20 snapshot_field_is a waiting 2 || bail "released while read: another waits"
	or_bail message a release 0 128
	wait $second
	is "released while read: who needs no more than that goes on" "$(cat "$SCRATCH/second")" ok
	make_snapshot b disk cow-b 128 "2 cbw_timeout 0"
	in_background third pattern origin write 4 0 128k
	third=$background
	wait_until 20 snapshot_field_is a waiting 2 || bail "released while read: a third waits"
	or_bail replace_table disk "$(slice_table disk)"
	wait $first $third
	is "released while read: so do the others in the end" \
		"$(sort -u "$SCRATCH/first" "$SCRATCH/third")" ok
	gets "released while read: the later one has what was written before it" ok \
		b verify 3 0 4k
	gets "released while read: and what was not" ok b verify 1 4k -
	gets "released while read: the other has the rest" ok a verify 1 64k -
	end_all a b
}

# Its own writes fail with break_write, also if it is not the first.
test_write_policy()
{
	make_snapshot a disk cow-a 128
	make_snapshot b disk small 128 "2 on_cbw_error break_write"
	or_bail pattern origin write 2 1M 128k
	gets "break_write of one: the write fails" ENOSPC origin write 2 4M 64k
	gets "break_write of one: the origin keeps its data" ok origin verify 1 4M 64k
	is "break_write of one: both are active" \
		"$(snapshot_field a state) $(snapshot_field b state)" "active active"
	gets "break_write of one: it is right" ok b verify 1 0 -
	gets "break_write of one: so is the other" ok a verify 1 0 -
	or_bail dm_remove b
	gets "without it the write succeeds" ok origin write 2 4M 64k
	gets "without it the other is right" ok a verify 1 0 -
	end_all a
}

# The origin's device is replaced: all of them break.
test_lost_origin()
{
	make_snapshot a disk cow-a 128
	make_snapshot b disk cow-b 128
	or_bail dmsetup suspend "$PREFIX-origin"
	or_bail dmsetup load "$PREFIX-origin" --table "0 $SECTORS linear $(path_of disk) 0"
	or_bail dmsetup resume "$PREFIX-origin"
	for name in a b; do
		wait_until 20 snapshot_field_is "$name" state broken
		is "origin replaced: $name is broken" \
			"$(snapshot_field "$name" state) $(snapshot_field "$name" errno)" "broken 19"
		gets "origin replaced: $name cannot be read" EIO "$name" read 0 4k
		or_bail dm_remove "$name"
	done
}

test_moments
test_read_once
test_since
test_one_breaks
test_one_stalls
test_own_time
test_removed_while_waiting
test_released_while_read
test_write_policy
test_lost_origin
finish
