#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will give both targets every kind of malformed or impossible table:
# each is refused with an error, the reason in the kernel's log, and nothing left.
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=32768
INVALID="Invalid argument"
WRONG_COUNT="Number of feature arguments is wrong"
USED_COW="COW device already belongs to another snapshot"
# Device-mapper itself says so.
NOT_FIRST="Gap in table"
load_fleece
make_arena 96
make_disk disk $SECTORS
make_disk other $SECTORS
make_disk cow "$(cow_sectors 128 256)"
disk=$(path_of disk)
other=$(path_of other)
cow=$(path_of cow)

test_origin_tables()
{
	local table="0 $SECTORS fleece $disk"
	local granularity

	refuses "origin without parameters" "$INVALID" "Arguments: <origin_dev>" "0 $SECTORS fleece"
	refuses "origin without granularity" "$INVALID" "Arguments: <origin_dev>" "$table -"
	refuses "origin on no device" "No such" "Cannot open the origin device" \
		"0 $SECTORS fleece /dev/none - 128"
	refuses "origin with a metadata device that holds nothing" "No data" "metadata device .* cannot be used" \
		"$table $other 128"
	for granularity in 0 4 7 24 65536 -8 x 8x 99999999999999999999; do
		refuses "granularity $granularity" "$INVALID" "Granularity is not a" \
			"$table - $granularity"
	done
	refuses "origin longer than its device" "$INVALID" "Length is beyond the end" \
		"0 $((SECTORS + 8)) fleece $disk - 128"
	refuses "origin that does not begin at 0" "$INVALID" "$NOT_FIRST" \
		"8 $SECTORS fleece $disk - 128"
	refuses "unknown feature" "$INVALID" "Unknown feature argument" "$table - 128 1 fast"
	refuses "feature count too large" "$INVALID" "$WRONG_COUNT" \
		"$table - 128 2 discard_copy"
	refuses "feature count too small" "$INVALID" "$WRONG_COUNT" \
		"$table - 128 0 discard_copy"
	refuses "feature count that is no number" "$INVALID" "$WRONG_COUNT" \
		"$table - 128 x discard_copy"
	refuses "feature given twice" "$INVALID" "discard_copy is given twice" \
		"$table - 128 2 discard_copy discard_copy"
}

test_two_targets()
{
	log_mark
	printf '%s\n' "0 16384 fleece $disk - 128" "16384 16384 linear $other 0" \
		> "$SCRATCH/table"
	fails "a second target in the table: refused" "$INVALID" \
		dmsetup create "$PREFIX-refused" "$SCRATCH/table"
	expect_log "a second target in the table: the log says why" "must appear alone"
}

test_origin_twice()
{
	refuses "a second origin on the same device" "busy" \
		"already belongs to another fleece device" "0 $SECTORS fleece $disk - 128"
	log_mark
	fails "reload with another granularity: refused" "$INVALID" \
		dmsetup load "$PREFIX-origin" --table "0 $SECTORS fleece $disk - 256"
	expect_log "reload with another granularity: the log says why" \
		"granularity of an origin cannot be changed"
	log_mark
	fails "reload longer than the device: refused" "$INVALID" \
		dmsetup load "$PREFIX-origin" --table "0 $((SECTORS + 8)) fleece $disk - 128"
	expect_log "reload longer than the device: the log says why" "Length is beyond the end"
	is "the refused tables are not kept" \
		"$(dmsetup info -c --noheadings -o tables_loaded "$PREFIX-origin")" Live
	gets "the origin works on" ok origin write 1 0 1M
}

