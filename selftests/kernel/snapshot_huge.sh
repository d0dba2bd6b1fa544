#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will take snapshots of an origin of 64 TiB, of which nothing is stored:
# what it costs in memory, that neither the moment nor a release of all of it takes
# long, and that places far out are copied, read, mapped and released like any other.
#
#     origin (fleece)      snap (fleece-snapshot)
#         |       +--------+       |
#       huge (zero)               cow
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

T=$((1 << 40))
END=$((64 * T))
SECTORS=$((END / 512))
K=1024
M=1048576
# For one bit of each 64 KiB of it.
MAP_KIB=$((128 * 1024))
# For all else, such as what udev and the kernel's log take meanwhile.
SLACK_KIB=8192
PROMPT_MS=2000

load_fleece
has_module dm-zero || skip_all "dm-zero is missing"
[ "$(awk '/^MemAvailable/ { print $2 }' /proc/meminfo)" -ge $((10 * MAP_KIB)) ] ||
	skip_all "there is too little memory"
make_arena 96
or_bail dm_create huge "0 $SECTORS zero"
defer dm_remove_deferred huge
make_disk cow "$(cow_sectors 128 1024)"

# costs DESCRIPTION KIB: in maps, the only memory that is worth a look, since the call before.
costs()
{
	local now found

	now=$(maps_kib)
	found=$((now - before))
	before=$now
	at_least "$1: at least" $found $(($2 - SLACK_KIB))
	at_most "$1: at most" $found $(($2 + SLACK_KIB))
}

# prompt DESCRIPTION COMMAND...
prompt()
{
	local took

	took=$(elapsed_ms "${@:2}")
	at_most "$1" "$took" $((PROMPT_MS * ${FLEECE_SLOWDOWN:-1}))
}

# load_snapshot FEATURES [CLUSTER]
load_snapshot()
{
	or_bail dmsetup create "$PREFIX-snap" --notable
	defer dm_remove_deferred snap
	or_bail dmsetup load "$PREFIX-snap" --table "$(snapshot_table huge cow "${2:-128}" "$1")"
}

# far_out DESCRIPTION OFFSET: a write there.
far_out()
{
	gets "$1: a live write" ok origin write 2 "$2" 64k
	gets "$1: the snapshot has the old data" ok snap verify zero "$2" 64k
}

test_all()
{
	before=$(maps_kib)
	make_origin origin huge
	costs "memory of an origin without a checkpoint" 0
	or_bail message origin checkpoint_create one
	costs "memory of a checkpoint" $MAP_KIB
	load_snapshot "2 checkpoint two"
	costs "memory of a snapshot with a checkpoint" $((3 * MAP_KIB))
	prompt "the moment is prompt" dmsetup resume --noudevsync "$PREFIX-snap"
	settle_udev
	for place in 0 $((2 * T)) $((33 * T + M)) $((END - 64 * K)); do
		far_out "at $place" "$place"
	done
	wait_copied snap
	costs "memory of four copies" 0
	is "four clusters are copied" "$(copied_and_used)" "4 4"
	is "status" "$(status_of snap)" \
		"active 4/1024 128 $((1 << 30))/$((1 << 30)) 4 0 0 0 0 0 0"
	is "the map of what is copied" "$(map snap copied | tr , '\n' | grep '1$' | paste -sd,)" \
		"0 65536 1,$((2 * T)) 65536 1,$((33 * T + M)) 65536 1,$((END - 64 * K)) 65536 1"
}

# A writer goes on while all of it is released. To do so cluster by cluster would take far
# longer than to look at the map, which is done word by word.
test_release()
{
	local look release

	( while [ ! -e "$SCRATCH/stop" ]; do
		pattern origin write 3 $((5 * T)) 4k
	done ) > "$SCRATCH/writer" 2>&1 &
	look=$(elapsed_ms maps snap extents accessible)
	release=$(elapsed_ms message snap release 0 $SECTORS)
	at_most "a release of all takes as long as a few looks at the map" "$release" $((32 * look + 10000))
	touch "$SCRATCH/stop"
	wait $!
	is "live writes succeed while all is released" "$(sort -u "$SCRATCH/writer")" ok
	is "nothing is accessible any more, and all slots are free" \
		"$(snapshot_field snap accessible) $(snapshot_field snap used)" "0 0"
	is "each cluster is counted once" "$(snapshot_field snap released)" $((1 << 30))
	gets "it cannot be read" ENODATA snap read $((33 * T + M)) 64k
	gets "nor where nothing was copied" ENODATA snap read $((60 * T)) 64k
	or_bail dm_remove snap
	costs "its memory is free, but that of its checkpoint" $((-2 * MAP_KIB))
}

test_since()
{
	or_bail pattern origin write 2 $((40 * T)) 64k
	load_snapshot "2 since two"
	prompt "the moment is prompt, since a checkpoint" dmsetup resume --noudevsync "$PREFIX-snap"
	settle_udev
	gets "what was changed since can be read at once" ok snap verify zero $((40 * T)) 64k
	gets "what was not cannot" ENODATA snap read $((41 * T)) 64k
	is "the map of what was changed" "$(map snap changed two | tr , '\n' | grep '1$' | paste -sd,)" \
		"0 65536 1,$((2 * T)) 65536 1,$((5 * T)) 65536 1,$((33 * T + M)) 65536 1,$((40 * T)) 65536 1,$((END - 64 * K)) 65536 1"
	is "as many clusters are accessible" "$(snapshot_field snap accessible)" 6
	or_bail dm_remove snap
	or_bail message origin checkpoint_delete one
	or_bail message origin checkpoint_delete two
}

# A write that comes while the map of what is accessible is still made from what was
# changed, to a cluster of two granules of which the second one was.
test_merge()
{
	local place=$((END - 64 * K))

	or_bail message origin checkpoint_create three
	or_bail pattern origin write 2 $place 64k
	load_snapshot "2 since three" 256
	or_bail dmsetup suspend --nolockfs "$PREFIX-origin"
	"$FLEECE_TEST_BIN/pattern" "$(path_of origin)" write 3 $place 4k > "$SCRATCH/write" 2>&1 &
	wait_until 20 is_stuck $! || bail "preparation: a write is held back"
	or_bail dmsetup resume --noudevsync "$PREFIX-snap" "$PREFIX-origin"
	wait $!
	settle_udev
	is "a write right after the moment succeeds" "$(cat "$SCRATCH/write")" ok
	wait_copied snap
	is "its cluster is copied" "$(copied_and_used)" "1 1"
	or_bail dm_remove snap
	or_bail message origin checkpoint_delete three
}

test_all
test_release
test_since
test_merge
finish
