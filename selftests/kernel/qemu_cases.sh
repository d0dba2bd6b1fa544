#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will go through what QEMU's own tests of image fleecing, of its
# copy-before-write filter and of discard-source expect of a snapshot, and what
# else its code promises. A case has the name of QEMU's; "better" stands where the
# snapshot is to do more than QEMU's does.
#
# docs/qemu-cases.rst has them in a table. What has no meaning without QEMU:
# - insertion of the filter into a drained graph of nodes, policies handed from one
#   filter to another, permissions of nodes: there is no graph of nodes here.
# - min-cluster-size, the cluster of a target in qcow2: the table has the cluster.
# - discard=unmap on two nodes: there is one switch, release_on_discard.
# - backup jobs: the client copies by itself, "push backup" is done with dd.
#
#     origin (fleece)      snap (fleece-snapshot)
#         |       +--------+       |
#        disk (scsi_debug)        cow
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

CLUSTER=128
K=1024
M=1048576
SECTORS=131072
BYTES=$((SECTORS * 512))
# scsi_debug fails reads of 10 sectors from this one on, when it is told to.
BAD=4660
BAD_CLUSTER=$((BAD / CLUSTER * CLUSTER * 512))
# What QEMU's cases wait for a copy, which is no whole number of seconds here.
TIMEOUT_MS=$((4300 * ${FLEECE_SLOWDOWN:-1}))
FLEECED=$FLEECE_TREE/userspace/fleeced/fleeced

load_fleece
no_probing
make_discard_arena 224 opts=0
make_disk disk $SECTORS
make_disk cow "$(cow_sectors $CLUSTER 1024)"
make_disk small "$(cow_sectors $CLUSTER 4)"
make_disk target $SECTORS
cow_size=$(blockdev --getsz "$(path_of cow)")
good_cow=$(slice_table cow)

has_origin()
{
	dmsetup info "$PREFIX-origin" > /dev/null 2>&1
}

# Of the cases before.
drop_origin()
{
	! has_origin || or_bail dm_remove origin
}

