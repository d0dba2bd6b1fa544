#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will suspend the COW device, so that copies stall: snapshot reads go
# on and return old data, live writes wait no longer than cbw_timeout, and with
# staging they do not wait at all as long as there is room. One that takes four
# requests and no more makes its submitters wait as well.
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=32768
# What is not to wait takes less than this, for all that the machine is slow.
TIMEOUT_MS=$((4000 * ${FLEECE_SLOWDOWN:-1}))
load_fleece
no_probing
make_arena 64
make_disk disk $SECTORS
make_disk cow "$(cow_sectors 128 256)"
make_narrow narrow "$(cow_sectors 128 256)"
make_origin origin disk
or_bail pattern origin write 1 0 -
cow_size=$(blockdev --getsz "$(path_of cow)")
good_cow=$(slice_table cow)

# make_stallable FEATURES: a snapshot whose removal cannot hang on the stalled device.
make_stallable()
{
	make_snapshot snap disk cow 128 "$1"
	defer dmsetup resume "$PREFIX-cow"
}

# write_in_background OFFSET LENGTH
write_in_background()
{
	pattern origin write 2 "$1" "$2" > "$SCRATCH/write" 2>&1 &
	writer=$!
}

test_reads()
{
	make_stallable "4 staging 0 cbw_timeout 0"
	stall cow
	write_in_background 1M 64k
	wait_until 20 snapshot_field_reaches snap waiting 1 ||
		bail "without staging the live write waits"
	ok "without staging the live write waits"
	gets_now "a read of its cluster does not, and returns the old data" ok snap verify 1 1M 64k
	gets_now "nor does a read of others, which is old data too" ok snap verify 1 0 1M
	gets_now "nor a live read" ok origin verify 1 2M 1M
	unstall cow
	wait $writer
	is "the write then succeeds" "$(cat "$SCRATCH/write")" ok
	gets "the snapshot has the old data" ok snap verify 1 0 2M
	gets "the origin the new" ok origin verify 2 1M 64k
	is "one cluster was copied" "$(status_of snap)" "active 1/256 128 256/256 1 0 0 0 0 0 0"
	or_bail dm_remove snap
	or_bail pattern origin write 1 0 2M
}

# Two writes of one cluster that wait need one copy.
test_two_writes()
{
	local second

	make_stallable "4 staging 0 cbw_timeout 0"
	stall cow
	write_in_background 1M 4k
	pattern origin write 2 $((1048576 + 32768)) 4k > "$SCRATCH/second" 2>&1 &
	second=$!
	wait_until 20 snapshot_field_is snap waiting 2 || bail "both writes of a cluster wait"
	ok "both writes of a cluster wait"
	unstall cow
	wait $writer $second
	is "both succeed" "$(cat "$SCRATCH/write" "$SCRATCH/second" | paste -sd' ')" "ok ok"
	is "with one copy" "$(copied_and_used)" "1 1"
	gets "of the old data" ok snap verify 1 1M 64k
	or_bail dm_remove snap
	or_bail pattern origin write 1 0 2M
}

# What is not staged is in RAM all the same until the COW device has it. Each of these
# writes needs 1 MiB of old data.
test_buffers()
{
	local i before writers=()

	make_stallable "4 staging 0 cbw_timeout 0"
	before=$(device_stat disk 3)
	stall cow
	for ((i = 0; i < 16; i++)); do
		in_background "write.$i" pattern origin write 2 ${i}M 1M
		writers+=("$background")
	done
	wait_until 20 snapshot_field_reaches snap waiting 16 ||
		bail "without staging all of many writes wait"
	at_most "without staging there are 8 MiB of old data in RAM at the most" \
		$(($(device_stat disk 3) - before)) 16384
	unstall cow
	wait "${writers[@]}"
	is "all of many writes then succeed" "$(sort -u "$SCRATCH"/write.*)" ok
	gets "and all old data is kept" ok snap verify 1 0 -
	or_bail dm_remove snap
	or_bail pattern origin write 1 0 -
}

