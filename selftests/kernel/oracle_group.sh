#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will write stamped sectors and zeroes to two origins and discard others,
# take group snapshots under load, and judge every sector read from them by the
# histories of the writers, for FLEECE_ORACLE_SECONDS (default 60): a quarter of it on
# RAM disks, which cannot discard; a quarter on disks with queues, which end I/O in
# interrupts; a quarter on devices where discards are advice; a quarter on devices where
# they are copied, as zeroes are, and every other read is overtaken by what is later. All
# the while another snapshot of a comes and goes, in
# clusters of its own. FLEECE_ORACLE_SEED repeats a run as far as threads can be
# repeated.
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

# make_disks PREFIX: in the arena.
make_disks()
{
	make_disk "$1disk-a" $SECTORS
	make_disk "$1disk-b" $SECTORS
	make_disk "$1cow-a" $((SECTORS + 8192))
	make_disk "$1cow-b" $((SECTORS + 8192))
	make_disk "$1cow-other" $((SECTORS + 8192))
}

# make_queues: origins that are none of device-mapper; COW devices, which are to grow, are.
make_queues()
{
	local options="submit_queues=2 irqmode=2 completion_nsec=50000" name

	for name in a b; do
		# shellcheck disable=SC2086 # several words
		make_plain "queue-disk-$name" $SECTORS $options || return
	done
	for name in a b other; do
		# shellcheck disable=SC2086 # several words
		make_null_blk "queue-cow-$name" $((SECTORS + 8192)) $options || return
	done
}

# What the program leaves behind when it finds a violation.
# shellcheck disable=SC2317 # called by the cleanup
remove_snapshots()
{
	local name

	for name in a-snap b-snap a-slice b-slice other; do
		dm_remove_deferred "$name"
	done
}

# come_and_go DISK COW: makes and removes another snapshot of a, until the file "stop"
# exists.
come_and_go()
{
	local cycle

	for ((cycle = 0; ; cycle++)); do
		echo $cycle > "$SCRATCH/cycles"
		[ ! -e "$SCRATCH/stop" ] || break
		dm_create other "$(snapshot_table "$1" "$2" $((8 << cycle % 8)) "2 staging $((cycle % 3 * 4096))")" ||
			return 1
		sleep 0.$((cycle % 8 + 1))
		dm_remove other || return 1
	done
}

# run_oracle WHAT GRANULARITY DISK COW OTHER FEATURES [OPTION...]: the names of origin
# and COW devices without -a and -b, the COW device of the other snapshot, features of
# the origins, options of the oracle.
run_oracle()
{
	make_origin a "$3-a" "$2" "$6"
	make_origin b "$3-b" "$2" "$6"
	defer remove_snapshots
	rm -f "$SCRATCH/stop"
	come_and_go "$3-a" "$5" > "$SCRATCH/other" 2>&1 &
	other=$!
	runs=$((runs + 1))
	if "$FLEECE_TEST_BIN/oracle" --seconds $((seconds / 4)) --seed $((seed + runs)) \
		--granularity "$2" "${@:7}" \
		"$PREFIX-a:$(path_of "$3-a"):$(path_of "$4-a")" \
		"$PREFIX-b:$(path_of "$3-b"):$(path_of "$4-b")" > "$SCRATCH/oracle" 2>&1; then
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

runs=0
make_arena 96
make_disks ""
run_oracle "fast devices" 128 disk cow cow-other ""
what="disks with queues"
if make_queues; then
	run_oracle "$what" 64 queue-disk queue-cow queue-cow-other ""
else
	skip "$what" "there is no null_blk with memory"
fi
make_discard_arena 96
make_disks thin-
run_oracle "discards as advice" 128 thin-disk thin-cow thin-cow-other "" --discards advisory
what="discards copied, overtaken reads"
if has_jitter; then
	# A reader of the page cache: what it reads ahead and what multipath marks as its own
	# makes blk_rq_set_mixed_merge() warn if both get into one request (7.3).
	no_probing
	make_jittery jitter-a thin-disk-a 8
	make_jittery jitter-b thin-disk-b 8
	make_jittery jitter-cow-a thin-cow-a 4
	make_jittery jitter-cow-b thin-cow-b 4
	run_oracle "$what" 8 jitter jitter-cow thin-cow-other "1 discard_copy" --discards zeroing
else
	skip "$what" "there is no dm-delay or no dm-multipath"
fi
finish
