#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will send every operation a live write can be to an origin with a
# snapshot: each has its effect on the origin, and the snapshot stays of its time.
#
# What is not offered has no case: secure erase, zones, integrity and DAX come from
# lower devices that a stock kernel cannot make of RAM and stack below this target.
# Whole clusters discarded and zeroed are in origin_discard.sh, plain overwrites in
# snapshot_overwrite.sh.
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

CLUSTER=128
SECTORS=65528		# 32 MiB less 4 KiB: the last cluster has 60 KiB
BYTES=$((SECTORS * 512))
LAST=$((BYTES - 61440))
load_fleece
make_discard_arena 112
make_disk disk $SECTORS
make_disk cow "$(cow_sectors $CLUSTER 512)"
make_disk one-slot "$(cow_sectors $CLUSTER 1)"
make_disk log 49152

begin()
{
	make_origin origin disk 128 "${1:-}"
	or_bail pattern origin write 1 0 -
}

end()
{
	or_bail dm_remove snap
	or_bail dm_remove origin
}

# A discard is advice: not even with room for one cluster can it do any harm.
test_discard_advice()
{
	begin
	make_snapshot snap disk one-slot $CLUSTER
	gets "discard: of everything" ok origin discard 0 $BYTES
	gets "discard: of a part of a cluster" ok origin discard $((1048576 + 4096)) 8k
	gets "discard: astride two clusters" ok origin discard $((2097152 - 512)) 1024
	gets "discard: of the partial last cluster" ok origin discard $LAST 60k
	gets "discard: of the last sector" ok origin discard $((BYTES - 512)) 512
	is "discard: costs no COW space" "$(status_of snap)" \
		"active 0/1 128 512/512 0 0 0 0 0 0 0"
	gets "discard: the snapshot is of its time" ok snap verify 1 0 -
	or_bail pattern origin write 2 $LAST 60k
	wait_copied snap
	gets "discard: of the end, where only the last cluster is copied" ok \
		origin discard $((LAST - 65536)) 124k
	gets "discard: the copied one is discarded, to its end" ok origin verify zero $LAST -
	gets "discard: the one before it is not" ok origin verify 1 $((LAST - 65536)) 64k
	is "discard: the one slot is enough for all that" \
		"$(snapshot_field snap state) $(copied_and_used)" "active 1 1"
	gets "discard: the snapshot is still of its time" ok snap verify 1 0 -
	end
}

# clear_parts NAME VERB OFFSET LENGTH: a part of a cluster, two sectors astride two
# clusters, and what OFFSET and LENGTH say of the last cluster. VERB leaves zeroes.
clear_parts()
{
	gets "$1: a part of a cluster" ok origin "$2" $((1048576 + 4096)) 8k
	gets "$1: astride two clusters" ok origin "$2" $((2097152 - 512)) 1024
	gets "$1: in the last cluster" ok origin "$2" "$3" "$4"
	wait_copied snap
	is "$1: whole clusters are copied" "$(copied_and_used)" "4 4"
	gets "$1: just that part is cleared" ok origin verify zero $((1048576 + 4096)) 8k
	gets "$1: not what is before it" ok origin verify 1 1M 4k
	gets "$1: not what is after it" ok origin verify 1 $((1048576 + 12288)) 52k
	gets "$1: the two sectors astride" ok origin verify zero $((2097152 - 512)) 1024
	gets "$1: what it was of the last cluster" ok origin verify zero "$3" "$4"
}

# clear_much NAME VERB: after clear_parts, in one piece.
clear_much()
{
	gets "$1: in one piece, larger than a write may wait for" ok origin "$2" 8M 16M
	wait_copied snap
	is "$1: all of it is copied" "$(copied_and_used)" "260 260"
	gets "$1: all of it is cleared" ok origin verify zero 8M 16M
	gets "$1: the snapshot is of its time" ok snap verify 1 0 -
}