test_snapshot_tables()
{
	local table="0 $SECTORS fleece-snapshot $disk $cow"
	local cluster

	refuses "snapshot without parameters" "$INVALID" "Arguments: <origin_dev>" \
		"0 $SECTORS fleece-snapshot"
	refuses "snapshot without cluster" "$INVALID" "Arguments: <origin_dev>" "$table"
	refuses "snapshot with a COW device that is not there" "No such" \
		"Cannot open the COW device" "0 $SECTORS fleece-snapshot $disk /dev/none 128"
	refuses "snapshot of a device that is not there" "No such" \
		"Cannot open the origin device" "0 $SECTORS fleece-snapshot /dev/none $cow 128"
	for cluster in 0 4 7 24 65536 -8 x 8x 99999999999999999999; do
		refuses "cluster $cluster" "$INVALID" "Cluster is not a" "$table $cluster"
	done
	refuses "snapshot shorter than its origin" "$INVALID" "Length differs" \
		"0 $((SECTORS - 8)) fleece-snapshot $disk $cow 128"
	refuses "snapshot longer than its origin" "$INVALID" "Length differs" \
		"0 $((SECTORS + 8)) fleece-snapshot $disk $cow 128"
	refuses "snapshot of a device without origin" "No such device" "is not attached" \
		"0 $SECTORS fleece-snapshot $other $cow 128"
	refuses "COW device is the origin" "$INVALID" "same as the origin" \
		"0 $SECTORS fleece-snapshot $disk $disk 128"
	refuses "snapshot of the fleece device itself" "No such device" "is not attached" \
		"0 $SECTORS fleece-snapshot $(path_of origin) $cow 128"
	refuses "snapshot that does not begin at 0" "$INVALID" "$NOT_FIRST" \
		"8 $SECTORS fleece-snapshot $disk $cow 128"
}

test_snapshot_features()
{
	local table="0 $SECTORS fleece-snapshot $disk $cow 128"
	local name long

	long=$(printf '%064d' 0)
	refuses "unknown feature" "$INVALID" "Unknown feature argument" "$table 1 fast"
	refuses "feature count too large" "$INVALID" "$WRONG_COUNT" "$table 3 staging 0"
	refuses "feature count too small" "$INVALID" "$WRONG_COUNT" "$table 1 staging 0"
	refuses "feature without value" "$INVALID" "'staging' has no value" "$table 1 staging"
	refuses "feature given twice" "$INVALID" "'staging' is given twice" \
		"$table 4 staging 0 staging 8"
	refuses "staging that is no number" "$INVALID" "'staging': .* not a number" \
		"$table 2 staging much"
	refuses "staging that is not possible" "$INVALID" "'staging': .* not a number" \
		"$table 2 staging 99999999999999999999"
	refuses "cbw_timeout that is no number" "$INVALID" "'cbw_timeout': .* not a number" \
		"$table 2 cbw_timeout soon"
	refuses "low_water that is no number" "$INVALID" "'low_water': .* not a number" \
		"$table 2 low_water low"
	refuses "on_cbw_error unknown" "$INVALID" "on_cbw_error: not one of" \
		"$table 2 on_cbw_error ignore"
	refuses "on_cow_full unknown" "$INVALID" "on_cow_full: not one of" \
		"$table 2 on_cow_full grow"
	refuses "since an unknown checkpoint" "No such" "since: .* no such checkpoint" \
		"$table 2 since nobody"
	refuses "checkpoint that exists" "File exists" "checkpoint: .* already has" \
		"$table 2 checkpoint taken"
	for name in .x a/b "$long" 'a*'; do
		refuses "checkpoint named $name" "$INVALID" "Checkpoint name is not" \
			"$table 2 checkpoint $name"
	done
}

test_used_cow_device()
{
	make_snapshot snap disk cow 128
	refuses "the COW device of another snapshot of the origin" "busy" "$USED_COW" \
		"0 $SECTORS fleece-snapshot $disk $cow 128"
	make_origin origin2 other
	refuses "a COW device of another origin's snapshot" "busy" "$USED_COW" \
		"0 $SECTORS fleece-snapshot $other $cow 128"
	refuses "the COW device of a snapshot as origin" "busy" "is the COW device" \
		"0 $SECTORS fleece $cow - 128"
	refuses "the device of another origin as COW device" "busy" "itself an origin" \
		"0 $SECTORS fleece-snapshot $disk $other 128"
	refuses "another origin as COW device" "busy" "itself an origin" \
		"0 $SECTORS fleece-snapshot $disk $(path_of origin2) 128"
	succeeds "the snapshot is removed" dm_remove snap
	succeeds "the other origin is removed" dm_remove origin2
}