# begin [GRANULARITY [FEATURES]]: the areas that the cases use are zeroes. Without
# arguments the origin of the cases before will do.
begin()
{
	[ $# -eq 0 ] || drop_origin
	has_origin || make_origin origin disk "${1:-128}" "${2:-}"
	or_bail pattern origin write zero 0 4M
	or_bail pattern origin write zero 32M 256k
	or_bail pattern origin write zero $((BYTES - 256 * K)) 256k
}

end()
{
	or_bail dm_remove snap
}

# denies DESCRIPTION OFFSET LENGTH: neither data nor a broken snapshot's error.
denies()
{
	gets "$1" ENODATA snap read "$2" "$3"
}

# ------------------------- image-fleecing -------------------------

write_patterns()
{
	or_bail pattern origin write 0x5d 0 64k
	or_bail pattern origin write 0xd5 1M 64k
	or_bail pattern origin write 0xdc 32M 64k
	or_bail pattern origin write 0xcd $((BYTES - 64 * K)) 64k
}

# Over a whole one of them, astride to the left, astride to the right, beside one.
overwrite_patterns()
{
	gets "$1: overwrite of a pattern" ok origin write 0xab 0 64k
	gets "$1: overwrite astride to the left" ok origin write 0xad $((M - 32 * K)) 64k
	gets "$1: overwrite astride to the right" ok origin write 0x1d $((32 * M + 32 * K)) 64k
	gets "$1: overwrite beside a pattern" ok origin write 0xea $((BYTES - 128 * K)) 64k
}

verify_patterns()
{
	gets "$1: 0x5d at 0" ok "$2" verify 0x5d 0 64k
	gets "$1: 0xd5 at 1 MiB" ok "$2" verify 0xd5 1M 64k
	gets "$1: 0xdc at 32 MiB" ok "$2" verify 0xdc 32M 64k
	gets "$1: 0xcd at 64 MiB - 64 KiB" ok "$2" verify 0xcd $((BYTES - 64 * K)) 64k
}

verify_zeroes()
{
	gets "$1: zeroes at 1 MiB - 32 KiB" ok "$2" verify zero $((M - 32 * K)) 32k
	gets "$1: zeroes at 32 MiB + 64 KiB" ok "$2" verify zero $((32 * M + 64 * K)) 32k
	gets "$1: zeroes at 64 MiB - 128 KiB" ok "$2" verify zero $((BYTES - 128 * K)) 64k
}

verify_overwritten()
{
	gets "$1: 0xab at 0" ok origin verify 0xab 0 64k
	gets "$1: 0xad at 1 MiB - 32 KiB" ok origin verify 0xad $((M - 32 * K)) 64k
	gets "$1: 0x1d at 32 MiB + 32 KiB" ok origin verify 0x1d $((32 * M + 32 * K)) 64k
	gets "$1: 0xea at 64 MiB - 128 KiB" ok origin verify 0xea $((BYTES - 128 * K)) 64k
	gets "$1: the rest of 0xd5" ok origin verify 0xd5 $((M + 32 * K)) 32k
	gets "$1: the rest of 0xdc" ok origin verify 0xdc 32M 32k
	gets "$1: 0xcd" ok origin verify 0xcd $((BYTES - 64 * K)) 64k
}

# Cases 1 to 4.
test_image_fleecing()
{
	begin
	write_patterns
	make_snapshot snap disk cow $CLUSTER
	verify_patterns "sanity check" snap
	verify_zeroes "sanity check" snap
	overwrite_patterns "testing COW"
	verify_patterns "verifying data" snap
	verify_zeroes "verifying data" snap
	wait_copied snap
	verify_patterns "verifying data, copied" snap
	verify_zeroes "verifying data, copied" snap
	is "copied amount: 393216 bytes" "$(copied_and_used)" "6 6"
	or_bail pattern origin write 0xab 0 64k
	or_bail pattern origin write 0xad $((M - 32 * K)) 64k
	wait_copied snap
	is "copied amount, again: none" "$(copied_and_used)" "6 6"
	verify_overwritten "confirming writes"
	or_bail dm_remove snap
	verify_overwritten "confirming writes, after teardown"
}

# deny_clean NAME
deny_clean()
{
	denies "$1: left of 1 MiB is denied" $((M - 32 * K)) 32k
	denies "$1: right of 32 MiB is denied" $((32 * M + 64 * K)) 32k
	denies "$1: 64 MiB - 128 KiB is denied" $((BYTES - 128 * K)) 64k
}

# Case 5. QEMU says EINVAL to what is denied and to a broken snapshot alike.
test_image_fleecing_bitmap()
{
	local dirty

	begin
	or_bail message origin checkpoint_create bitmap0
	write_patterns
	make_snapshot snap disk cow $CLUSTER "2 since bitmap0"
	dirty=$(map snap changed bitmap0)
	is "bitmap: what is dirty" "$(tr , '\n' <<< "$dirty" | grep '1$' | paste -sd,)" \
		"0 65536 1,1048576 65536 1,33554432 65536 1,67043328 65536 1"
	is "bitmap: it is what can be read" "$(map snap accessible)" "$dirty"
	verify_patterns "bitmap, sanity check" snap
	deny_clean "bitmap, sanity check, better: ENODATA"
	overwrite_patterns "bitmap, testing COW"
	wait_copied snap
	verify_patterns "bitmap, verifying data" snap
	deny_clean "bitmap, verifying data, better: ENODATA"
	is "bitmap, better: only dirty clusters are copied" "$(copied_and_used)" "3 3"
	is "bitmap: writes do not change what was dirty" "$(map snap changed bitmap0)" "$dirty"
	verify_overwritten "bitmap, confirming writes"
	or_bail message origin checkpoint_delete bitmap0
	end
}

# slow_copy: of the snapshot to the target, in 16 pieces.
# shellcheck disable=SC2317 # called in the background
slow_copy()
{
	local i

	for ((i = 0; i < 16; i++)); do
		dd "if=$(path_of snap)" "of=$(path_of target)" bs=4M count=1 skip="$i" seek="$i" \
			iflag=direct oflag=direct status=none || return
		echo "$i" > "$SCRATCH/piece"
		[ "$i" -ne 8 ] || wait_until 60 test -e "$SCRATCH/go" || return
	done
	echo ok
}

# Case 6.
test_push_backup()
{
	begin
	write_patterns
	make_snapshot snap disk cow $CLUSTER
	rm -f "$SCRATCH/piece" "$SCRATCH/go"
	in_background background slow_copy
	wait_until 30 test -s "$SCRATCH/piece" || bail "push backup: it has begun"
	overwrite_patterns "push backup"
	is "push backup: the copy goes on meanwhile" "$(kill -0 $background && echo copying)" copying
	: > "$SCRATCH/go"
	wait $background
	is "push backup: it succeeds" "$(cat "$SCRATCH/background")" ok
	verify_patterns "push backup, target" target
	verify_zeroes "push backup, target" target
	succeeds "push backup: target and snapshot are the same" \
		cmp "$(path_of target)" "$(path_of snap)"
	end
}

# ------------------------- copy-before-write -------------------------

# fail_cow RESULT: a write at 0 while the COW device fails, for this once.
fail_cow()
{
	or_bail replace_table cow "0 $cow_size error"
	gets "$1" "$2" origin write 2 0 1M
	wait_copied snap
	or_bail replace_table cow "$good_cow"
}

# Case 7.
test_break_snapshot_on_cbw_error()
{
	begin
	make_snapshot snap disk cow $CLUSTER
	fail_cow "break_snapshot_on_cbw_error: the live write succeeds" ok
	gets "break_snapshot_on_cbw_error: the snapshot is denied" EIO snap read 0 1M
	gets "break_snapshot_on_cbw_error: later writes succeed" ok origin write 3 0 2M
	gets "break_snapshot_on_cbw_error: it stays denied" EIO snap read 0 1M
	gets "break_snapshot_on_cbw_error: all of it" EIO snap read 32M 64k
	is "break_snapshot_on_cbw_error, better: the errno is kept" \
		"$(snapshot_field snap state) $(snapshot_field snap errno)" "broken 5"
	gets "break_snapshot_on_cbw_error: live data" ok origin verify 3 0 2M
	end
}

# Case 8.
test_break_guest_write_on_cbw_error()
{
	begin
	make_snapshot snap disk cow $CLUSTER "2 on_cbw_error break_write"
	fail_cow "break_guest_write_on_cbw_error: the live write fails" EIO
	gets "break_guest_write_on_cbw_error: the snapshot is read" ok snap verify zero 0 1M
	gets "break_guest_write_on_cbw_error: live data is unchanged" ok origin verify zero 0 1M
	gets "break_guest_write_on_cbw_error: a retry succeeds" ok origin write 3 0 1M
	gets "break_guest_write_on_cbw_error: the snapshot is the same" ok snap verify zero 0 4M
	end
}

stall_cow()
{
	defer dmsetup resume "$PREFIX-cow"
	stall cow
}

unstall_cow()
{
	unstall cow
}

# timed_write NAME RESULT: its copy stalls until cbw_timeout. QEMU's target is
# throttled to less than the write; its limit is in whole seconds.
timed_write()
{
	local took

	took=$(elapsed_ms pattern origin write 2 512k 512k)
	is "$1: the result of the second write" "$(cat "$SCRATCH/output")" "$2"
	at_least "$1, better: after a time in milliseconds" "$took" $((TIMEOUT_MS - 100))
	at_most "$1: and not much later" "$took" $((2 * TIMEOUT_MS))
}

# Case 9.
test_timeout_break_guest()
{
	begin
	make_snapshot snap disk cow $CLUSTER \
		"4 on_cbw_error break_write cbw_timeout $TIMEOUT_MS"
	gets "timeout_break_guest: the first write succeeds" ok origin write 2 0 512k
	stall_cow
	timed_write "timeout_break_guest" ETIMEDOUT
	unstall_cow
	gets "timeout_break_guest: the snapshot is read" ok snap verify zero 0 1M
	gets "timeout_break_guest: live data is unchanged" ok origin verify zero 512k 512k
	end
}

# Case 10.
test_timeout_break_snapshot()
{
	begin
	make_snapshot snap disk cow $CLUSTER "4 staging 0 cbw_timeout $TIMEOUT_MS"
	gets "timeout_break_snapshot: the first write succeeds" ok origin write 2 0 512k
	stall_cow
	timed_write "timeout_break_snapshot" ok
	gets "timeout_break_snapshot: the snapshot is denied" EIO snap read 0 1M
	at_most "timeout_break_snapshot: a third write has no delay" \
		"$(elapsed_ms pattern origin write 2 2M 512k)" $((TIMEOUT_MS - 100))
	is "timeout_break_snapshot: and succeeds" "$(cat "$SCRATCH/output")" ok
	is "timeout_break_snapshot, better: the errno is kept" \
		"$(snapshot_field snap state) $(snapshot_field snap errno)" "broken 110"
	unstall_cow
	end
}

# ------------------------- backup-discard-source -------------------------

# Case 11.
test_discard_written()
{
	begin
	make_snapshot snap disk cow $CLUSTER "1 release_on_discard"
	gets "discard_written: the live write" ok origin write 2 0 1M
	wait_copied snap
	is "discard_written: it uses 1 MiB of COW space" "$(copied_and_used)" "16 16"
	gets "discard_written: it is read" ok snap verify zero 0 1M
	gets "discard_written: and discarded" ok snap discard 0 1M
	is "discard_written: no COW space is used" "$(snapshot_field snap used)" 0
	denies "discard_written: it is denied" 0 1M
	end
}

# Case 12.
test_discard_cbw()
{
	begin
	make_snapshot snap disk cow $CLUSTER "1 release_on_discard"
	gets "discard_cbw: discarded first" ok snap discard 0 1M
	gets "discard_cbw: then written" ok origin write 2 0 1M
	wait_copied snap
	is "discard_cbw: that copies nothing" "$(copied_and_used)" "0 0"
	denies "discard_cbw: it is denied" 0 1M
	gets "discard_cbw: live data" ok origin verify 2 0 1M
	end
}

# ------------------------- What else QEMU's code promises -------------------------

# Case 13. QEMU copies what is discarded; discard_copy asks for the same.
test_small_operations()
{
	begin 128 "1 discard_copy"
	or_bail pattern origin write 1 0 1M
	make_snapshot snap disk cow $CLUSTER
	gets "operations: a write of 4 KiB" ok origin write 2 4k 4k
	wait_copied snap
	is "operations: copies one cluster" "$(copied_and_used)" "1 1"
	gets "operations: the snapshot has all of it" ok snap verify 1 0 64k
	gets "operations: a cluster is discarded" ok origin discard 64k 64k
	gets "operations: a cluster is zeroed" ok origin zero 128k 64k
	gets "operations: they read as zeroes" ok origin verify zero 64k 128k
	wait_copied snap
	is "operations: both were copied" "$(copied_and_used)" "3 3"
	gets "operations: the snapshot has the old data" ok snap verify 1 0 1M
	end

	begin 128
	or_bail pattern origin write 1 0 1M
	make_snapshot snap disk cow $CLUSTER
	gets "operations, better: a discard" ok origin discard 64k 64k
	is "operations, better: is not worth a copy" "$(copied_and_used)" "0 0"
	gets "operations, better: the snapshot has the old data" ok snap verify 1 0 1M
	end
}

# Cases 14 to 17.
test_client_discards()
{
	begin
	or_bail pattern origin write 1 0 2M
	make_snapshot snap disk cow $CLUSTER "1 release_on_discard"
	gets "discard in a cluster: half of it" ok snap discard 0 32k
	gets "discard in a cluster: it can be read" ok snap verify 1 0 64k
	gets "discard in a cluster: the other half" ok snap discard 32k 32k
	denies "discard in a cluster, better: both add up" 0 64k

	gets "discard, unaligned: 32 KiB to 160 KiB" ok snap discard $((M + 32 * K)) 128k
	denies "discard, unaligned: the cluster within is denied" $((M + 64 * K)) 64k
	gets "discard, unaligned: the one before it is not" ok snap verify 1 1M 64k
	gets "discard, unaligned: nor the one after it" ok snap verify 1 $((M + 128 * K)) 64k

	denies "spanning read: it is denied" $((M + 32 * K)) 64k
	gets "spanning read: the smaller one succeeds" ok snap verify 1 $((M + 32 * K)) 32k
	denies "spanning read: from the other side" $((M + 96 * K)) 64k
	gets "spanning read: the smaller one from there" ok snap verify 1 $((M + 128 * K)) 32k

	denies "denied twice: the same error" $((M + 64 * K)) 4k
	denies "denied twice: again" $((M + 64 * K)) 4k
	gets "denied twice: a discard of it succeeds" ok snap discard $((M + 64 * K)) 64k
	is "denied twice: that counts nothing" "$(snapshot_field snap released)" 2
	gets "denied twice: the rest is served" ok snap verify 1 $((M + 192 * K)) 64k
	end
}

# Case 15, of a device that does not end with a cluster. QEMU cannot do it.
test_last_cluster_discard()
{
	drop_origin
	or_bail dm_create odd "0 2104 linear $(path_of disk) 0"
	defer dm_remove_deferred odd
	make_origin origin odd
	or_bail pattern origin write 1 0 -
	make_snapshot snap odd cow $CLUSTER "1 release_on_discard"
	or_bail pattern origin write 2 1M -
	wait_copied snap
	gets "last cluster: it is copied" ok snap verify 1 1M -
	gets "last cluster: it is discarded to its end" ok snap discard 1M 28k
	denies "last cluster, better: it is denied" 1M 4k
	is "last cluster, better: its space is free" "$(snapshot_field snap used)" 0
	gets "last cluster: the one before it is served" ok snap verify 1 $((M - 64 * K)) 64k
	end
	drop_origin
	or_bail dm_remove odd
}

# write_two OTHER: two writes to one cluster, both waiting.
write_two()
{
	in_background second pattern origin write 3 $((M + 32 * K)) 4k
	second=$background
	in_background background pattern origin write 2 1M 4k
	wait_until 20 snapshot_field_is snap waiting 2 || bail "$1: both writes wait"
}

results_of_two()
{
	wait $background $second
	cat "$SCRATCH/background" "$SCRATCH/second" | paste -sd' '
}

# Case 18. In QEMU the first of the writes would fail that wait for a copy that
# fails, and the second would try a copy of its own. Here a copy is of all that
# wait for it; each cluster of it is tried twice before they are told.
test_concurrent_writes()
{
	begin
	make_snapshot snap disk cow $CLUSTER "2 on_cbw_error break_write"
	stall_cow
	write_two "two writes"
	unstall_cow
	is "two writes: both complete" "$(results_of_two)" "ok ok"
	is "two writes: one copy" "$(copied_and_used)" "1 1"
	gets "two writes: the snapshot has the old data" ok snap verify zero 1M 64k
	or_bail dm_remove snap
	or_bail pattern origin write zero 1M 64k

	make_snapshot snap disk cow $CLUSTER "2 on_cbw_error break_write"
	stall_cow
	write_two "two writes, failing"
	# What has stalled goes to the table that it finds.
	or_bail dmsetup load "$PREFIX-cow" --table "0 $cow_size error"
	unstall_cow
	is "two writes, failing: both are told" "$(results_of_two)" "EIO EIO"
	or_bail replace_table cow "$good_cow"
	gets "two writes, failing: live data is unchanged" ok origin verify zero 1M 64k
	gets "two writes, failing: a retry of the one" ok origin write 2 1M 4k
	gets "two writes, failing: and of the other" ok origin write 3 $((M + 32 * K)) 4k
	is "two writes, failing: one copy" "$(copied_and_used)" "1 1"
	gets "two writes, failing: the snapshot has the old data" ok snap verify zero 1M 64k
	end
}

# A bio counts as in flight from when the target has sent it on: what it holds is in its
# status, reads first.
read_is_held()
{
	[[ $(status_of jittery-slow) == "1 "* ]]
}

# shellcheck disable=SC2317 # called by wait_until
read_has_begun()
{
	test -s "$SCRATCH/background" || read_is_held
}

# read_slowly NAME: leaves a reader in $background that reads a cluster, at $offset,
# of a snapshot whose origin's disk is jittery, and waits for the disk.
read_slowly()
{
	local attempt

	for ((attempt = 1; attempt <= 4; attempt++)); do
		offset=$((attempt * 64 * K))
		in_background background pattern snap verify zero $offset 64k
		wait_until 20 read_has_begun || bail "$1: a reader begins"
		! read_is_held || return 0
		# It has taken the fast path: the next is slow.
		wait $background
	done
	bail "$1: a reader waits for the disk"
}

# set_jitter MS: what every other read of the jittery disk takes from now on. Those
# under way are sent on.
# shellcheck disable=SC2317 # called by or_bail
set_jitter()
{
	dmsetup suspend --nolockfs "$PREFIX-jittery-slow" &&
		dmsetup load "$PREFIX-jittery-slow" --table \
			"0 $SECTORS delay $(path_of disk) 0 $1 $(path_of disk) 0 0" &&
		dmsetup resume "$PREFIX-jittery-slow"
}

# make_jittery_snapshot COWDISK: whose old data is zeroes, on a disk that is slow only
# when all is made and nobody but the test reads any more.
make_jittery_snapshot()
{
	drop_origin
	make_jittery jittery disk 0
	make_origin origin jittery
	or_bail pattern origin write zero 0 1M
	make_snapshot snap jittery "$1" $CLUSTER
	defer eval "set_jitter 0 || :"
	or_bail set_jitter 600000
}

end_jittery_snapshot()
{
	end
	drop_origin
	or_bail dm_remove jittery
	or_bail dm_remove jittery-slow
}

# Case 19. In QEMU the write waits for the reader. The disk is read for the reader
# only after it has been written to.
test_write_under_read()
{
	make_jittery_snapshot cow
	read_slowly "write under a read"
	gets_now "write under a read, better: the write does not wait" ok origin write 2 $offset 64k
	is "write under a read, better: the read is not through" \
		"$(kill -0 $background && echo reading)" reading
	or_bail set_jitter 0
	wait $background
	is "write under a read: the read returns the old data" "$(cat "$SCRATCH/background")" ok
	gets "write under a read: the origin has the new data" ok disk verify 2 $offset 64k
	end_jittery_snapshot
}

# Case 21. QEMU fails it: such a read returns new data, and success.
test_break_under_read()
{
	make_jittery_snapshot small
	read_slowly "break under a read"
	or_bail pattern origin write 2 2M 512k
	or_bail pattern origin write 2 $offset 64k
	is "break under a read: it is broken and overwritten, the read is not through" \
		"$(snapshot_field snap state) $(kill -0 $background && echo reading)" \
		"broken reading"
	or_bail set_jitter 0
	wait $background
	is "break under a read, better: the read is an error" "$(cat "$SCRATCH/background")" EIO
	end_jittery_snapshot
}

test_slow_reads()
{
	if ! has_jitter; then
		skip "write under a read" "dm-delay or dm-multipath is missing"
		skip "break under a read" "dm-delay or dm-multipath is missing"
		return
	fi
	test_write_under_read
	test_break_under_read
}

# Case 20.
test_read_under_copy()
{
	begin
	make_snapshot snap disk cow $CLUSTER "4 staging 0 cbw_timeout 0"
	stall_cow
	in_background background pattern origin write 2 1M 64k
	wait_until 20 snapshot_field_is snap waiting 1 || bail "read under a copy: it has begun"
	gets_now "read under a copy: it does not wait, and returns the old data" ok \
		snap verify zero 1M 64k
	unstall_cow
	wait $background
	is "read under a copy: the write succeeds" "$(cat "$SCRATCH/background")" ok
	gets "read under a copy: later it is the same" ok snap verify zero 1M 64k
	end
}

# Case 22.
test_full()
{
	begin
	make_snapshot snap disk small $CLUSTER
	gets "full, break_snapshot: the live write succeeds" ok origin write 2 0 1M
	wait_until 20 snapshot_field_is snap state broken
	gets "full, break_snapshot: the snapshot is denied" EIO snap read 0 1M
	is "full, break_snapshot, better: the errno is kept" "$(snapshot_field snap errno)" 28
	or_bail dm_remove snap
	or_bail pattern origin write zero 0 1M

	make_snapshot snap disk small $CLUSTER "2 on_cbw_error break_write"
	gets "full, break_write: the live write fails" ENOSPC origin write 2 0 1M
	gets "full, break_write: the snapshot is read" ok snap verify zero 0 4M
	gets "full, break_write: so is the old live data, where no copy was had" ok \
		origin verify zero 0 1M
	end
}

# shellcheck disable=SC2317 # called by defer
bad_sectors()
{
	echo "$1" > /sys/bus/pseudo/drivers/scsi_debug/opts
}

ask_server()
{
	/usr/bin/python3 - "$SCRATCH/nbd" "$((BAD * 512))" "$BAD_CLUSTER" <<-END
		import errno, sys, nbd
		client = nbd.NBD()
		client.connect_unix(sys.argv[1])
		print("structured" if client.get_structured_replies_negotiated() else "simple")
		try:
		    client.pread(4096, int(sys.argv[2]))
		    print("data")
		except nbd.Error as error:
		    print(error.errno)
		before = int(sys.argv[3])
		print("served" if not any(client.pread(before, 0)) else "changed")
		print(client.aio_is_ready())
	END
}

# Case 24. QEMU's server ends the connection.
test_bad_sector_served()
{
	local server

	if [ ! -x "$FLEECED" ] || ! /usr/bin/python3 -c "import nbd" 2> /dev/null; then
		skip "bad sector, NBD" "fleeced or the Python module nbd is missing"
		return
	fi
	"$FLEECED" --socket "$SCRATCH/nbd" "$(path_of snap)" 2> "$SCRATCH/fleeced" &
	server=$!
	defer eval "kill $server 2> /dev/null || :"
	wait_until 20 test -S "$SCRATCH/nbd" || bail "fleeced starts" "$(cat "$SCRATCH/fleeced")"
	is "bad sector, NBD, better: EIO, and the connection stays" \
		"$(ask_server 2>&1 | paste -sd' ')" "structured EIO served True"
	kill $server
	wait $server
}

# Case 23. The old data cannot be read where it must be copied. In QEMU
# break-snapshot gives up all of the snapshot then.
test_bad_sector()
{
	begin
	or_bail pattern origin write zero $BAD_CLUSTER 64k
	make_snapshot snap disk cow $CLUSTER
	bad_sectors 2
	defer bad_sectors 0
	if pattern disk read $((BAD * 512)) 4k > /dev/null; then
		skip "bad sector" "scsi_debug makes no bad sectors"
		end
		return
	fi
	test_bad_sector_served
	gets "bad sector, break_snapshot: the live write succeeds" ok \
		origin write 2 $BAD_CLUSTER 64k
	wait_copied snap
	is "bad sector, break_snapshot, better: one cluster is lost, not the snapshot" \
		"$(snapshot_field snap state) $(snapshot_field snap lost)" "active 1"
	gets "bad sector, break_snapshot: it is an error" EIO snap read $BAD_CLUSTER 64k
	gets "bad sector, break_snapshot, better: all else is served, before it" ok \
		snap verify zero 0 $BAD_CLUSTER
	gets "bad sector, break_snapshot, better: and after it" ok \
		snap verify zero $((BAD_CLUSTER + 64 * K)) 1M
	or_bail dm_remove snap

	make_snapshot snap disk cow $CLUSTER "2 on_cbw_error break_write"
	like "bad sector, break_write: the live write fails" \
		"$(pattern origin write 3 $BAD_CLUSTER 64k)" "^(EIO|ENODATA)$"
	bad_sectors 0
	gets "bad sector, break_write: live data is unchanged" ok origin verify 2 $BAD_CLUSTER 64k
	gets "bad sector, break_write: so is the snapshot" ok snap verify 2 $BAD_CLUSTER 64k
	gets "bad sector, break_write: later a write succeeds" ok origin write 3 $BAD_CLUSTER 64k
	gets "bad sector, break_write: and its old data is kept" ok snap verify 2 $BAD_CLUSTER 64k
	end
}

# Case 25.
test_fine_bitmap()
{
	begin 8
	or_bail message origin checkpoint_create fine
	or_bail pattern origin write 2 $((M + 8 * K)) 4k
	or_bail pattern origin write 2 $((2 * M - 4 * K)) 8k
	make_snapshot snap disk cow $CLUSTER "2 since fine"
	is "fine bitmap: access is rounded outwards" \
		"$(map snap accessible | tr , '\n' | grep '1$' | paste -sd,)" \
		"1048576 65536 1,2031616 131072 1"
	is "fine bitmap: what is dirty is not" \
		"$(map snap changed fine | tr , '\n' | grep '1$' | paste -sd,)" \
		"1056768 4096 1,2093056 8192 1"
	gets "fine bitmap: the clean part of a cluster is read" ok snap verify zero 1M 8k
	gets "fine bitmap: and is copied" ok origin write 3 1M 4k
	wait_copied snap
	is "fine bitmap: in one cluster" "$(copied_and_used)" "1 1"
	gets "fine bitmap: the old data of it" ok snap verify zero 1M 8k
	gets "fine bitmap: and of its dirty part" ok snap verify 2 $((M + 8 * K)) 4k
	denies "fine bitmap: a clean cluster is denied" $((M + 64 * K)) 4k
	end
}

# Case 26.
test_sizes()
{
	local devices

	begin
	devices="fleece-snapshot $(path_of disk) $(path_of cow) $CLUSTER"
	make_disk tiny $((2048 + CLUSTER - 8))
	make_disk enough $((2048 + CLUSTER))
	refuses "sizes: a snapshot shorter than the origin" "nvalid argument" "length" \
		"0 $((SECTORS - CLUSTER)) $devices"
	refuses "sizes: one that is longer" "nvalid argument" "length" \
		"0 $((SECTORS + CLUSTER)) $devices"
	refuses "sizes: COW space for less than a cluster" "nvalid argument|No space" "small" \
		"$(snapshot_table disk tiny $CLUSTER)"
	make_snapshot snap disk enough $CLUSTER
	gets "sizes, better: COW space for one" ok origin write 2 1M 64k
	gets "sizes, better: is enough for one write" ok snap verify zero 0 4M
	end
}

test_image_fleecing
test_image_fleecing_bitmap
test_push_backup
test_break_snapshot_on_cbw_error
test_break_guest_write_on_cbw_error
test_timeout_break_guest
test_timeout_break_snapshot
test_discard_written
test_discard_cbw
test_client_discards
test_concurrent_writes
test_read_under_copy
test_full
test_bad_sector
test_sizes
test_small_operations
test_last_cluster_discard
test_slow_reads
test_fine_bitmap
finish
