#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will let copies fail in each way under on_cbw_error break_cluster and
# break_write, and let writes wait for a slot with on_cow_full wait: what each
# policy gives up is given up, and nothing else.
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=32768
TIMEOUT_MS=$((3000 * ${FLEECE_SLOWDOWN:-1}))
load_fleece
no_probing
make_arena 64
make_disk disk $SECTORS
make_disk cow "$(cow_sectors 128 256)"
make_disk small "$(cow_sectors 128 4)"
make_origin origin disk
or_bail pattern origin write 1 0 -
cow_size=$(blockdev --getsz "$(path_of cow)")
good_cow=$(slice_table cow)

# error_of NAME: errno and sector of its status.
error_of()
{
	echo "$(snapshot_field "$1" errno) $(snapshot_field "$1" sector)"
}

# spoil NAME [SECTOR]: the 64 KiB from there on are bad, or those at 1 MiB, where the COW
# device has slot 0.
spoil()
{
	local start=${DISK_START[$1]} bad=${2:-2048} size

	size=$(blockdev --getsz "$(path_of "$1")")
	replace_lines "$1" <<-END
		0 $bad linear $ARENA $start
		$bad 128 error
		$((bad + 128)) $((size - bad - 128)) linear $ARENA $((start + bad + 128))
	END
}

end_snapshot()
{
	or_bail dm_remove snap
	or_bail replace_table cow "$good_cow"
	or_bail pattern origin write 1 0 -
}

# write_in_background OFFSET LENGTH
write_in_background()
{
	pattern origin write 2 "$1" "$2" > "$SCRATCH/write" 2>&1 &
	writer=$!
}

# add_waiting NAME NUMBER CONTENT OFFSET LENGTH: as in_background, one more write of the origin,
# so that there are so many that wait.
add_waiting()
{
	in_background "$1" pattern origin write "$3" "$4" "$5"
	wait_until 30 snapshot_field_is snap waiting "$2" || bail "preparation: the $1 write waits"
}

# All of the COW device fails: one cluster is lost, the next ones are not.
# test_cluster_cow_error STAGING
test_cluster_cow_error()
{
	local events

	make_snapshot snap disk cow 128 "4 staging $1 on_cbw_error break_cluster"
	or_bail replace_table cow "0 $cow_size error"
	events=$(events_of snap)
	log_mark
	gets "break_cluster, staging $1: the live write succeeds" ok origin write 2 1M 64k
	wait_until 30 snapshot_field_is snap lost 1
	wait_copied snap
	is "break_cluster, staging $1: one cluster is lost" \
		"$(snapshot_field snap state) $(snapshot_field snap lost) $(snapshot_field snap accessible)" \
		"active 1 255"
	is "break_cluster, staging $1: errno and sector" "$(error_of snap)" "5 2048"
	expect_log "break_cluster, staging $1: the log says so" "is lost.*COW"
	wait_until 30 has_events snap "$events" ||
		not_ok "break_cluster, staging $1: a lost cluster is an event"
	or_bail replace_table cow "$good_cow"
	gets "break_cluster, staging $1: later copies succeed" ok origin write 2 2M 64k
	wait_copied snap
	gets "break_cluster, staging $1: the lost cluster is an error" EIO snap read 1M 64k
	gets "break_cluster, staging $1: what is before it is served" ok snap verify 1 0 1M
	gets "break_cluster, staging $1: and what is after it" ok snap verify 1 1088k -
	is "break_cluster, staging $1: one slot is used" "$(snapshot_field snap used)" 1
	gets "break_cluster, staging $1: the origin has the new data" ok origin verify 2 1M 64k
	end_snapshot
}

# One bad place under a run of eight clusters costs one of them, and once.
test_cluster_bad_slot()
{
	or_bail spoil cow
	make_snapshot snap disk cow 128 "4 staging $1 on_cbw_error break_cluster"
	gets "bad slot, staging $1: the live write succeeds" ok origin write 2 1M 512k
	wait_until 30 snapshot_field_is snap used 7
	wait_copied snap
	is "bad slot, staging $1: one of eight clusters is lost" \
		"$(snapshot_field snap lost) $(snapshot_field snap used)" "1 7"
	gets "bad slot, staging $1: it is an error" EIO snap read 1M 64k
	gets "bad slot, staging $1: the others are right" ok snap verify 1 1088k 448k
	or_bail pattern origin write 2 4M 512k
	wait_until 30 snapshot_field_is snap used 15
	wait_copied snap
	is "bad slot, staging $1: it spoils no other cluster" \
		"$(snapshot_field snap lost) $(snapshot_field snap used)" "1 15"
	gets "bad slot, staging $1: which are right too" ok snap verify 1 4M 512k
	end_snapshot
}