test_cow_devices()
{
	make_disk tiny 2048
	defer dm_remove_deferred bad
	make_disk small $((2048 + 64))
	refuses "COW device with room for the header only" "No space" "COW device too small" \
		"0 $SECTORS fleece-snapshot $disk $(path_of tiny) 128"
	refuses "COW device with room for half a cluster" "No space" "COW device too small" \
		"0 $SECTORS fleece-snapshot $disk $(path_of small) 128"
	or_bail dm_create bad "0 $(blockdev --getsz "$cow") error"
	refuses "a COW device that cannot be written" "Input/output error" \
		"header of the COW device" \
		"0 $SECTORS fleece-snapshot $disk $(path_of bad) 128"
	or_bail dm_remove bad
}

# refuses_mounted DESCRIPTION LOG DEVICE TABLE: while it is mounted.
refuses_mounted()
{
	or_bail mkfs.ext4 -q "$3"
	or_bail mount "$3" "$SCRATCH/mnt"
	refuses "$1" "busy" "$2" "$4"
	or_bail umount "$SCRATCH/mnt"
}

test_mounted()
{
	if ! command -v mkfs.ext4 > /dev/null; then
		skip "mounted devices" "mkfs.ext4 is not installed"
		return
	fi
	mkdir "$SCRATCH/mnt"
	defer eval "mountpoint -q $SCRATCH/mnt && umount $SCRATCH/mnt || :"
	refuses_mounted "a mounted COW device" "COW device is in use" "$cow" \
		"0 $SECTORS fleece-snapshot $disk $cow 128"
	refuses_mounted "a mounted origin" "Origin device is in use" "$other" \
		"0 $SECTORS fleece $other - 128"
	refuses_mounted "a mounted metadata device" "Metadata device is in use" "$other" \
		"0 $SECTORS fleece $disk $other 128"
}

# A partition belongs to its disk, and not to the partition beside it.
test_partitions()
{
	local loop

	truncate -s 64M "$SCRATCH/disk"
	if ! has_module loop || ! loop=$(losetup --find --show --partscan "$SCRATCH/disk"); then
		skip "partitions" "there are no loop devices"
		return
	fi
	defer losetup -d "$loop"
	printf 'start=2048, size=%d\n' $SECTORS > "$SCRATCH/partitions"
	echo 'start=65536, size=32768' >> "$SCRATCH/partitions"
	or_bail sfdisk --quiet --label dos "$loop" < "$SCRATCH/partitions"
	# It has the kernel read the table once more.
	settle_udev
	wait_until 10 test -b "${loop}p2" || bail "preparation: the partitions have nodes"
	or_bail wait_until 10 dm_create part "0 $SECTORS fleece ${loop}p1 - 128"
	defer dm_remove_deferred part
	refuses "the disk of the origin as COW device" "busy" "COW device is in use" \
		"0 $SECTORS fleece-snapshot ${loop}p1 $loop 128"
	or_bail dm_create beside "0 $SECTORS fleece-snapshot ${loop}p1 ${loop}p2 128"
	defer dm_remove_deferred beside
	gets "a partition beside the origin can be its COW device" ok part write 1 0 1M
	gets "which keeps the old data" ok beside verify zero 0 -
}

test_zoned()
{
	if [ -d /sys/module/null_blk ] || ! modprobe null_blk nr_devices=1 gb=1 \
		memory_backed=1 zoned=1 zone_size=64 2>/dev/null; then
		skip "zoned devices" "null_blk makes no zoned device"
		return
	fi
	defer unload_module null_blk
	wait_until 10 test -b /dev/nullb0 || bail "preparation: null_blk makes a device"
	refuses "a zoned COW device" "not supported" "zoned" \
		"0 $SECTORS fleece-snapshot $disk /dev/nullb0 128"
	refuses "a zoned origin" "not supported" "zoned" \
		"0 $(blockdev --getsz /dev/nullb0) fleece /dev/nullb0 - 128"
	refuses "a zoned metadata device" "$INVALID" "zoned" \
		"0 $SECTORS fleece $disk /dev/nullb0 128"
}

test_origin_tables
test_two_targets
make_origin origin disk
or_bail message origin checkpoint_create taken
before=$(status_of origin)
test_origin_twice
test_snapshot_tables
test_snapshot_features
is "the origin is untouched" "$(status_of origin)" "${before/ 0 none/ 16 none}"
test_used_cow_device
test_cow_devices
test_mounted
test_partitions
test_zoned
make_snapshot last disk cow 128
gets "a right table still works" ok last verify 1 0 1M
finish