test_discard_copy()
{
	begin "1 discard_copy"
	make_snapshot snap disk cow $CLUSTER
	clear_parts "discard_copy" discard $LAST 60k
	gets "discard_copy: the snapshot is of its time" ok snap verify 1 0 -
	gets "discard_copy: of what was copied" ok origin discard 1M 64k
	is "discard_copy: copies nothing again" "$(copied_and_used)" "4 4"
	clear_much "discard_copy" discard
	end
}

test_zeroes()
{
	begin
	make_snapshot snap disk cow $CLUSTER
	clear_parts "zeroes" zero $((BYTES - 512)) 512
	gets "zeroes: of the last cluster the last sector only" ok origin verify 1 $LAST 60928
	clear_much "zeroes" zero
	end
}

# Of what waits for a copy, each piece is let go when its own copies are done.
test_waiting_zeroes()
{
	begin
	make_snapshot snap disk cow $CLUSTER "4 staging 0 cbw_timeout 0"
	stall cow
	defer dmsetup resume "$PREFIX-cow"
	in_background zero pattern origin zero 8M 16M
	wait_until 20 snapshot_field_is snap waiting 4
	is "zeroes: those that must wait do so 4 MiB at a time" "$(snapshot_field snap waiting)" 4
	unstall cow
	wait "$background"
	is "zeroes: and succeed together" "$(cat "$SCRATCH/zero")" ok
	gets "zeroes: all of it is cleared in the end" ok origin verify zero 8M 16M
	gets "zeroes: of which the snapshot has the old data" ok snap verify 1 0 -
	end
}

# parse_log: what dm-log-writes below the origin has seen, as lines "SECTOR SECTORS
# FLAGS", or "mark". Of its flags 1 is a flush, 2 is FUA, 4 is a discard (which has no
# data), 8 is a mark, 16 metadata. The format: a superblock, and then for each entry a
# block that describes it, and its data.
parse_log()
{
	local at=1 count i words

	or_bail dd "if=$(path_of log)" "of=$SCRATCH/log" iflag=direct bs=1M status=none
	count=$(od -An -t u8 -j 16 -N 8 "$SCRATCH/log")
	for ((i = 0; i < count; i++)); do
		read -ra words <<< "$(od -An -v -w24 -t u8 -j $((at * 512)) -N 24 "$SCRATCH/log")"
		if ((words[2] & 8)); then
			echo mark
		else
			echo "${words[*]}"
		fi
		at=$((at + 1))
		((words[2] & 4)) || at=$((at + words[1]))
	done
}

# shellcheck disable=SC2317 # called by wait_until
has_both_marks()
{
	parse_log > "$SCRATCH/parsed"
	[ "$(grep -c mark "$SCRATCH/parsed")" -eq 2 ]
}

# log_entries: those between the marks. A thread writes the log, some time later.
log_entries()
{
	wait_until 30 has_both_marks || bail "dm-log-writes logs both marks"
	awk '/mark/ { marks++; next } marks == 1' "$SCRATCH/parsed"
}

mark_log()
{
	or_bail message logged mark "$1"
}

make_logged_origin()
{
	or_bail dm_create logged "0 $SECTORS log-writes $(path_of disk) $(path_of log)"
	defer dm_remove_deferred logged
	make_origin origin logged
}

# A write that waits for its copy arrives with the flags that it came with, and
# before a flush that comes after it.
test_flags()
{
	if ! has_module dm-log-writes; then
		skip "flags: FUA and PREFLUSH" "there is no dm-log-writes"
		return
	fi
	make_logged_origin
	or_bail pattern origin write 1 0 4M
	make_snapshot snap logged cow $CLUSTER "2 staging 0"
	mark_log begin
	gets "FUA: a write that waits for its copy" ok origin dsync 2 1M 64k
	gets "FUA: one that does not" ok origin dsync 3 1M 64k
	is "FUA: one copy was made" "$(copied_and_used)" "1 1"
	gets "flush: a write before it, without a flag" ok origin write 2 2M 64k
	gets "flush: it succeeds" ok origin flush
	mark_log end
	log_entries > "$SCRATCH/entries"
	is "FUA: both arrive with the flag" "$(grep -c '^2048 128 2$' "$SCRATCH/entries")" 2
	is "flush: the write arrives without one" "$(grep '^4096 ' "$SCRATCH/entries")" "4096 128 0"
	like "flush: it arrives after the write" \
		"$(awk '$1 == 4096 { seen = 1 } seen { print $2 " " $3 }' "$SCRATCH/entries" |
			paste -sd,)" "^128 0,0 1"
	gets "flags: the snapshot is of its time" ok snap verify 1 0 4M
	end
	or_bail dm_remove logged
}

