#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will resume tables that were right when they were loaded and are not any
# more: the origin is gone, checkpoints have come and gone, the origin has grown, or a
# write of it does not come to an end. Each is refused with a reason, and all goes on.
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SMALL=16384
LARGE=32768
# What of the disk can be suspended, so that writes there do not end.
PART=2048
load_fleece
make_arena 48
make_disk first $PART
make_disk rest $((LARGE - PART))
make_disk cow "$(cow_sectors 128 256)"
printf '%s\n' "0 $PART linear $(path_of first) 0" \
	"$PART $((LARGE - PART)) linear $(path_of rest) 0" > "$SCRATCH/table"
or_bail dmsetup create "$PREFIX-disk" "$SCRATCH/table"
make_nodes
defer dm_remove_deferred disk

origin_table()
{
	echo "0 $1 fleece $(path_of disk) - 128"
}

# start_origin SECTORS
start_origin()
{
	or_bail dm_create origin "$(origin_table "$1")"
	or_bail pattern origin write 1 0 -
}

minor_of()
{
	echo $(($(dmsetup info -c --noheadings -o minor "$PREFIX-$1")))
}

size_of_origin()
{
	blockdev --getsz "$(path_of origin)"
}

# is_not_taken WHAT: a table that is loaded, or was refused, answers all that is asked.
is_not_taken()
{
	local node

	node=/dev/dm-$(minor_of late)
	like "$1: the status says so" "$(status_of late)" "^broken 0/256 .* 0 0 0 0 0 11 0$"
	succeeds "$1: a release does nothing" message late release 0 128
	fails "$1: it does not grow" "Input/output error" message late cow_resize
	is "$1: it has no maps" "$("$FLEECE_TEST_BIN/fleece-maps" "$node" info)" ENODEV
}

# load_late [FEATURES]: a snapshot that is not taken before it is resumed.
load_late()
{
	or_bail dmsetup create "$PREFIX-late" --notable
	or_bail dmsetup load "$PREFIX-late" --table \
		"0 $LARGE fleece-snapshot $(path_of disk) $(path_of cow) 128 ${1:-}"
	like "a table that is loaded is no snapshot" \
		"$(dmsetup status --inactive "$PREFIX-late")" " broken .* 11 0$"
}

# refuses_late WHAT ERROR LOG
refuses_late()
{
	log_mark
	fails "$1: refused" "$2" dmsetup resume "$PREFIX-late"
	expect_log "$1: the log says why" "snapshot not taken: $3"
	is_not_taken "$1"
	succeeds "$1: it can be removed" dm_remove late
}

test_no_origin()
{
	start_origin $LARGE
	load_late
	or_bail dm_remove origin
	refuses_late "the origin was removed" "No such device" "the origin's device is not active"

	or_bail dmsetup create "$PREFIX-origin" --notable
	or_bail dmsetup load "$PREFIX-origin" --table "$(origin_table $LARGE)"
	load_late
	refuses_late "the origin was not started" "No such device" \
		"the origin's device is not active"
	or_bail dmsetup resume "$PREFIX-origin"
	load_late
	succeeds "of one that is started a snapshot is taken" dmsetup resume "$PREFIX-late"
	or_bail dm_remove late
	or_bail dm_remove origin
}

test_checkpoints()
{
	start_origin $LARGE
	or_bail message origin checkpoint_create one
	load_late "2 since one"
	or_bail message origin checkpoint_delete one
	refuses_late "since a checkpoint that was deleted" "No such" "since: .* no such checkpoint"

	load_late "2 checkpoint two"
	or_bail message origin checkpoint_create two
	refuses_late "a checkpoint that was created" "File exists" "checkpoint: .* already has"
	is "all that there are is there" "$(origin_field origin checkpoints)" 1
	is "and no snapshot" "$(origin_field origin snapshots)" 0
	or_bail dm_remove origin
}

# shellcheck disable=SC2317 # called by wait_until
write_is_under_way()
{
	[ "$(awk '{ print $2 }' "/sys/block/dm-$(minor_of origin)/inflight")" -gt 0 ] ||
		snapshot_field_is snap waiting 1 2> /dev/null
}

# Leaves a write of the origin under way in $writer, until its part of the disk is resumed.
begin_write()
{
	stall first
	pattern origin write 2 0 64k > "$SCRATCH/write" &
	writer=$!
	wait_until 20 write_is_under_way || bail "preparation: a write is under way"
}

end_write()
{
	unstall first
	wait "$writer"
	is "$1: the write succeeds" "$(cat "$SCRATCH/write")" ok
}

# It is attempted several times, and in between other writes go on: none waits for half of it.
refuses_checkpoint()
{
	local begin took creator writes=0 longest=0

	log_mark
	begin=$(now_ms)
	message origin checkpoint_create two > "$SCRATCH/message" 2>&1 &
	creator=$!
	while kill -0 $creator 2> /dev/null; do
		took=$(elapsed_ms pattern origin write 3 1M 4k)
		or_bail grep -q ok "$SCRATCH/output"
		writes=$((writes + 1))
		[ "$took" -le "$longest" ] || longest=$took
	done
	took=$(($(now_ms) - begin))
	wait $creator
	like "as for a checkpoint: refused" "$? $(cat "$SCRATCH/message")" "^1 .*timed out"
	expect_log "as for a checkpoint: the log says why" "have not completed"
	at_least "as for a checkpoint: other writes go on" $writes 3
	at_most "as for a checkpoint: none of them is held back for long" "$longest" $((took / 2))
}