# test_large_cluster WHAT DISK SECTOR: a bad place behind the first MiB of a cluster.
test_large_cluster()
{
	or_bail spoil "$2" "$3"
	make_snapshot snap disk cow 4096 "2 on_cbw_error break_cluster"
	gets "large cluster, $1: the live write succeeds" ok origin write 2 0 4k
	wait_copied snap
	is "large cluster, $1: it is lost" \
		"$(snapshot_field snap lost) $(snapshot_field snap used)" "1 0"
	or_bail replace_table "$2" "$(slice_table "$2")"
	gets "large cluster, $1: it is an error" EIO snap read 0 4k
	gets "large cluster, $1: the next one is right" ok snap verify 1 2M 2M
	end_snapshot
}

test_write_cow_error()
{
	make_snapshot snap disk cow 128 "2 on_cbw_error break_write"
	or_bail replace_table cow "0 $cow_size error"
	log_mark
	gets "break_write: the live write fails" EIO origin write 2 1M 64k
	is "break_write: the snapshot is as it was" "$(status_of snap)" \
		"active 0/256 128 256/256 0 0 0 0 0 0 0"
	expect_log "break_write: the log says so" "writes.*fail"
	gets "break_write: the origin has the old data" ok origin verify 1 1M 64k
	gets "break_write: so has the snapshot" ok snap verify 1 0 -
	or_bail replace_table cow "$good_cow"
	gets "break_write: later the write succeeds" ok origin write 2 1M 64k
	gets "break_write: and the old data is kept" ok snap verify 1 0 -
	is "break_write: in one slot" "$(copied_and_used)" "1 1"
	is "break_write: never staged" "$(snapshot_field snap staged)" 0
	end_snapshot
}

test_write_bad_slot()
{
	or_bail spoil cow
	make_snapshot snap disk cow 128 "2 on_cbw_error break_write"
	gets "break_write, bad slot: the first write fails" EIO origin write 2 1M 64k
	gets "break_write, bad slot: its repetition succeeds" ok origin write 2 1M 64k
	gets "break_write, bad slot: another write too" ok origin write 2 2M 512k
	gets "break_write, bad slot: the snapshot is right" ok snap verify 1 0 -
	is "break_write, bad slot: nothing is lost" \
		"$(snapshot_field snap lost) $(snapshot_field snap used)" "0 9"
	end_snapshot
}

# Of those that wait for one copy, only who needs what it cannot keep fails.
test_write_bad_slot_shared()
{
	local first

	or_bail spoil cow
	make_snapshot snap disk cow 128 "4 on_cbw_error break_write cbw_timeout 0"
	defer dmsetup resume "$PREFIX-cow"
	stall cow
	add_waiting first 1 2 1M 512k
	first=$background
	add_waiting second 2 3 1472k 4k
	unstall cow
	wait "$first" $background
	is "shared copy: the write over the bad slot fails, that of another cluster succeeds" \
		"$(cat "$SCRATCH/first" "$SCRATCH/second" | paste -sd' ')" "EIO ok"
	is "shared copy: only that one is copied" "$(copied_and_used)" "1 1"
	gets "shared copy: the snapshot is right" ok snap verify 1 0 -
	end_snapshot
}

# The origin cannot be read: only break_write keeps the write from going, which then
# is lost as little as the cluster is.
test_write_origin_error()
{
	local good

	good=$(slice_table disk)
	make_snapshot snap disk cow 128 "2 on_cbw_error break_write"
	or_bail spoil disk
	gets "break_write, unreadable: the live write fails" EIO origin write 2 1M 64k
	or_bail replace_table disk "$good"
	is "break_write, unreadable: nothing is lost" \
		"$(snapshot_field snap state) $(snapshot_field snap lost)" "active 0"
	gets "break_write, unreadable: the origin has the old data" ok origin verify 1 1M 64k
	gets "break_write, unreadable: later the write succeeds" ok origin write 2 1M 64k
	gets "break_write, unreadable: the snapshot is right" ok snap verify 1 0 -
	end_snapshot
}