# The commit of a journal is a write with PREFLUSH and FUA, onto old data here.
test_preflush()
{
	local mount=$SCRATCH/logged

	if ! has_module dm-log-writes || ! command -v mkfs.ext4 > /dev/null; then
		skip "PREFLUSH: the commit of a journal" "dm-log-writes or mkfs.ext4 is missing"
		return
	fi
	or_bail mkfs.ext4 -q -F -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 \
		"$(path_of disk)"
	make_logged_origin
	mkdir "$mount"
	or_bail mount "$(path_of origin)" "$mount"
	defer eval "! mountpoint -q $mount || umount $mount"
	or_bail sync -f "$mount"
	make_snapshot snap logged cow $CLUSTER "2 staging 0"
	mark_log begin
	succeeds "PREFLUSH: a file is made durable" dd if=/dev/zero "of=$mount/file" bs=4k count=1 \
		conv=fsync status=none
	mark_log end
	at_least "PREFLUSH: that needed copies" "$(snapshot_field snap copied)" 1
	log_entries > "$SCRATCH/entries"
	at_least "PREFLUSH: the commit arrives with FUA, and directly before it a flush" \
		"$(awk 'int($3 / 2) % 2 && last % 2 { count++ } { last = $3 }
			END { print count + 0 }' "$SCRATCH/entries")" 1
	or_bail umount "$mount"
	end
	or_bail dm_remove logged
}

# NOWAIT is refused where a copy must be waited for, and only there. Not near the start,
# nor at 1 MiB: where udev has looked there are cached pages, and the kernel refuses it.
test_nowait()
{
	local result

	begin
	result=$(pattern origin nowait 1 20M 64k)
	if [ "$result" = EOPNOTSUPP ]; then
		skip "NOWAIT" "this kernel's direct writes, or its device-mapper, do not have it"
		or_bail dm_remove origin
		return
	fi
	is "NOWAIT: without snapshot it succeeds" "$result" ok
	make_snapshot snap disk cow $CLUSTER "2 staging 0"
	gets "NOWAIT: over an uncopied cluster it is refused" EAGAIN origin nowait 2 20M 64k
	gets "NOWAIT: over a part of one too" EAGAIN origin nowait 2 20M 4k
	gets "NOWAIT: the origin has the old data" ok origin verify 1 20M 64k
	is "NOWAIT: nothing is copied, nothing waits" "$(status_of snap)" \
		"active 0/512 128 512/512 0 0 0 0 0 0 0"
	or_bail pattern origin write 2 20M 64k
	gets "NOWAIT: over a copied cluster it succeeds" ok origin nowait 3 20M 64k
	gets "NOWAIT: and arrives" ok origin verify 3 20M 64k
	gets "NOWAIT: over a copied and an uncopied one it is refused" EAGAIN origin nowait 4 20M 128k
	gets "NOWAIT: as a whole" ok origin verify 3 20M 64k
	gets "NOWAIT: the snapshot is of its time" ok snap verify 1 0 -
	or_bail message snap release 45056 128
	gets "NOWAIT: over a released cluster it succeeds" ok origin nowait 2 22M 64k
	is "NOWAIT: one copy was made in all that" "$(copied_and_used)" "1 1"
	or_bail dm_remove snap
	make_snapshot snap disk one-slot $CLUSTER
	or_bail pattern origin write 2 4M 128k
	wait_until 20 snapshot_field_is snap state broken
	gets "NOWAIT: with a broken snapshot it succeeds" ok origin nowait 2 26M 64k
	end
}