# Two clusters of 4 MiB are all the memory that copies may take without staging.
test_passes_memory()
{
	local writers=()
	local i

	make_snapshot snap disk cow 8192 "4 staging 0 cbw_timeout 0"
	defer dmsetup resume "$PREFIX-cow"
	stall cow
	for i in 0 1 2 3; do
		in_background "write.$i" pattern origin write 2 $((4 * i))M 4k
		writers+=("$background")
		wait_until 20 snapshot_field_is snap waiting $((i + 1)) ||
			bail "write $i waits for its copy, or for memory for it"
	done
	or_bail message snap release 24576 8192
	succeeds "behind a write that waits for memory, one goes on whose cluster is released" \
		wait_until 20 snapshot_field_is snap waiting 3
	unstall cow
	wait "${writers[@]}"
	is "and the others when there is memory" "$(sort -u "$SCRATCH"/write.[0-3])" ok
	is "each with a copy" "$(copied_and_used)" "3 3"
	gets "of the old data" ok snap verify 1 0 12M
	or_bail dm_remove snap
	or_bail pattern origin write 1 0 -
}

test_timeout()
{
	local took

	make_stallable "4 staging 0 cbw_timeout $TIMEOUT_MS"
	or_bail pattern origin write 2 0 64k
	stall cow
	log_mark
	took=$(elapsed_ms pattern origin write 2 1M 64k)
	is "the live write succeeds" "$(cat "$SCRATCH/output")" ok
	at_least "after its time" "$took" $((TIMEOUT_MS - 500))
	at_most "and not much later" "$took" $((2 * TIMEOUT_MS))
	is "the snapshot is broken with ETIMEDOUT" \
		"$(snapshot_field snap state) $(snapshot_field snap errno) $(snapshot_field snap sector)" \
		"broken 110 2048"
	expect_log "and the log says so" "broken"
	at_most "later writes have no delay" "$(elapsed_ms pattern origin write 2 2M 1M)" \
		$((TIMEOUT_MS - 500))
	is "and succeed" "$(cat "$SCRATCH/output")" ok
	at_most "nor to the same cluster" "$(elapsed_ms pattern origin write 3 1M 64k)" \
		$((TIMEOUT_MS - 500))
	gets "the snapshot cannot be read" EIO snap read 4M 4k
	unstall cow
	gets "nor later" EIO snap read 4M 4k
	gets "the origin has the last data" ok origin verify 3 1M 64k
	or_bail dm_remove snap
	or_bail pattern origin write 1 0 4M
}

test_staging()
{
	local took

	make_stallable "4 staging 512 cbw_timeout $TIMEOUT_MS"
	stall cow
	at_most "with staging the write does not wait" \
		"$(elapsed_ms pattern origin write 2 1M 64k)" $((TIMEOUT_MS - 500))
	is "and succeeds" "$(cat "$SCRATCH/output")" ok
	is "and breaks nothing" "$(snapshot_field snap state)" active
	at_least "its old data is staged" "$(snapshot_field snap staged)" 65536
	gets_now "a read of it is from RAM, and right" ok snap verify 1 1M 64k
	unstall cow
	wait_copied snap
	gets "after the copy it is the same" ok snap verify 1 1M 64k
	stall cow
	took=$(elapsed_ms pattern origin write 2 4M 1M)
	is "a write larger than the staging succeeds" "$(cat "$SCRATCH/output")" ok
	at_least "it waits for room" "$took" $((TIMEOUT_MS - 500))
	at_most "and no longer than it may" "$took" $((2 * TIMEOUT_MS))
	is "then the snapshot is broken with ETIMEDOUT" \
		"$(snapshot_field snap state) $(snapshot_field snap errno)" "broken 110"
	unstall cow
	wait_copied snap
	is "in the end nothing is staged" "$(snapshot_field snap staged) $(snapshot_field snap waiting)" "0 0"
	or_bail dm_remove snap
	or_bail pattern origin write 1 0 8M
}

# A read of several clusters out of one copy, one of them released.
test_staged_release()
{
	make_stallable "2 cbw_timeout 0"
	stall cow
	gets_now "three clusters are staged" ok origin write 2 1M 192k
	or_bail message snap release 2176 128
	is "one is released, and still all are staged" \
		"$(snapshot_field snap released) $(snapshot_field snap staged)" "1 $((3 * 65536))"
	gets_now "a read of them all is refused" ENODATA snap read 1M 192k
	gets_now "what is before the released one is read" ok snap verify 1 1M 64k
	gets_now "so is what is after it" ok snap verify 1 1152k 64k
	unstall cow
	wait_copied snap
	gets "when they are copied a read of them all is refused, too" ENODATA snap read 1M 192k
	is "the released one has no slot" "$(snapshot_field snap used)" 2
	or_bail dm_remove snap
	or_bail pattern origin write 1 0 2M
}

