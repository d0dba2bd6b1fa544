#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will change the size of a live origin by loading longer and shorter
# tables: checkpoints are kept, what is gained counts as changed, snapshots keep
# their own size and data, and an origin that has snapshots does not shrink.
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

# 8 MiB and 4 KiB, which is no whole number of granules or clusters; 16 MiB.
SMALL=$((16384 + 8))
LARGE=32768
load_fleece
make_discard_arena 56
make_disk disk $LARGE
make_disk cow "$(cow_sectors 256 128)"
make_disk cow-b "$(cow_sectors 128 256)"

origin_table()
{
	echo "0 $1 fleece $(path_of disk) - 128"
}

size_of()
{
	blockdev --getsz "$(path_of "$1")"
}

# make_snapshot_of SECTORS NAME COWDISK CLUSTER [FEATURES]
make_snapshot_of()
{
	or_bail dm_create "$2" \
		"0 $1 fleece-snapshot $(path_of disk) $(path_of "$3") $4 ${5:-}"
	defer dm_remove_deferred "$2"
}

snapshot_table_of()
{
	echo "0 $1 fleece-snapshot $(path_of disk) $(path_of cow) 256"
}

test_growing()
{
	local old_map="0 65536 1,65536 8327168 0"

	or_bail dm_create origin "$(origin_table $SMALL)"
	defer dm_remove_deferred origin
	or_bail pattern origin write 1 0 -
	or_bail message origin checkpoint_create first
	or_bail pattern origin write 2 0 64k
	make_snapshot_of $SMALL old cow 256 "2 checkpoint second"
	is "the snapshot's map before" "$(map old changed first)" "$old_map"

	succeeds "a longer table is taken" replace_table origin "$(origin_table $LARGE)"
	is "the origin has grown" "$(size_of origin)" $LARGE
	is "what it has gained counts as changed since the first" "$(map origin changed first)" \
		"0 65536 1,65536 8323072 0,8388608 8388608 1"
	is "and since the second" "$(map origin changed second)" "0 8388608 0,8388608 8388608 1"
	is "the snapshot keeps its size" "$(size_of old)" $SMALL
	is "and its map" "$(map old changed first)" "$old_map"
	is "a map of what it can read too" "$(map old accessible)" "0 8392704 1"

	gets "a write across its end" ok origin write 3 8M 1M
	gets "a write behind it" ok origin write 3 12M -
	wait_copied old
	is "only its last cluster is copied" "$(snapshot_field old copied)" 1
	gets "the snapshot has the old data" ok old verify 1 64k -
	gets "all of it" ok old verify 2 0 64k
	gets "the origin has the new data" ok origin verify 3 12M -
	fails "its table with the new size: refused" "failed" dmsetup load "$PREFIX-old" \
		--table "0 $LARGE fleece-snapshot $(path_of disk) $(path_of cow) 256 2 checkpoint second"
	succeeds "its table with its own size is taken" replace_table old \
		"0 $SMALL fleece-snapshot $(path_of disk) $(path_of cow) 256 2 checkpoint second"
	gets "it still has the old data" ok old verify 1 64k -
}

test_two_sizes()
{
	make_snapshot_of $LARGE new cow-b 128 "2 since second"
	is "the new snapshot reads what was gained" "$(map new changed second)" \
		"0 8388608 0,8388608 8388608 1"
	gets "a discard across the old end" ok origin discard 8M 1M
	gets "a write over both" ok origin write 4 7M 2M
	gets "a write behind the old one" ok origin write 4 14M 1M
	wait_copied old
	wait_copied new
	gets "the old one is right" ok old verify 1 64k -
	gets "the new one is right before the end" ok new verify 3 12M -
	gets "and in what is not overwritten" ok new verify 3 8M 1M
}

# Both need the old data of one write, but what the old one reads of it ends with itself.
test_read_for_both()
{
	or_bail pattern disk write 1 0 -
	or_bail dm_create origin "$(origin_table $SMALL)"
	make_snapshot_of $SMALL old cow 256
	or_bail replace_table origin "$(origin_table $LARGE)"
	make_snapshot_of $LARGE new cow-b 128
	gets "a write over the end of one of two" ok origin write 2 8M 64k
	wait_copied old
	wait_copied new
	is "both have copied a cluster" \
		"$(snapshot_field old copied) $(snapshot_field new copied)" "1 1"
	gets "the one that ends there is right" ok old verify 1 0 -
	gets "so is the other, behind that too" ok new verify 1 0 -
	or_bail dm_remove new
	or_bail dm_remove old
	or_bail dm_remove origin
}

test_shrinking()
{
	log_mark
	fails "shrinking an origin that has snapshots: refused" "failed" \
		dmsetup load "$PREFIX-origin" --table "$(origin_table $SMALL)"
	expect_log "the log says why" "shrunk"
	gets "it works on" ok origin write 5 15M -
	or_bail dm_remove new
	or_bail dm_remove old

	or_bail dmsetup load "$PREFIX-origin" --table "$(origin_table $SMALL)"
	log_mark
	fails "a snapshot while a shorter table is loaded: refused" "busy|failed" \
		dm_create refused "$(snapshot_table disk cow 256)"
	expect_log "the log says why" "shrunk"
	dm_remove_deferred refused
	or_bail dmsetup clear "$PREFIX-origin"
	succeeds "after that table is dropped one is taken" \
		dm_create again "$(snapshot_table_of $LARGE)"
	or_bail dm_remove again

	succeeds "without snapshots a shorter table is taken" \
		replace_table origin "$(origin_table $SMALL)"
	is "the origin has shrunk" "$(size_of origin)" $SMALL
	is "checkpoints are kept" "$(map origin changed second)" \
		"0 7340032 0,7340032 1052672 1"
	succeeds "it grows again" replace_table origin "$(origin_table $LARGE)"
	is "what was lost and gained counts as changed" "$(map origin changed second)" \
		"0 7340032 0,7340032 9437184 1"
	or_bail dm_remove origin
}

# A snapshot's table that was loaded before is of another size now.
test_loaded_before()
{
	or_bail dm_create origin "$(origin_table $SMALL)"
	or_bail dmsetup create "$PREFIX-late" --notable
	defer dm_remove_deferred late
	or_bail dmsetup load "$PREFIX-late" --table "$(snapshot_table_of $SMALL)"
	or_bail replace_table origin "$(origin_table $LARGE)"
	log_mark
	fails "a snapshot loaded before the origin grew: refused" "failed" \
		dmsetup resume "$PREFIX-late"
	expect_log "the log says why" "size was changed"
	or_bail dm_remove late
	gets "the origin works on" ok origin write 1 0 -
	or_bail dm_remove origin
}

test_growing
test_two_sizes
test_shrinking
test_loaded_before
test_read_for_both
finish
