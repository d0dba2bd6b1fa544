#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will take an origin and up to three snapshots of it through random
# cycles of creation, suspension, reload, renaming, release and removal while
# somebody writes to the origin. A snapshot reads the same each time, nothing is
# refused that should work, and in the end memory and references are what they were.
#
# FLEECE_CYCLES: how many; FLEECE_SEED: the seed, to repeat a run.
#
# shellcheck disable=SC2317,SC2034 # the cycles and their lists are called by name
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=8192
CYCLES=${FLEECE_CYCLES:-120}
SEED=${FLEECE_SEED:-$((RANDOM * 32768 + RANDOM))}
# Cycles after which memory has found its size.
WARM_UP=$((CYCLES / 5))
SLOTS=(a b c)
CLUSTERS=(8 32 128 1024)
FEATURES=("0" "2 staging 0" "2 on_cbw_error break_cluster" "2 on_cow_full wait" "1 release_on_discard")

load_fleece
make_arena 64
make_disk disk $SECTORS
for slot in "${SLOTS[@]}"; do
	make_disk "cow-$slot" $((2048 + SECTORS))
	defer dm_remove_deferred "$slot"
	defer dm_remove_deferred "$slot-renamed"
done
make_origin origin disk 128
or_bail pattern origin write 1 0 -
declare -A SUM=()

write_all_the_time()
{
	local n=2

	while :; do
		pattern origin write $((n++ % 200)) $((n * 7 % 4 * 1024))k 1M > /dev/null || exit 1
	done
}

# pick LIST: sets PICKED to one of it. Not in a subshell, which would have random
# numbers of its own.
pick()
{
	local -n pick_from=$1

	PICKED=${pick_from[RANDOM % ${#pick_from[@]}]}
}

# A random table for a snapshot of this name, in TABLE.
pick_table()
{
	local cluster

	pick CLUSTERS
	cluster=$PICKED
	pick FEATURES
	TABLE=$(snapshot_table disk "cow-$1" "$cluster" "$PICKED")
}

sum_of()
{
	dd if="$(path_of "$1")" bs=1M iflag=direct status=none | cksum
}

# The cycles. Each is called with the name of a snapshot that exists, or does not.
create()
{
	pick_table "$1"
	dm_create "$1" "$TABLE" && SUM[$1]=$(sum_of "$1")
}

remove()
{
	dm_remove "$1" && unset "SUM[$1]"
}

compare()
{
	[ "$(sum_of "$1")" = "${SUM[$1]}" ]
}

suspend_snapshot()
{
	dmsetup suspend "$PREFIX-$1" && dmsetup resume "$PREFIX-$1"
}

reload_snapshot()
{
	replace_table "$1" "$(dmsetup table "$PREFIX-$1")"
}

rename_snapshot()
{
	dmsetup rename "$PREFIX-$1" "$PREFIX-$1-renamed" &&
		dmsetup rename "$PREFIX-$1-renamed" "$PREFIX-$1" && make_nodes
}

# What is released cannot be read any more.
release()
{
	message "$1" release 0 "$SECTORS" && remove "$1"
}

suspend_origin()
{
	dmsetup suspend --nolockfs "$PREFIX-origin" && dmsetup resume "$PREFIX-origin"
}

suspend_origin_noflush()
{
	dmsetup suspend --noflush --nolockfs "$PREFIX-origin" && dmsetup resume "$PREFIX-origin"
}

reload_origin()
{
	replace_table origin "$(dmsetup table "$PREFIX-origin")"
}

make_checkpoint()
{
	message origin checkpoint_create "at-$1" && message origin checkpoint_list > /dev/null &&
		message origin checkpoint_delete "at-$1"
}

# The order of a group: the origin suspended, the snapshot resumed, the origin resumed.
create_suspended()
{
	local status=0

	pick_table "$1"
	dmsetup suspend --nolockfs "$PREFIX-origin" || return 1
	dm_create "$1" "$TABLE" || status=1
	dmsetup resume "$PREFIX-origin" || status=1
	[ "$status" -eq 0 ] && SUM[$1]=$(sum_of "$1")
}

IF_ABSENT=(create create_suspended)
IF_PRESENT=(remove compare compare suspend_snapshot reload_snapshot rename_snapshot release)
ALWAYS=(suspend_origin suspend_origin_noflush reload_origin make_checkpoint)

one_cycle()
{
	local slot

	pick SLOTS
	slot=$PICKED
	if [ $((RANDOM % 4)) -eq 0 ]; then
		pick ALWAYS
	elif [ -n "${SUM[$slot]:-}" ]; then
		pick IF_PRESENT
	else
		pick IF_ABSENT
	fi
	LAST="$PICKED $slot"
	$PICKED "$slot" > "$SCRATCH/said" 2>&1
}

# KiB that the kernel has for itself: slabs and vmalloc, and per-CPU memory.
kernel_memory()
{
	awk '/^(SUnreclaim|VmallocUsed|Percpu):/ { sum += $2 } END { print sum }' /proc/meminfo
}

remove_all()
{
	local slot

	for slot in "${SLOTS[@]}"; do
		[ -z "${SUM[$slot]:-}" ] || remove "$slot"
	done
}

stop_writer()
{
	kill $writer 2>/dev/null
	wait $writer 2>/dev/null || :
}

note "seed $SEED, $CYCLES cycles"
RANDOM=$((SEED % 32768))
write_all_the_time &
writer=$!
defer stop_writer
for ((cycle = 0; cycle < CYCLES; cycle++)); do
	if ! one_cycle; then
		not_ok "cycle $cycle of seed $SEED: $LAST" "$(cat "$SCRATCH/said")" \
			"$(dmsetup status | grep "^$PREFIX")"
		break
	fi
	if [ $cycle -eq $WARM_UP ]; then
		remove_all
		memory=$(kernel_memory)
	fi
done
is "all cycles were gone through" "$cycle" "$CYCLES"
succeeds "somebody has written all the time" kill -0 $writer
remove_all
at_most "kernel memory has not grown by more than 2 MiB (in KiB)" \
	$(($(kernel_memory) - memory)) 2048
is "no snapshot is left" "$(origin_field origin snapshots)" 0
fails "the module cannot be unloaded while it is used" "in use" rmmod dm_fleece
stop_writer
or_bail dm_remove origin
finish
