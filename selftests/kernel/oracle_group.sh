#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will write stamped sectors to two origins, take group snapshots under
# load, and judge every sector read from them by the histories of the writers,
# for FLEECE_ORACLE_SECONDS (default 60): half of it on devices as fast as RAM,
# half of it on devices on which every other read is overtaken by what is later.
# All the while another snapshot of a comes and goes, in clusters of its own.
# FLEECE_ORACLE_SEED repeats a run as far as threads can be repeated.
#
#     a (fleece)   a-snap (fleece-snapshot)      b, b-snap: the same
#         |         |         |
#       disk-a  <---+      a-slice -> cow-a      or jitter-a, jitter-cow-a on them
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=24568		# not a multiple of the larger clusters
seconds=${FLEECE_ORACLE_SECONDS:-60}
seed=${FLEECE_ORACLE_SEED:-$(($(now_ms) % 1000000))}

load_fleece
requires_tool oracle
make_arena 96
make_disk disk-a $SECTORS
make_disk disk-b $SECTORS
make_disk cow-a $((SECTORS + 8192))
make_disk cow-b $((SECTORS + 8192))
make_disk cow-other $((SECTORS + 8192))

# What the program leaves behind when it finds a violation.
# shellcheck disable=SC2317 # called by the cleanup
remove_snapshots()
{
	local name

	for name in a-snap b-snap a-slice b-slice other; do
		dm_remove_deferred "$name"
	done
}

# Makes and removes another snapshot of a, until the file "stop" exists.
come_and_go()
{
	local cycle

	for ((cycle = 0; ; cycle++)); do
		echo $cycle > "$SCRATCH/cycles"
		[ ! -e "$SCRATCH/stop" ] || break
		dm_create other "$(snapshot_table "$1" cow-other $((8 << cycle % 8)) "2 staging $((cycle % 3 * 4096))")" ||
			return 1
		sleep 0.$((cycle % 8 + 1))
		dm_remove other || return 1
	done
}

# run_oracle WHAT GRANULARITY SEED DISK COW: the devices' names without -a and -b.
run_oracle()
{
	make_origin a "$4-a" "$2"
	make_origin b "$4-b" "$2"
	defer remove_snapshots
	rm -f "$SCRATCH/stop"
	come_and_go "$4-a" > "$SCRATCH/other" 2>&1 &
	other=$!
	if "$FLEECE_TEST_BIN/oracle" --seconds $((seconds / 2)) --seed "$3" --granularity "$2" \
		"$PREFIX-a:$(path_of "$4-a"):$(path_of "$5-a")" \
		"$PREFIX-b:$(path_of "$4-b"):$(path_of "$5-b")" > "$SCRATCH/oracle" 2>&1; then
		ok "$1: no violation"
		cat "$SCRATCH/oracle"
	else
		not_ok "$1: no violation" "$(cat "$SCRATCH/oracle")"
		finish
	fi
	touch "$SCRATCH/stop"
	wait $other
	is "$1: another snapshot came and went" "$? $(cat "$SCRATCH/other")" "0 "
	at_least "$1: several times" "$(cat "$SCRATCH/cycles")" 2
	succeeds "$1: the origins can be removed" eval "dm_remove a && dm_remove b"
}

run_oracle "fast devices" 128 "$seed" disk cow
if has_jitter; then
	make_jittery jitter-a disk-a 8
	make_jittery jitter-b disk-b 8
	make_jittery jitter-cow-a cow-a 4
	make_jittery jitter-cow-b cow-b 4
	run_oracle "overtaken reads" 8 $((seed + 1)) jitter jitter-cow
else
	skip "overtaken reads" "there is no dm-delay or no dm-multipath"
fi
finish
