#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will take an origin and up to three snapshots of it through random
# cycles of creation, suspension, reload, renaming, release and removal while
# somebody writes to the origin; see cycles.c. A snapshot reads the same each time, nothing
# is refused that should work, and in the end memory and references are what they were.
#
# FLEECE_CYCLES: how many; FLEECE_SEED: the seed, to repeat a run as far as threads can be
# repeated.
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=8184		# not a multiple of the larger clusters
CYCLES=${FLEECE_CYCLES:-800}
SEED=${FLEECE_SEED:-$((RANDOM * 32768 + RANDOM))}
WARM_UP=80		# after these, memory has found its size
LIMIT_KIB=2048

# A failed run may leave any of them.
remove_snapshots()
{
	local name

	dmsetup resume "$PREFIX-origin-renamed" 2> /dev/null &&
		dmsetup rename "$PREFIX-origin-renamed" "$PREFIX-origin"
	for name in origin-{0,1,2}{,-renamed}; do
		dm_remove_deferred "$name"
	done
}

# run_cycles COUNT SEED
run_cycles()
{
	local cow

	cow=$(path_of cow)
	if "$FLEECE_TEST_BIN/cycles" --cycles "$1" --seed "$2" "$PREFIX-origin" \
		"$(path_of disk)" "$cow-0" "$cow-1" "$cow-2" > "$SCRATCH/cycles" 2>&1; then
		ok "$1 cycles: no violation"
		note "$(sed 's/^# //' "$SCRATCH/cycles")"
	else
		not_ok "$1 cycles: no violation" "$(cat "$SCRATCH/cycles")" \
			"$(dmsetup status | grep "^$PREFIX")"
		finish
	fi
}

# Does the kernel keep memory for checks of its own, freed objects for one?
checks_memory()
{
	grep -qE ' (kasan_report|kmemleak_alloc)$' /proc/kallsyms
}

# KiB that the kernel has for itself: all that is neither free nor of programs or files,
# stacks, nor slabs that it can shrink. Where it checks memory, slabs move by
# themselves: then only vmalloc without stacks, our maps, which vmalloc does not count, and
# per-CPU memory.
kernel_memory()
{
	cat /proc/sys/vm/stat_refresh
	if checks_memory; then
		awk -v maps="$(maps_kib)" '/^(VmallocUsed|Percpu):/ { sum += $2 }
			/^KernelStack:/ { sum -= $2 }
			END { print sum + maps }' /proc/meminfo
	else
		# Pages that each CPU has at hand are free, too.
		awk '/^MemTotal:/ { sum += $2 }
			/^(MemFree|Buffers|Cached|SwapCached|AnonPages|SReclaimable|PageTables|KernelStack):/ {
				sum -= $2 }
			/^ +count:/ { sum -= 4 * $2 }
			END { print sum }' /proc/meminfo /proc/zoneinfo
	fi
}

# Users of the module, devices, slab caches, and threads of work queues.
kernel_objects()
{
	echo "$(cat /sys/module/dm_fleece/refcnt) $(dmsetup ls | wc -l) $(wc -l < /proc/slabinfo)" \
		"$(grep -lx 'fleece.*' /proc/[0-9]*/comm 2> /dev/null | wc -l)"
}

# Memory is given back when RCU lets it go, and the last workers are idle.
is_as_before()
{
	growth=$(($(kernel_memory) - memory))
	[ "$growth" -le "$LIMIT_KIB" ] && [ "$(kernel_objects)" = "$objects" ]
}

load_fleece
requires_tool cycles
no_probing
make_arena 64
make_disk disk $SECTORS
for disk in cow-0 cow-1 cow-2; do
	make_disk "$disk" "$(cow_sectors 1024 8)"
	# The RAM disk has all its pages from now on.
	or_bail pattern "$disk" write zero 0 -
done
make_origin origin disk 128
defer remove_snapshots
note "seed $SEED, $CYCLES cycles"
run_cycles $WARM_UP $((SEED + 1))
memory=$(kernel_memory)
objects=$(kernel_objects)
run_cycles "$CYCLES" "$SEED"
wait_until 20 is_as_before
note "kernel memory has grown by $growth KiB"
at_most "kernel memory has not grown by more than 2 MiB (in KiB)" "$growth" $LIMIT_KIB
is "there are no more users of the module, devices, slab caches and threads" \
	"$(kernel_objects)" "$objects"
is "no snapshot is left" "$(origin_field origin snapshots)" 0
fails "the module cannot be unloaded while it is used" "in use" rmmod dm_fleece
or_bail dm_remove origin
finish
