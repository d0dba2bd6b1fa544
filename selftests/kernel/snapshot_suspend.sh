#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will suspend snapshot and origin in turn while the other is used,
# and take the snapshot away from a reader.
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=32768
load_fleece
no_probing
make_arena 64
make_disk disk $SECTORS
make_disk cow "$(cow_sectors 128 256)"
make_origin origin disk
or_bail pattern origin write 1 0 -

test_suspended_snapshot()
{
	make_snapshot snap disk cow 128 "4 staging $1 cbw_timeout 0"
	or_bail dmsetup suspend "$PREFIX-snap"
	defer eval "dmsetup info $PREFIX-snap && dmsetup resume $PREFIX-snap || :"
	gets_now "staging $1: a live write does not wait for a suspended snapshot" ok \
		origin write 2 0 1M
	wait_until 20 snapshot_field_is snap copied 16
	is "staging $1: it was copied" "$(snapshot_field snap copied)" 16
	"$FLEECE_TEST_BIN/pattern" "$(path_of snap)" verify 1 0 2M > "$SCRATCH/read" 2>&1 &
	reader=$!
	wait_until 20 is_stuck $reader || not_ok "staging $1: a reader waits"
	or_bail dmsetup resume "$PREFIX-snap"
	wait $reader
	is "staging $1: a reader gets old data after the resume" "$(cat "$SCRATCH/read")" ok
	or_bail dmsetup suspend "$PREFIX-snap"
	or_bail dmsetup resume "$PREFIX-snap"
	gets "staging $1: the time has not moved" ok snap verify 1 0 -
	or_bail dm_remove snap
	or_bail pattern origin write 1 0 1M
}

test_suspended_origin()
{
	make_snapshot snap disk cow 128
	or_bail pattern origin write 2 0 64k
	or_bail dmsetup suspend "$PREFIX-origin"
	defer dmsetup resume "$PREFIX-origin"
	gets_now "a reader does not wait for a suspended origin, and gets old data" ok \
		snap verify 1 0 4M
	succeeds "a release works meanwhile" message snap release 0 128
	"$FLEECE_TEST_BIN/pattern" "$(path_of origin)" write 2 1M 64k > "$SCRATCH/write" 2>&1 &
	writer=$!
	wait_until 20 is_stuck $writer || not_ok "a write waits"
	or_bail dmsetup resume "$PREFIX-origin"
	wait $writer
	is "a write goes through after the resume" "$(cat "$SCRATCH/write")" ok
	gets "and the snapshot is the same" ok snap verify 1 64k 4M
	or_bail dm_remove snap
	or_bail pattern origin write 1 0 4M
}

read_for_ever()
{
	exec 7< "$(path_of snap)"
	while dd of=/dev/null bs=1M count=4 iflag=direct status=none <&7 2> /dev/null; do
		:
	done
}

# shellcheck disable=SC2317 # called by wait_until
snapshot_is_open()
{
	[ "$(dmsetup info -c --noheadings -o open "$PREFIX-snap")" -gt 0 ]
}

# Removal by force puts an error target below the reader.
test_removed_while_read()
{
	make_snapshot snap disk cow 128
	read_for_ever &
	reader=$!
	defer eval "kill $reader 2> /dev/null || :"
	wait_until 20 snapshot_is_open || not_ok "a snapshot is read"
	or_bail pattern origin write 2 0 4M
	fails "a snapshot that is read is not removed" "busy" dmsetup remove "$PREFIX-snap"
	gets "it goes on" ok snap verify 1 0 -
	dmsetup remove --force "$PREFIX-snap" > /dev/null 2>&1
	gets "live writes go on after it was taken away" ok origin write 3 0 4M
	kill $reader 2> /dev/null
	wait $reader 2> /dev/null
	if dmsetup info "$PREFIX-snap" > /dev/null 2>&1; then
		or_bail dm_remove snap
	fi
	wait_until 20 origin_is_free
	is "the origin has lost its snapshot" "$(origin_field origin snapshots)" 0
	make_snapshot snap disk cow 128
	gets "the next snapshot works" ok snap verify 3 0 4M
	or_bail dm_remove snap
}

# shellcheck disable=SC2317 # called by wait_until
origin_is_free()
{
	[ "$(origin_field origin snapshots)" = 0 ]
}

# Removal with copies in flight that do not get on.
test_removed_while_stalled()
{
	local remover

	make_snapshot snap disk cow 128 "4 staging 0 cbw_timeout 0"
	defer dmsetup resume "$PREFIX-cow"
	stall cow
	pattern origin write 2 0 1M > "$SCRATCH/write" 2>&1 &
	writer=$!
	wait_until 20 eval '! snapshot_field_is snap waiting 0' || not_ok "a write waits"
	dm_remove snap &
	remover=$!
	wait_until 60 test -s "$SCRATCH/write"
	is "a write does not wait for copies of a snapshot that is removed" \
		"$(cat "$SCRATCH/write")" ok
	is "but the removal does" "$(kill -0 $remover && echo removing)" removing
	wait_until 20 grep -qs fleece_cbw_drain /proc/[0-9]*/stack
	defer dm_remove_deferred again
	in_background again dm_create again "$(snapshot_table disk cow 128)"
	wait_until 20 has_ended $background
	like "its COW device is not free yet, which is said at once" "$(cat "$SCRATCH/again")" busy
	unstall cow
	wait $writer
	wait $remover
	is "and succeeds after them" $? 0
	gets "the origin has the new data" ok origin verify 2 0 1M
}

# Removal at some moment of many copies.
test_removed_while_copying()
{
	local i

	for ((i = 0; i < 5; i++)); do
		make_snapshot snap disk cow 8
		pattern origin write $((i + 4)) 0 - > "$SCRATCH/write" 2>&1 &
		writer=$!
		wait_until 20 eval '! snapshot_field_is snap copied 0'
		succeeds "removal number $i under writes" dm_remove snap
		wait $writer
		is "writes under removal number $i" "$(cat "$SCRATCH/write")" ok
		gets "data after removal number $i" ok origin verify $((i + 4)) 0 -
	done
}

test_suspended_snapshot 0
test_suspended_snapshot 65536
test_suspended_origin
test_removed_while_read
test_removed_while_stalled
test_removed_while_copying
finish
