#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will discard on the origin and write zeroes to it: what a snapshot
# still needs is neither copied nor discarded, unless discard_copy asks for it; also if
# the snapshot was taken while the discard waited.
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=32768
load_fleece
make_discard_arena 56
make_disk disk $SECTORS
make_disk cow "$(cow_sectors 128 256)"
make_disk cow-b "$(cow_sectors 128 256)"
make_disk meta 6144

# A discard is passed down where none of the snapshots needs the data.
test_several()
{
	make_origin origin disk
	or_bail pattern origin write 1 0 -
	make_snapshot first disk cow 128
	or_bail pattern origin write 2 1M 128k
	wait_copied first
	make_snapshot second disk cow-b 512
	or_bail pattern origin write 3 2M 256k
	wait_copied first
	wait_copied second
	gets "several: a discard over what only the first has copied succeeds" ok \
		origin discard 1M 128k
	gets "several: it is not passed down" ok origin verify 2 1M 128k
	gets "several: a discard over what both have copied, and more, succeeds" ok \
		origin discard 1536k 1M
	gets "several: it is passed down there" ok origin verify zero 2M 256k
	gets "several: but not before it" ok origin verify 1 1536k 512k
	gets "several: and not after it" ok origin verify 1 2304k 256k
	is "several: discards copy nothing" \
		"$(snapshot_field first copied) $(snapshot_field second copied)" "6 1"
	gets "several: the first is right" ok first verify 1 0 -
	gets "several: the second is right" ok second verify 2 1M 128k
	gets "several: all of it" ok second verify 1 1152k -
	or_bail dm_remove first
	or_bail dm_remove second
	or_bail dm_remove origin
}

test_advisory()
{
	make_origin origin disk
	or_bail pattern origin write 1 0 -
	or_bail message origin checkpoint_create start
	gets "without snapshot a discard goes down" ok origin discard 0 1M
	gets "and reads as zeroes" ok origin verify zero 0 1M
	is "and is marked" "$(map origin changed start)" "0 1048576 1,1048576 15728640 0"
	or_bail pattern origin write 1 0 1M

	make_snapshot snap disk cow 128 "2 checkpoint snap"
	gets "a discard over uncopied clusters succeeds" ok origin discard 1M 1M
	is "and copies nothing" "$(snapshot_field snap used)" 0
	gets "the snapshot has the old data" ok snap verify 1 0 -
	gets "so has the origin" ok origin verify 1 0 -
	is "and nothing is marked" "$(map origin changed snap)" "0 16777216 0"

	or_bail pattern origin write 2 4M 64k
	gets "a discard over a copied cluster and its neighbours succeeds" ok \
		origin discard $((4194304 - 65536)) 192k
	gets "the copied one is discarded" ok origin verify zero 4M 64k
	gets "its left neighbour is not" ok origin verify 1 $((4194304 - 65536)) 64k
	gets "its right neighbour is not" ok origin verify 1 $((4194304 + 65536)) 64k
	wait_copied snap
	gets "the snapshot has the old data of all" ok snap verify 1 0 -
	or_bail message snap release 16384 128
	gets "a discard over a released cluster" ok origin discard 8M 64k
	gets "goes down" ok origin verify zero 8M 64k
	or_bail dm_remove snap
	or_bail dm_remove origin
}

test_copy()
{
	make_origin origin disk 128 "1 discard_copy"
	or_bail pattern origin write 1 0 -
	like "discard_copy: the table says so" "$(dmsetup table "$PREFIX-origin")" \
		" 128 1 discard_copy\$"
	make_snapshot snap disk cow 128
	gets "discard_copy: a discard succeeds" ok origin discard 1M 1M
	gets "discard_copy: and is carried out" ok origin verify zero 1M 1M
	wait_copied snap
	is "discard_copy: the old data is copied" "$(snapshot_field snap copied)" 16
	gets "discard_copy: the snapshot has it" ok snap verify 1 0 -
	or_bail dm_remove snap
	or_bail dm_remove origin
}

test_zeroes()
{
	make_origin origin disk
	or_bail pattern origin write 1 0 -
	make_snapshot snap disk cow 128 "2 checkpoint zeroes"
	gets "zeroes can be written" ok origin zero 1M $((1048576 + 4096))
	gets "and arrive" ok origin verify zero 1M $((1048576 + 4096))
	gets "not beyond their end" ok origin verify 1 $((2097152 + 4096)) 60k
	wait_copied snap
	is "the old data is copied" "$(snapshot_field snap copied)" 17
	gets "the snapshot has it" ok snap verify 1 0 -
	is "they are marked" "$(map origin changed zeroes)" \
		"0 1048576 0,1048576 1114112 1,2162688 14614528 0"
	gets "flush goes through" ok origin flush
	or_bail dm_remove snap
	or_bail dm_remove origin
}

# One that waits for its intent is not cut to what the snapshot does not need any more, as it
# is when it first comes. It is not passed down at all.
test_held()
{
	# Nothing but the discard is to wait for the metadata.
	set_parameter metadata_settle_ms 600000
	set_parameter metadata_timeout_ms 600000
	format_metadata meta $SECTORS --region 64K
	make_durable_origin origin disk meta
	or_bail pattern origin write 1 0 -
	or_bail message origin checkpoint_create one
	or_bail pattern origin write 2 1M 64k
	stall meta
	defer dmsetup resume "$PREFIX-meta"
	in_background discard "$FLEECE_TEST_BIN/pattern" "$(path_of origin)" discard 960k 128k
	wait_until 20 is_stuck "$background" || bail "preparation: a discard waits"
	make_snapshot snap disk cow 128 "2 since one"
	unstall meta
	wait "$background"
	is "held: a discard over what a new snapshot needs, and more, succeeds" \
		"$(cat "$SCRATCH/discard")" ok
	gets "held: what the snapshot needs is not discarded" ok origin verify 2 1M 64k
	gets "held: the snapshot has it" ok snap verify 2 1M 64k
	is "held: and nothing is copied" "$(snapshot_field snap copied)" 0
	or_bail dm_remove snap
	or_bail dm_remove origin
}

test_advisory
test_several
test_copy
test_zeroes
test_held
finish