# A bio much larger than a copy (1 MiB), and than a write that may wait (4 MiB).
# test_huge CLUSTER STAGING
test_huge()
{
	local name="huge, cluster $1, staging $2"
	local offset=$((1048576 + 4096))
	local clusters=$(((offset + 20971520 + $1 * 512 - 1) / ($1 * 512) - offset / ($1 * 512)))

	make_snapshot snap disk cow "$1" "2 staging $2"
	# Of its clusters the first and one in the middle need no copy any more.
	or_bail pattern origin write 3 $offset 4k
	or_bail pattern origin write 3 9M 4k
	wait_copied snap
	gets "$name: a write succeeds" ok origin huge 2 $offset 20M
	gets "$name: it arrives" ok origin verify 2 $offset 20M
	gets "$name: nothing before it is changed" ok origin verify 1 0 $offset
	gets "$name: nor after it" ok origin verify 1 $((offset + 20971520)) -
	wait_copied snap
	is "$name: all it needs is copied" "$(copied_and_used)" "$clusters $clusters"
	gets "$name: the snapshot is of its time" ok snap verify 1 0 -
	or_bail dm_remove snap
	or_bail pattern origin write 1 0 -
}

test_huge_bios()
{
	local before writes

	begin
	before=$(device_stat origin 5)
	or_bail pattern origin huge 1 0 20M
	writes=$(($(device_stat origin 5) - before))
	if [ "$writes" -gt 4 ]; then
		skip "huge" "20 MiB took $writes bios: there are no huge pages"
	else
		ok "huge: 20 MiB is no more than 4 bios"
		test_huge 128 0
		test_huge 128 65536
		test_huge 8 2048
		test_huge 32768 0
	fi
	or_bail dm_remove origin
}

# A device above that believes the origin to be longer: its bios are across the end.
test_device_end()
{
	local short=$((SECTORS - 2048))
	local end=$((short * 512))

	begin
	or_bail dm_create above "0 $SECTORS linear $(path_of origin) 0"
	defer dm_remove_deferred above
	or_bail replace_table origin "0 $short fleece $(path_of disk) - 128"
	or_bail dm_create snap "0 $short fleece-snapshot $(path_of disk) $(path_of cow) 128"
	defer dm_remove_deferred snap
	gets "device end: a write across it is an error" EIO above write 2 $((end - 4096)) 8k
	gets "device end: a write beyond it is" EIO above write 2 $end 4k
	gets "device end: zeroes across it are" EIO above zero $((end - 65536)) 128k
	gets "device end: a discard across it is" EIO above discard $((end - 65536)) 128k
	gets "device end: a direct write at it finds no space" ENOSPC origin write 2 $end 4k
	is "device end: nothing was copied, nothing waits" "$(status_of snap)" \
		"active 0/512 128 496/496 0 0 0 0 0 0 0"
	gets "device end: nothing was written" ok disk verify 1 0 -
	gets "device end: a write up to it succeeds" ok above write 2 $((end - 4096)) 4k
	wait_copied snap
	is "device end: and is copied" "$(copied_and_used)" "1 1"
	gets "device end: the snapshot is of its time" ok snap verify 1 0 -
	or_bail dm_remove above
	end
}

# make_loop NAME SECTORS BLOCK: a disk whose logical blocks have BLOCK bytes.
make_loop()
{
	local device

	truncate -s $(($2 * 512)) "$SCRATCH/$1"
	device=$(losetup --find --show --sector-size "$3" "$SCRATCH/$1") ||
		bail "preparation: a loop device with blocks of $3"
	defer remove_loop "$device"
	or_bail dm_create "$1" "0 $2 linear $device 0"
	defer dm_remove_deferred "$1"
}

remove_loop()
{
	losetup -d "$1"
	wait_until 10 eval "! losetup $1"
}