# slow_cow MS MS: so long take writes to the first eight slots, and to the next eight.
# shellcheck disable=SC2317 # called by or_bail
slow_cow()
{
	local start=${DISK_START[cow]}

	replace_lines cow <<-END
		0 2048 linear $ARENA $start
		2048 1024 delay $ARENA $((start + 2048)) 0 $ARENA $((start + 2048)) $1
		3072 1024 delay $ARENA $((start + 3072)) 0 $ARENA $((start + 3072)) $2
		4096 $((cow_size - 4096)) linear $ARENA $((start + 4096))
	END
}

# A write waits for the second one of two copies, and then for the first one: for neither
# of them longer than its time, but for both.
test_timeout_of_all()
{
	if ! has_module dm-delay; then
		skip "a write that waits for two copies" "there is no dm-delay"
		return
	fi
	or_bail slow_cow $((TIMEOUT_MS * 3 / 2)) $((TIMEOUT_MS * 3 / 4))
	make_snapshot snap disk cow 128 "4 staging 0 cbw_timeout $TIMEOUT_MS"
	gets "a write that waits for two copies succeeds" ok origin write 2 512k 1M
	is "and has waited no longer for both of them than for one" \
		"$(snapshot_field snap state) $(snapshot_field snap errno)" "broken 110"
	or_bail dm_remove snap
	or_bail replace_table cow "$good_cow"
	or_bail pattern origin write 1 0 2M
}

# More copies than a workqueue has workers, but as they are small, one stores them all.
test_submitters()
{
	# Writes that wait all the same break the snapshot in the end.
	make_snapshot snap disk narrow 8 "2 cbw_timeout 60000"
	defer dmsetup resume "$PREFIX-narrow-below"
	stall narrow-below
	or_bail dd if=/dev/zero "of=$(path_of origin)" bs=4k count=600 oflag=direct status=none
	is "live writes do not wait for slow submission: their old data is staged" \
		"$(snapshot_field snap staged)" $((600 * 4096))
	gets_now "and read" ok snap verify 1 0 4M
	unstall narrow-below
	wait_copied snap
	is "all of it is copied" "$(copied_and_used)" "600 600"
	gets "and read, again" ok snap verify 1 0 4M
	or_bail dm_remove snap
	or_bail pattern origin write 1 0 4M
}

# busy_workers QUEUES: a worker has the name of what it does.
busy_workers()
{
	grep -lE "\+($1)/" /proc/[0-9]*/comm 2> /dev/null | wc -l
}

# shellcheck disable=SC2317 # called by wait_until
no_reader_is_busy()
{
	[ "$(busy_workers 'fleece|fleece-any')" -eq 0 ]
}

# Large copies, each of 1 MiB, are for workers of their own.
test_large_submitters()
{
	make_snapshot snap disk narrow 128 "2 cbw_timeout 60000"
	defer dmsetup resume "$PREFIX-narrow-below"
	stall narrow-below
	gets_now "nor do large ones" ok origin write 2 0 -
	is "their old data is staged" "$(snapshot_field snap staged)" $((SECTORS * 512))
	succeeds "no worker waits that others may need" wait_until 20 no_reader_is_busy
	at_least "but those of the COW device" "$(busy_workers fleece-cow)" 1
	at_most "which are few" "$(busy_workers fleece-cow)" 8
	gets_now "staged, it is read" ok snap verify 1 0 -
	unstall narrow-below
	wait_copied snap
	is "all clusters are copied" "$(copied_and_used)" "256 256"
	gets "all of them are right" ok snap verify 1 0 -
	or_bail dm_remove snap
	or_bail pattern origin write 1 0 -
}

test_reads
test_two_writes
test_buffers
test_passes_memory
test_timeout
test_submitters
test_large_submitters
test_staging
test_staged_release
test_timeout_of_all
finish
