#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will look for the point in time: with the origin running, with two
# origins suspended, and with writes that wait behind the suspend.
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=16384
load_fleece
make_arena 64
for name in a b; do
	make_disk "disk-$name" $SECTORS
	make_disk "cow-$name" "$(cow_sectors 128 128)"
	make_origin "$name" "disk-$name"
	or_bail pattern "$name" write 1 0 -
done

test_running()
{
	make_snapshot a-snap disk-a cow-a 128
	gets "running origin: later writes go on" ok a write 2 0 1M
	gets "running origin: the snapshot is from before" ok a-snap verify 1 0 -
	or_bail dm_remove a-snap
	make_snapshot a-snap disk-a cow-a 128
	gets "a second snapshot is of its own time" ok a-snap verify 2 0 1M
	gets "in all of its parts" ok a-snap verify 1 1M -
	or_bail dm_remove a-snap
	or_bail pattern a write 1 0 1M
}

# write_later NAME: a write that waits for the resume.
write_later()
{
	"$FLEECE_TEST_BIN/pattern" "$(path_of "$1")" write 3 0 1M > "$SCRATCH/late-$1" 2>&1 &
	late+=($!)
	wait_until 20 is_stuck $! || bail "the write to $1 waits"
}

test_group()
{
	late=()
	or_bail dmsetup suspend "$PREFIX-a"
	defer dmsetup resume "$PREFIX-a"
	or_bail dmsetup suspend "$PREFIX-b"
	defer dmsetup resume "$PREFIX-b"
	write_later a
	write_later b
	make_snapshot a-snap disk-a cow-a 128 "2 checkpoint moment"
	make_snapshot b-snap disk-b cow-b 128 "2 checkpoint moment"
	gets "the snapshots can be read while the origins are suspended" ok a-snap verify 1 0 -
	or_bail dmsetup resume "$PREFIX-a"
	or_bail dmsetup resume "$PREFIX-b"
	wait "${late[@]}"
	is "the waiting writes went through" "$(cat "$SCRATCH/late-a" "$SCRATCH/late-b" | paste -sd' ')" "ok ok"
	for name in a b; do
		gets "$name: the origin has them" ok "$name" verify 3 0 1M
		gets "$name: the snapshot has not" ok "$name-snap" verify 1 0 -
		is "$name: the checkpoint counts them as later" "$(map "$name" changed moment)" \
			"0 1048576 1,1048576 7340032 0"
	done
}

test_running
test_group
finish