# test_block ORIGIN COW CLUSTER: what is one block to the origin is a part of a
# cluster, or all of it, and the end of the device is one block after a boundary.
test_block()
{
	local name="blocks $1, of the COW device $2, cluster $3"
	local clusters=$((3 + (2 * $1 + $3 * 512 - 1) / ($3 * 512)))
	local block=$(($1 > $2 ? $1 : $2))
	local end=8392704	# 8 MiB and 4 KiB

	make_origin origin "disk-$1"
	or_bail pattern origin write 1 0 -
	make_snapshot snap "disk-$1" "cow-$2" "$3"
	is "$name: of origin and snapshot" "$(blockdev --getss "$(path_of origin)") \
$(blockdev --getss "$(path_of snap)")" "$1 $block"
	gets "$name: one block is written" ok origin write 2 $((1048576 + $1)) "$1"
	gets "$name: three, astride two clusters" ok origin write 2 $((2097152 - $1)) $((3 * $1))
	gets "$name: the last one" ok origin write 2 $((end - $1)) "$1"
	wait_copied snap
	is "$name: whole clusters are copied" "$(copied_and_used)" "$clusters $clusters"
	gets "$name: zeroes over one block" ok origin zero $((3145728 + $1)) "$1"
	gets "$name: a discard of one block" ok origin discard 4M "$1"
	wait_copied snap
	is "$name: of these the zeroes are copied" "$(snapshot_field snap copied)" $((clusters + 1))
	gets "$name: the snapshot is of its time" ok snap verify 1 0 -
	gets "$name: block by block" ok snap verify 1 $((2097152 - block)) $((2 * block))
	gets "$name: to the last one" ok snap verify 1 $((end - block)) $block
	gets "$name: the origin has the new data" ok origin verify 2 $((2097152 - $1)) $((3 * $1))
	gets "$name: beside the old" ok origin verify 1 $((2097152 + 2 * $1)) 64k
	gets "$name: and zeroes" ok origin verify zero $((3145728 + $1)) "$1"
	[ "$1" = 512 ] || gets "$name: a part of a block cannot be written" EINVAL \
		origin write 2 512 512
	[ $block = 512 ] || gets "$name: nor be read from the snapshot" EINVAL snap read 512 512
	end
}

test_blocks()
{
	local block

	if ! has_module loop; then
		skip "blocks" "there is no loop device"
		return
	fi
	for block in 512 4096; do
		make_loop "disk-$block" 16392 $block
		make_loop "cow-$block" 20488 $block
	done
	test_block 512 4096 8
	test_block 4096 512 128
	test_block 4096 4096 8
	or_bail dm_create odd "0 16385 linear $(path_of disk-512) 0"
	defer dm_remove_deferred odd
	make_origin origin odd
	refuses "blocks: an origin that does not end with a block of the COW device" \
		"nvalid argument" "multiple of the block size" "$(snapshot_table odd cow-4096 128)"
	or_bail dm_remove origin
}

# sum_of NAME: what cannot be read is like nothing else.
sum_of()
{
	(set -o pipefail && dd "if=$(path_of "$1")" bs=1M iflag=direct status=none | md5sum) ||
		echo "cannot be read: $RANDOM"
}

