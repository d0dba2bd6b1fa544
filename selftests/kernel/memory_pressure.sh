#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will swap to an origin that has two snapshots until more is in its swap
# space than fits into memory: to write a page out takes the copying of old data first,
# and an intent on the metadata device, so that memory comes free only if copies and grants
# make progress when there is next to none. Nothing is given up by a time limit, all of
# memory is as it was, and so are the snapshots; what was written counts as changed. A
# checkpoint whose map is larger than what is left is refused.
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SWAP_MIB=256
# What is to be left of memory for paging, what may be, and what is put into it on top.
LEFT_MIB=80
LEFT_MAX_MIB=240
PAGED_MIB=160
# A kernel that checks itself takes more than 10 ms for each page.
[ "${FLEECE_SLOWDOWN:-1}" -le 3 ] || PAGED_MIB=40
SWAPPED_MIN_MIB=$((PAGED_MIB / 4))
LIMIT_SECONDS=$((450 * ${FLEECE_SLOWDOWN:-1}))
HUGE_PAGES=/proc/sys/vm/nr_hugepages
# Its map, a bit for 4 KiB, has 512 MiB.
HUGE_SECTORS=$((16 << 31))

load_fleece
requires_program mkswap swapon swapoff
requires_tool hog
[ -e /proc/swaps ] || skip_all "the kernel does not swap"
[ -e "$HUGE_PAGES" ] || skip_all "the kernel has no huge pages to put memory away"
# Of a RAM disk nothing would be gained.
ARENA=${FLEECE_DISKS:-}
ARENA=${ARENA%% *}
[ -b "$ARENA" ] || skip_all "needs a disk in FLEECE_DISKS"
make_disk disk $((SWAP_MIB * 2048))
make_disk cow-small "$(cow_sectors 8 $((SWAP_MIB * 256)))"
make_disk cow-large "$(cow_sectors 128 $((SWAP_MIB * 16)))"
make_disk meta 16384
set_parameter metadata_settle_ms 100
set_parameter metadata_timeout_ms 600000
format_metadata meta $((SWAP_MIB * 2048)) --granularity 4096 --region 64k
make_durable_origin origin disk meta 8
or_bail pattern origin write 1 0 -
or_bail mkswap "$(path_of origin)"

# shellcheck disable=SC2317 # called at the end
stop_swapping()
{
	swapoff "$(path_of origin)" 2> /dev/null || :
}

available_mib()
{
	awk '$1 == "MemAvailable:" { print int($2 / 1024) }' /proc/meminfo
}

# put_memory_away: what nobody uses is not filled first, so that this takes no time.
put_memory_away()
{
	local had attempt huge_mib

	huge_mib=$(awk '$1 == "Hugepagesize:" { print $2 / 1024 }' /proc/meminfo)
	had=$(cat $HUGE_PAGES)
	# shellcheck disable=SC2064 # as it is now
	defer eval "echo $had > $HUGE_PAGES"
	for attempt in 1 2 3 4 5; do
		[ "$(available_mib)" -gt $((LEFT_MIB + huge_mib)) ] || return 0
		# What is in the way of large pages.
		sync
		echo 3 > /proc/sys/vm/drop_caches
		echo 1 > /proc/sys/vm/compact_memory
		echo $(($(cat $HUGE_PAGES) + ($(available_mib) - LEFT_MIB) / huge_mib)) \
			> $HUGE_PAGES
	done
	[ "$(available_mib)" -le $LEFT_MAX_MIB ] ||
		bail "memory cannot be put away: $(available_mib) MiB are left after $attempt attempts"
}

swapped_out_mib()
{
	awk '$1 == "pswpout" { print int($2 / 256) }' /proc/vmstat
}

# judge NAME CLUSTERS: after the pressure.
judge()
{
	# The kernel may be writing on.
	succeeds "$1: no write waits for ever" wait_until "$WAIT_SECONDS" \
		snapshot_field_is "$1" waiting 0
	wait_copied "$1" || not_ok "$1: all copies get to the COW device"
	is "$1: active" "$(snapshot_field "$1" state)" active
	is "$1: no cluster is lost" "$(snapshot_field "$1" lost)" 0
	at_least "$1: clusters copied" "$(snapshot_field "$1" copied)" "$2"
	succeeds "$1: its first page is as it was" cmp -n 4096 "$(path_of "$1")" "$SCRATCH/header"
	gets "$1: and so is the rest" ok "$1" verify 1 4096 $((SWAP_MIB * 1048576 - 4096))
}

# The message must not wait for memory: it may hold up the resume of its origin. Nor must it
# leave others without.
test_huge_checkpoint()
{
	fails "a checkpoint there is no memory for: refused" "Cannot allocate memory" \
		message huge checkpoint_create one
	is "a checkpoint there is no memory for: there is none" \
		"$(message huge checkpoint_list)" ""
	gets "a checkpoint there is no memory for: writes go on" ok huge write 2 1M 64k
}

# What mkswap has written.
head -c 4096 "$(path_of disk)" > "$SCRATCH/header"
make_snapshot small disk cow-small 8 "2 cbw_timeout 0"
make_snapshot large disk cow-large 128 "4 cbw_timeout 0 staging 0"
or_bail message origin checkpoint_create before
or_bail swapon "$(path_of origin)"
defer stop_swapping

or_bail dm_create zero "0 $HUGE_SECTORS zero"
defer dm_remove_deferred zero
or_bail dm_create huge "0 $HUGE_SECTORS fleece $(path_of zero) - 8"
defer dm_remove_deferred huge
before=$(swapped_out_mib)
put_memory_away
succeeds "memory is as it was" timeout $LIMIT_SECONDS "$FLEECE_TEST_BIN/hog" \
	$(($(available_mib) + PAGED_MIB))
at_least "MiB written out to the origin" $(($(swapped_out_mib) - before)) $SWAPPED_MIN_MIB
like "the metadata has not failed" "$(origin_field origin metadata)" "^(clean|dirty)$"
test_huge_checkpoint
or_bail dm_remove huge
at_least "granules changed" "$(origin_field origin changed)" $((SWAPPED_MIN_MIB * 256 / 2))
judge small $((SWAPPED_MIN_MIB * 256 / 2))
judge large $((SWAPPED_MIN_MIB * 16 / 2))
# A snapshot of swap space in use, whose writes wait while it is taken, can end.
or_bail dm_remove small
or_bail dm_remove large
succeeds "swapping to the origin ends" swapoff "$(path_of origin)"
finish