test_cluster_full()
{
	make_snapshot snap disk small 128 "2 on_cbw_error break_cluster"
	gets "full, break_cluster: the live write succeeds" ok origin write 2 1M 512k
	wait_copied snap
	is "full, break_cluster: what has no slot is lost" \
		"$(snapshot_field snap state) $(snapshot_field snap used) $(snapshot_field snap lost)" \
		"active 4 4"
	is "full, break_cluster: errno and sector" "$(error_of snap)" "28 2560"
	gets "full, break_cluster: the copied part is right" ok snap verify 1 1M 256k
	gets "full, break_cluster: the lost part is an error" EIO snap read 1280k 4k
	gets "full, break_cluster: the rest is right" ok snap verify 1 2M -
	gets "full, break_cluster: another live write succeeds" ok origin write 2 4M 64k
	is "full, break_cluster: one more is lost" "$(snapshot_field snap lost)" 5
	is "full, break_cluster: the error is still the first" "$(error_of snap)" "28 2560"
	end_snapshot
}

# What has its slot is not lost for what has none, although it is not copied yet.
test_cluster_full_in_flight()
{
	make_snapshot snap disk small 128 "6 staging 0 on_cbw_error break_cluster cbw_timeout 0"
	defer dmsetup resume "$PREFIX-small"
	stall small
	write_in_background 1M 512k
	wait_until 30 snapshot_field_reaches snap lost 4 ||
		bail "full, in flight: what has no slot is lost"
	unstall small
	wait $writer
	is "full, in flight: the live write succeeds" "$(cat "$SCRATCH/write")" ok
	is "full, in flight: only what has no slot is lost" \
		"$(snapshot_field snap used) $(snapshot_field snap lost)" "4 4"
	gets "full, in flight: the copied part is right" ok snap verify 1 1M 256k
	gets "full, in flight: the lost part is an error" EIO snap read 1280k 4k
	end_snapshot
}

test_write_full()
{
	make_snapshot snap disk small 128 "2 on_cbw_error break_write"
	gets "full, break_write: what has slots is written" ok origin write 2 1M 256k
	gets "full, break_write: more is refused" ENOSPC origin write 2 4M 64k
	is "full, break_write: the snapshot is kept" \
		"$(snapshot_field snap state) $(snapshot_field snap lost)" "active 0"
	gets "full, break_write: the copied can be written" ok origin write 3 1M 256k
	or_bail message snap release 2048 128
	gets "full, break_write: a released slot is one" ok origin write 2 4M 64k
	gets "full, break_write: the snapshot is right" ok snap verify 1 1088k -
	end_snapshot
}

# test_wait STAGING: a write waits for a slot, and gets it by a release.
test_wait()
{
	local events

	make_snapshot snap disk small 128 "8 staging $1 on_cow_full wait low_water 2 cbw_timeout 0"
	or_bail pattern origin write 2 1M 256k
	wait_copied snap
	events=$(events_of snap)
	log_mark
	write_in_background 4M 128k
	wait_until 30 snapshot_field_is snap waiting 1 || bail "wait, staging $1: the write waits"
	ok "wait, staging $1: the write waits"
	wait_until 30 has_events snap "$events" ||
		not_ok "wait, staging $1: waiting is an event"
	expect_log "wait, staging $1: the log says so" "full.*wait"
	is "wait, staging $1: it is not broken" "$(snapshot_field snap state)" active
	gets "wait, staging $1: reads go on meanwhile" ok snap verify 1 0 -
	gets "wait, staging $1: so do writes that need no slot" ok origin write 3 1M 256k
	events=$(events_of snap)
	or_bail message snap release 2048 128
	# It is taken at once, and both are events, the latter a moment later.
	wait_until 30 has_events snap $((events + 1)) ||
		not_ok "wait, staging $1: a free slot is an event, and so is waiting for another"
	is "wait, staging $1: one slot is not enough for two clusters" \
		"$(snapshot_field snap waiting) $(snapshot_field snap state)" "1 active"
	is "wait, staging $1: but is taken" "$(snapshot_field snap used)" 4
	events=$(events_of snap)
	or_bail message snap release 2176 384
	wait $writer
	is "wait, staging $1: with enough slots it succeeds" "$(cat "$SCRATCH/write")" ok
	wait_copied snap
	wait_until 30 has_events snap "$events" || not_ok "wait, staging $1: recovery is an event"
	gets "wait, staging $1: the snapshot is right before" ok snap verify 1 0 1M
	gets "wait, staging $1: and after what was released" ok snap verify 1 1280k -
	is "wait, staging $1: nothing is lost" \
		"$(snapshot_field snap state) $(snapshot_field snap lost) $(snapshot_field snap used)" \
		"active 0 2"
	end_snapshot
}

