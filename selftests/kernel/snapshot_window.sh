#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will rewrite an origin several times with a COW device for a thirtieth of
# it, while a client reads what has been copied and releases it: the snapshot is right to
# the end. Then it will wait for a snapshot's events as a backup agent does.
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=16384
load_fleece
make_arena 16
make_disk disk $SECTORS
make_disk cow "$(cow_sectors 128 4)"
make_origin origin disk
or_bail pattern origin write 1 0 -

end_snapshot()
{
	or_bail dm_remove snap
	or_bail pattern origin write 1 0 -
}

# write_passes: the whole origin three times, the first time in pieces of two clusters.
write_passes()
{
	local offset

	for ((offset = 0; offset < SECTORS; offset += 256)); do
		pattern origin write 2 $((offset * 512)) 128k || return 1
	done
	pattern origin write 3 0 - && pattern origin write 4 0 -
}

# sweep_released: reads everything over and over, until the file "stop" exists, and prints
# what is neither right nor released.
sweep_released()
{
	local offset

	for ((offset = 0; ; offset = (offset + 128) % SECTORS)); do
		[ ! -e "$SCRATCH/stop" ] || break
		pattern snap verify 1 $((offset * 512)) 64k
		sleep 0.2
	done | grep -vxE 'ok|ENODATA'
}

# release_copied: reads and releases what has been copied since the last time, and only
# that. The first of the passes goes forwards, so that is one run. Prints what is not right.
release_copied()
{
	local copied

	copied=$(maps snap extents copied | awk 'NR == 1 && $3 == 1 { print $2 }')
	[ "${copied:-0}" -gt "$released" ] || return 0
	pattern snap verify 1 "$released" $((copied - released)) | grep -vx ok
	message snap release $((released / 512)) $(((copied - released) / 512)) ||
		echo "cannot release"
	released=$copied
}

# The COW device of four slots serves a rewrite of the whole origin: each cluster of the
# origin goes through it, for nothing is released that is not copied, and the writer has
# to wait for the client all the time.
# test_sliding_window STAGING
test_sliding_window()
{
	local sweeper what="sliding window, staging $1"

	make_snapshot snap disk cow 128 "6 staging $1 on_cow_full wait cbw_timeout 0"
	released=0
	rm -f "$SCRATCH/stop"
	sweep_released > "$SCRATCH/sweep" 2>&1 &
	sweeper=$!
	write_passes > "$SCRATCH/write" 2>&1 &
	writer=$!
	while kill -0 $writer 2> /dev/null; do
		release_copied
	done > "$SCRATCH/read" 2>&1
	wait $writer
	touch "$SCRATCH/stop"
	wait $sweeper
	release_copied >> "$SCRATCH/read" 2>&1
	wait_copied snap
	is "$what: all writes succeed" "$(sort -u "$SCRATCH/write")" ok
	gets "$what: and arrive" ok origin verify 4 0 -
	is "$what: all that was copied is right" "$(cat "$SCRATCH/read")" ""
	is "$what: so is whatever else is read" "$(cat "$SCRATCH/sweep")" ""
	is "$what: in the end all has been copied and is released" "$(status_of snap)" \
		"active 0/4 128 0/128 128 128 0 0 0 0 0"
	end_snapshot
}

# raises_event DESCRIPTION COMMAND...: who waits for an event of "snap" when the command
# begins does not wait any more after it.
raises_event()
{
	local events waiter

	# Not by the job in the background, which might count the very event.
	events=$(events_of snap)
	dmsetup wait "$PREFIX-snap" "$events" > /dev/null &
	waiter=$!
	"${@:2}" > "$SCRATCH/output" 2>&1
	if wait_until 30 has_ended $waiter; then
		ok "$1"
	else
		not_ok "$1" "$(cat "$SCRATCH/output")" "$(status_of snap)"
		kill $waiter
	fi
	wait $waiter
}

test_low_water()
{
	make_snapshot snap disk cow 128 "2 low_water 2"
	raises_event "low water is an event" pattern origin write 2 1M 192k
	wait_copied snap
	raises_event "so is that there is enough again" message snap release 2048 384
	raises_event "and low water once more" pattern origin write 2 4M 192k
	end_snapshot
}

write_in_background()
{
	pattern origin write 2 4M 64k > "$SCRATCH/write" 2>&1 &
	writer=$!
}

test_events()
{
	make_snapshot snap disk cow 128 "6 on_cow_full wait cbw_timeout 0 low_water 2"
	raises_event "dmsetup wait sees low water" pattern origin write 2 1M 192k
	or_bail pattern origin write 2 1216k 64k
	wait_copied snap
	raises_event "dmsetup wait sees that a write waits" write_in_background
	raises_event "dmsetup wait sees recovery" message snap release 2048 128
	wait $writer
	is "dmsetup wait: the write that waited has succeeded" "$(cat "$SCRATCH/write")" ok
	end_snapshot
	make_snapshot snap disk cow 128
	or_bail replace_table cow "0 $(blockdev --getsz "$(path_of cow)") error"
	raises_event "dmsetup wait sees that it breaks" pattern origin write 2 1M 64k
	is "dmsetup wait: it is broken" "$(snapshot_field snap state)" broken
	end_snapshot
}

test_sliding_window 0
test_sliding_window 65536
test_low_water
test_events
finish
