#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will remove and make an origin with a metadata device: its checkpoints are
# there again, with the same maps, after all that can be done to them and to it; and
# they are invalid when somebody else has written to it.
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=32760
LARGER=65536
load_fleece
# What is to be seen as dirty is not to settle before somebody has looked.
set_parameter metadata_settle_ms 600000
make_arena 128
make_disk disk $LARGER
make_disk meta 16384
make_disk cow "$(cow_sectors 128 256)"
short="0 $SECTORS fleece $(path_of disk) $(path_of meta) 128"
long="0 $LARGER fleece $(path_of disk) $(path_of meta) 128"
format_metadata meta $SECTORS --capacity $((LARGER * 512))

# start TABLE
start()
{
	or_bail dm_create origin "$1"
}

# write_at GRANULE...: changes exactly these.
write_at()
{
	local granule

	for granule; do
		or_bail pattern origin write "$granule" $((granule * 65536 + 4096)) 8k
	done
}

# all_maps: list and maps of all checkpoints.
all_maps()
{
	local name

	message origin checkpoint_list
	for name in $(message origin checkpoint_list | cut -d' ' -f1); do
		echo "$name $(map origin changed "$name")"
	done
}

# survives WHAT TABLE: a clean end and a new start lose nothing and add nothing.
survives()
{
	local before

	before=$(all_maps)
	[ -n "$before" ] || bail "preparation: $1: there are no checkpoints"
	or_bail dm_remove origin
	start "$2"
	is "$1: after a restart all is as it was" "$(all_maps)" "$before"
	is "$1: nothing is in doubt" "$(origin_field origin metadata)" clean
}

test_checkpoints()
{
	is "a new one" "$(status_of origin)" "128 256 0 clean 0 0 -"
	like "the table names the metadata device" "$(dmsetup table "$PREFIX-origin")" \
		"^0 $SECTORS fleece [0-9:]+ [0-9:]+ 128$"
	write_at 1
	is "without a checkpoint nothing is kept" "$(origin_field origin metadata)" clean
	or_bail message origin checkpoint_create one
	write_at 2 3 255
	is "a write makes it dirty" "$(status_of origin)" "128 256 3 dirty 0 1 one"
	or_bail message origin checkpoint_create two
	write_at 2 4
	survives "two checkpoints" "$short"
	is "the count is right" "$(status_of origin)" "128 256 2 clean 0 2 two"
	write_at 5
	survives "writes after a restart" "$short"
	or_bail message origin checkpoint_create three
	write_at 6
	or_bail message origin checkpoint_delete two
	set_parameter metadata_settle_ms 500
	survives "one was deleted" "$short"
	write_at 12
	succeeds "it settles by itself" wait_until "$WAIT_SECONDS" settled origin
	is "after an intent" "$(message origin metadata_status | cut -d' ' -f5)" 1
}

test_snapshot()
{
	or_bail dm_create snap "0 $SECTORS fleece-snapshot $(path_of disk) $(path_of cow) 128 2 checkpoint four"
	write_at 7
	is "the snapshot's checkpoint has what came later" "$(map origin changed four)" \
		"0 458752 0,458752 65536 1,524288 16248832 0"
	or_bail dm_remove snap
	survives "a snapshot made one" "$short"
	fails "its name is taken" "File exists" message origin checkpoint_create four
}

test_tables()
{
	local before

	write_at 8
	before=$(all_maps)
	or_bail replace_table origin "$short"
	is "reload: nothing is lost" "$(all_maps)" "$before"
	or_bail replace_table origin "$long"
	# The last granule of the shorter one was not a whole one.
	is "growth: what was gained is changed" "$(map origin changed four)" \
		"0 458752 0,458752 131072 1,589824 16121856 0,16711680 16842752 1"
	survives "it has grown" "$long"
	or_bail message origin checkpoint_create five
	or_bail replace_table origin "$short"
	survives "it has shrunk" "$short"
	is "shrinking changes nothing" "$(map origin changed five)" "0 $((SECTORS * 512)) 0"
}

# invalid WHAT: all checkpoints are, and are refused.
invalid()
{
	is "$1: they are listed as invalid" \
		"$(message origin checkpoint_list | awk '{ print $5 }' | sort -u)" invalid
	is "$1: all counts as changed since each of them" \
		"$(message origin checkpoint_list | awk '{ print $4 }' | sort -u)" 256
	is "$1: in the status as well" "$(status_of origin | cut -d' ' -f2,3)" "256 256"
	fails "$1: their maps are refused" ESTALE maps origin extents changed one
	fails "$1: as bits, too" ESTALE maps origin bitmap changed one
	is "$1: the ioctl says so" "$(maps origin checkpoints | awk '{ print $4 }' | sort -u)" 2
	log_mark
	fails "$1: no snapshot since one" "Stale" dm_create snap \
		"0 $SECTORS fleece-snapshot $(path_of disk) $(path_of cow) 128 2 since one"
	expect_log "$1: the log says why" "invalid"
}

test_bypass()
{
	or_bail dm_remove origin
	or_bail pattern disk write 99 4096 4k
	start "$short"
	invalid "somebody has written past it"
	or_bail message origin checkpoint_create six
	write_at 9
	survives "a new one beside invalid ones" "$short"
	is "the new one is valid" "$(map origin changed six)" \
		"0 589824 0,589824 65536 1,655360 16117760 0"
	for name in $(message origin checkpoint_list | awk '$5 == "invalid" { print $1 }'); do
		succeeds "$name, which is invalid, can be deleted" message origin checkpoint_delete "$name"
	done
	survives "the invalid ones are gone" "$short"
}

test_replaced()
{
	or_bail message origin checkpoint_create one
	or_bail replace_table origin "0 $SECTORS linear $(path_of disk) 0"
	or_bail replace_table origin "$short"
	invalid "another target had the device"
}

start "$short"
defer dm_remove_deferred origin
test_checkpoints
test_snapshot
test_tables
test_bypass
test_replaced
finish