# Who needs no slot any more does not wait behind those who do.
test_wait_overtaken()
{
	local second

	make_snapshot snap disk small 128 "4 on_cow_full wait cbw_timeout 0"
	or_bail pattern origin write 2 1M 256k
	wait_copied snap
	write_in_background 4M 64k
	wait_until 30 snapshot_field_is snap waiting 1 || bail "overtaken: the first write waits"
	pattern origin write 2 6M 64k > "$SCRATCH/second" 2>&1 &
	second=$!
	wait_until 30 snapshot_field_is snap waiting 2 || bail "overtaken: both writes wait"
	# Uncopied: its release gives no slot to the first one.
	or_bail message snap release 12288 128
	wait_until 30 snapshot_field_is snap waiting 1 ||
		not_ok "overtaken: the second write waits behind the first"
	is "overtaken: the first one still waits" "$(snapshot_field snap waiting)" 1
	or_bail message snap release 8192 128
	wait $writer $second
	is "overtaken: both succeed" "$(cat "$SCRATCH/write" "$SCRATCH/second" | paste -sd' ')" "ok ok"
	gets "overtaken: the copies are right" ok snap verify 1 1M 256k
	end_snapshot
}

# So does who needs the same copy as one before it, which is in RAM.
test_wait_shared()
{
	local writers=()

	make_snapshot snap disk small 128 "4 on_cow_full wait cbw_timeout 0"
	defer dmsetup resume "$PREFIX-small"
	or_bail pattern origin write 2 1M 256k
	wait_copied snap
	add_waiting first 1 2 4M 4k
	writers+=("$background")
	add_waiting second 2 2 6M 4k
	writers+=("$background")
	add_waiting third 3 2 4100k 4k
	writers+=("$background")
	stall small
	or_bail message snap release 2048 128
	wait_until 20 snapshot_field_is snap waiting 1 ||
		not_ok "shared: the third write waits behind the second, though it needs no slot"
	is "shared: the second one still waits" "$(snapshot_field snap waiting)" 1
	unstall small
	wait_copied snap
	or_bail message snap release 2176 128
	wait "${writers[@]}"
	is "shared: all succeed" \
		"$(cat "$SCRATCH/first" "$SCRATCH/second" "$SCRATCH/third" | paste -sd' ')" "ok ok ok"
	gets "shared: the copies are right" ok snap verify 1 4M 2112k
	end_snapshot
}

# test_wait_timeout POLICY RESULT STATE LOST CLUSTER: waiting for a slot ends with cbw_timeout.
test_wait_timeout()
{
	local took

	make_snapshot snap disk small 128 \
		"6 on_cbw_error $1 on_cow_full wait cbw_timeout $TIMEOUT_MS"
	or_bail pattern origin write 2 1M 256k
	wait_copied snap
	took=$(elapsed_ms pattern origin write 2 4M 64k)
	is "wait, $1: the result of the write" "$(cat "$SCRATCH/output")" "$2"
	at_least "wait, $1: it took its time" "$took" $((TIMEOUT_MS - 500))
	is "wait, $1: state and lost clusters" \
		"$(snapshot_field snap state) $(snapshot_field snap lost)" "$3 $4"
	is "wait, $1: nothing waits" "$(snapshot_field snap waiting)" 0
	gets "wait, $1: what became of the cluster" "$5" snap verify 1 4M 64k
	end_snapshot
}