# test_fstrim NAME [FEATURES]: of what has become free since the snapshot.
test_fstrim()
{
	local mount=$SCRATCH/mount
	local sum file_sum copied trimmed

	make_origin origin disk 128 "${2:-}"
	mkdir -p "$mount"
	or_bail mkfs.ext4 -q -F -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 \
		"$(path_of origin)"
	or_bail mount "$(path_of origin)" "$mount"
	defer eval "! mountpoint -q $mount || umount $mount"
	head -c 1M /dev/urandom > "$SCRATCH/random"
	while cat "$SCRATCH/random"; do :; done > "$mount/full" 2> "$SCRATCH/output"
	like "$1: the file system is full" "$(cat "$SCRATCH/output")" "No space"
	file_sum=$(md5sum < "$mount/full")
	# Frozen, so that its journal is empty at the moment of the snapshot.
	or_bail dmsetup suspend "$PREFIX-origin"
	make_snapshot snap disk cow $CLUSTER
	or_bail dmsetup resume "$PREFIX-origin"
	sum=$(sum_of snap)
	or_bail rm "$mount/full"
	or_bail sync -f "$mount"
	wait_copied snap
	copied=$(copied_and_used)
	trimmed=$(LC_ALL=C fstrim -v "$mount" | sed -E 's/.*\(([0-9]+) bytes.*/\1/')
	at_least "$1: fstrim goes through" "${trimmed:-0}" $((20 << 20))
	wait_copied snap
	if [ -z "${2:-}" ]; then
		is "$1: it costs no COW space" "$(copied_and_used)" "$copied"
	else
		at_least "$1: what it discards is copied" "$(snapshot_field snap used)" 300
	fi
	is "$1: the snapshot is active" "$(snapshot_field snap state)" active
	is "$1: and the same" "$(sum_of snap)" "$sum"
	or_bail umount "$mount"
	succeeds "$1: the file system in the snapshot is whole" e2fsck -fn "$(path_of snap)"
	succeeds "$1: so is that on the origin" e2fsck -fn "$(path_of origin)"
	or_bail mount -o ro,noload "$(path_of snap)" "$mount"
	is "$1: the file that was removed is in the snapshot" "$(md5sum < "$mount/full")" \
		"$file_sum"
	or_bail umount "$mount"
	end
}

test_fstrims()
{
	if ! command -v mkfs.ext4 > /dev/null || ! command -v fstrim > /dev/null; then
		skip "fstrim" "mkfs.ext4 or fstrim is missing"
		return
	fi
	test_fstrim "fstrim"
	test_fstrim "fstrim, discard_copy" "1 discard_copy"
}

# shellcheck disable=SC2317 # called by wait_until
is_gone()
{
	make_nodes
	! dmsetup info "$PREFIX-$1" > /dev/null 2>&1
}

# Removed when it is closed: until then it is all that it was.
test_deferred()
{
	begin
	make_snapshot snap disk cow $CLUSTER
	exec 7< "$(path_of snap)"
	succeeds "deferred: the snapshot, held open" dmsetup remove --deferred "$PREFIX-snap"
	gets "deferred: a live write goes on" ok origin write 2 1M 64k
	gets "deferred: the snapshot is read on" ok snap verify 1 0 -
	is "deferred: and it copies on" "$(snapshot_field snap copied)" 1
	exec 7<&-
	succeeds "deferred: closed, it goes" wait_until 20 is_gone snap
	is "deferred: the origin has lost it" "$(origin_field origin snapshots)" 0
	gets "deferred: live writes go on" ok origin write 1 1M 64k

	make_snapshot snap disk cow $CLUSTER
	exec 7< "$(path_of origin)"
	succeeds "deferred: the origin, held open" dmsetup remove --deferred "$PREFIX-origin"
	gets "deferred: it is written on" ok origin write 2 1M 64k
	gets "deferred: its snapshot is of its time" ok snap verify 1 0 -
	log_mark
	exec 7<&-
	succeeds "deferred: closed, it goes too" wait_until 20 is_gone origin
	wait_until 20 snapshot_field_is snap state broken
	is "deferred: its snapshot is broken then" \
		"$(snapshot_field snap state) $(snapshot_field snap errno)" "broken 19"
	expect_log "deferred: the log says why" "origin's device was removed"
	gets "deferred: nothing newer is read from it" EIO snap read 1M 64k
	or_bail dm_remove snap
	gets "deferred: the data is on the disk" ok disk verify 2 1M 64k
}

test_discard_advice
test_discard_copy
test_zeroes
test_waiting_zeroes
test_flags
test_preflush
test_nowait
test_huge_bios
test_device_end
test_blocks
test_fstrims
test_deferred
finish