test_endless_write()
{
	start_origin $LARGE
	or_bail message origin checkpoint_create one
	load_late
	begin_write
	refuses_late "a write does not end" "timed out" "writes .* under way do not complete"
	refuses_checkpoint
	end_write "it ends"
	is "it ends: nothing is left of both" "$(status_of origin | cut -d' ' -f5-)" "0 1 one"
	load_late
	succeeds "it ends: a snapshot is taken" dmsetup resume "$PREFIX-late"
	gets "it ends: with what was written" ok late verify 2 0 64k
	succeeds "it ends: and a checkpoint" message origin checkpoint_create two
	or_bail dm_remove late
	or_bail dm_remove origin
}

# The checkpoint is made when the write has ended, but who asked for it cannot know that.
test_write_under_way()
{
	local creator

	start_origin $LARGE
	or_bail message origin checkpoint_create one
	begin_write
	dmsetup message "$PREFIX-origin" 0 checkpoint_create two > "$SCRATCH/message" 2>&1 &
	creator=$!
	wait_until 20 has_called $creator fleece_origin_quiesce ||
		bail "preparation: the checkpoint waits for the write"
	end_write "under way at a checkpoint"
	wait $creator
	is "under way at a checkpoint: it is made" "$? $(cat "$SCRATCH/message")" "0 "
	is "under way at a checkpoint: the write is one since then" "$(origin_field origin changed)" 1
	is "under way at a checkpoint: that one" "$(map origin changed two | cut -d, -f1)" "0 65536 1"
	succeeds "under way at a checkpoint: another one" message origin checkpoint_create three
	is "under way at a checkpoint: nothing was since that" "$(origin_field origin changed)" 0
	or_bail dm_remove origin
}

# write_on NR: one write after the other, until there is a file that says to stop.
write_on()
{
	while [ ! -e "$SCRATCH/stop" ]; do
		pattern origin write 2 $(($1 * 64))k 64k
	done > "$SCRATCH/write.$1" 2>&1
}

# A disk with a queue of more than a second. Of these writes one is always younger than
# half a second, also when those held back have gone on together.
test_slow_writes()
{
	local i writers=()

	if ! has_module dm-delay; then
		skip "a checkpoint on a disk with a long queue" "dm-delay is missing"
		return
	fi
	start_origin $LARGE
	or_bail message origin checkpoint_create one
	delay_writes first 1500
	for i in 0 1 2; do
		write_on $i &
		writers+=($!)
		sleep 0.5
	done
	succeeds "long queue: a checkpoint is made" message origin checkpoint_create two
	load_late
	succeeds "long queue: a snapshot is taken" dmsetup resume "$PREFIX-late"
	touch "$SCRATCH/stop"
	wait "${writers[@]}"
	is "long queue: the writes succeed" "$(sort -u "$SCRATCH"/write.?)" ok
	or_bail replace_table first "$(slice_table first)"
	or_bail dm_remove late
	or_bail dm_remove origin
}

# shellcheck disable=SC2317 # called by wait_until
no_table_is_loaded()
{
	[ "$(dmsetup info -c --noheadings -o tables_loaded "$PREFIX-origin")" = Live ]
}

# grow_with_late_table: makes the origin LARGE, and leaves a table of SMALL loaded.
grow_with_late_table()
{
	local resumer

	# A write that is under way keeps the resume from suspending what is live.
	begin_write
	or_bail dmsetup load "$PREFIX-origin" --table "$(origin_table $LARGE)"
	dmsetup resume --nolockfs "$PREFIX-origin" > "$SCRATCH/resume" 2>&1 &
	resumer=$!
	wait_until 20 no_table_is_loaded || bail "preparation: the resume has taken its table"
	or_bail dmsetup load "$PREFIX-origin" --table "$(origin_table $SMALL)"
	end_write "a longer table is on its way"
	wait $resumer
	is "a longer table is on its way: the origin has grown" "$? $(size_of_origin)" "0 $LARGE"
}

# A shorter table that was loaded when the origin was as short: nobody has looked whether
# it may shrink.
test_late_table()
{
	start_origin $SMALL
	or_bail message origin checkpoint_create first
	or_bail dm_create snap "0 $SMALL fleece-snapshot $(path_of disk) $(path_of cow) 128"
	grow_with_late_table
	log_mark
	fails "one that would shrink it: refused" "busy" dmsetup resume "$PREFIX-origin"
	expect_log "one that would shrink it: the log says what to do" "load it again"
	succeeds "the longer one is taken again" replace_table origin "$(origin_table $LARGE)"
	is "the origin has its size" "$(size_of_origin)" $LARGE
	gets "it is written to" ok origin write 3 1M 64k
	wait_copied snap
	is "the snapshot goes on" "$(snapshot_field snap state) $(snapshot_field snap copied)" \
		"active 2"
	gets "it has the old data" ok snap verify 1 0 -
	is "the checkpoint is kept" "$(map origin changed first)" \
		"0 65536 1,65536 983040 0,1048576 65536 1,1114112 7274496 0,8388608 8388608 1"
	fails "a shorter one is refused when it is loaded" "failed" \
		dmsetup load "$PREFIX-origin" --table "$(origin_table $SMALL)"
	or_bail dm_remove snap
	or_bail dm_remove origin
}

defer dm_remove_deferred origin
defer dm_remove_deferred snap
defer dm_remove_deferred late
defer dmsetup resume "$PREFIX-first"
test_no_origin
test_checkpoints
test_endless_write
test_write_under_way
test_slow_writes
test_late_table
finish