# test_stalled_timeout POLICY RESULT LOST CLUSTER: the COW device does not answer.
test_stalled_timeout()
{
	make_snapshot snap disk cow 128 "6 staging 0 on_cbw_error $1 cbw_timeout $TIMEOUT_MS"
	defer dmsetup resume "$PREFIX-cow"
	stall cow
	gets "stalled, $1: the result of the write" "$2" origin write 2 1M 64k
	is "stalled, $1: state and lost clusters" \
		"$(snapshot_field snap state) $(snapshot_field snap lost)" "active $3"
	unstall cow
	gets "stalled, $1: later the write succeeds" ok origin write 2 1M 64k
	gets "stalled, $1: what became of the cluster" "$4" snap verify 1 1M 64k
	gets "stalled, $1: the rest is right" ok snap verify 1 1088k -
	wait_until 30 snapshot_field_is snap used $((1 - $3))
	is "stalled, $1: no slot is leaked" "$(snapshot_field snap used)" $((1 - $3))
	end_snapshot
}

# Two writes wait for one copy, the second one begins later.
test_stalled_two_timeouts()
{
	local first

	make_snapshot snap disk cow 128 "4 on_cbw_error break_write cbw_timeout $((2 * TIMEOUT_MS))"
	defer dmsetup resume "$PREFIX-cow"
	stall cow
	add_waiting first 1 2 1M 4k
	first=$background
	sleep $((TIMEOUT_MS / 1000))
	in_background second pattern origin write 3 1056k 4k
	wait "$first"
	unstall cow
	wait $background
	is "stalled, two writes: the second does not fail when the first has waited for too long" \
		"$(cat "$SCRATCH/first" "$SCRATCH/second" | paste -sd' ')" "ETIMEDOUT ok"
	is "stalled, two writes: one copy is made" "$(copied_and_used)" "1 1"
	gets "stalled, two writes: the snapshot is right" ok snap verify 1 0 -
	end_snapshot
}

# slow_reads MS: so long take those of the first half of the disk.
# shellcheck disable=SC2317 # called by or_bail
slow_reads()
{
	local start=${DISK_START[disk]} half=$((SECTORS / 2))

	replace_lines disk <<-END
		0 $half delay $ARENA $start $1 $ARENA $start 0
		$half $half linear $ARENA $((start + half))
	END
}

# Copies that take long have all but 512 KiB of the memory for them. A write that needs more
# waits, and so does one behind it that needs less, but not when the first one has failed.
test_expired_first()
{
	local i writers=()

	if ! has_module dm-delay; then
		skip "expired: the write behind the one that has failed" "there is no dm-delay"
		return
	fi
	make_snapshot snap disk cow 128 "4 on_cbw_error break_write cbw_timeout $((2 * TIMEOUT_MS))"
	defer replace_table disk "$(slice_table disk)"
	or_bail slow_reads $((5 * TIMEOUT_MS))
	for i in 0 1 2 3 4 5 6; do
		in_background "write.$i" pattern origin write 2 ${i}M 1M
		writers+=("$background")
	done
	in_background "write.7" pattern origin write 2 7M 512k
	writers+=("$background")
	wait_until 30 snapshot_field_is snap waiting 8 || bail "expired: writes wait for slow copies"
	add_waiting write.8 9 2 8M 1M
	writers+=("$background")
	sleep $((TIMEOUT_MS / 1000))
	in_background last pattern origin write 2 10M 64k
	wait "${writers[@]}" "$background"
	is "expired: the writes that have waited for too long fail" \
		"$(sort -u "$SCRATCH"/write.[0-8])" ETIMEDOUT
	is "expired: the last one does not, as there is memory for it" "$(cat "$SCRATCH/last")" ok
	wait_copied snap
	gets "expired: the snapshot is right" ok snap verify 1 0 -
	or_bail replace_table disk "$(slice_table disk)"
	end_snapshot
}

for staging in 0 65536; do
	test_cluster_cow_error $staging
	test_cluster_bad_slot $staging
	test_wait $staging
done
test_large_cluster "bad slot" cow 4224
test_large_cluster "unreadable" disk 2048
test_write_cow_error
test_write_bad_slot
test_write_bad_slot_shared
test_write_origin_error
test_cluster_full
test_cluster_full_in_flight
test_write_full
test_wait_overtaken
test_wait_shared
test_wait_timeout break_snapshot ok broken 0 EIO
test_wait_timeout break_cluster ok active 1 EIO
test_wait_timeout break_write ETIMEDOUT active 0 ok
test_stalled_timeout break_cluster ok 1 EIO
test_stalled_timeout break_write ETIMEDOUT 0 ok
test_stalled_two_timeouts
test_expired_first
finish
