#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will run every command block of docs/backup.rst with real snapshots of an
# ext4 filesystem, among them those for the kernel's NBD client, and pull onto a block
# device. It runs in a VM.
#
#     origin (fleece, ext4)    snap, part (fleece-snapshot) --- fleeced --- clients
#           |                     |      |
#          disk  <----------------+     cow, cow2     slices of one brd
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=32768
CLUSTER=128
FLEECED=$FLEECE_TREE/userspace/fleeced/fleeced
PULL=$FLEECE_TREE/userspace/pull/fleece-pull
server=

clean_up()
{
	[ ! -e /sys/block/nbd0/pid ] || nbd-client -d /dev/nbd0
	[ -z "$server" ] || { kill "$server" && wait "$server"; }
}

# change_files NAME: the filesystem gets another content.
change_files()
{
	or_bail mount "$(path_of origin)" "$SCRATCH/mnt"
	echo "$1" > "$SCRATCH/mnt/file"
	dd if=/dev/urandom of="$SCRATCH/mnt/$1" bs=64k count=20 conv=fsync status=none
	cp "$SCRATCH/mnt/file" "$SCRATCH/file"
	or_bail umount "$SCRATCH/mnt"
}

# image NAME: of the origin, which nobody writes to.
image()
{
	or_bail dd if="$(path_of origin)" of="$SCRATCH/$1" bs=1M iflag=direct status=none
}

make_snapshots()
{
	or_bail mkfs.ext4 -q -b 4096 "$(path_of origin)"
	mkdir "$SCRATCH/mnt"
	change_files first
	or_bail message origin checkpoint_create first
	image old
	change_files second
	image golden
	make_snapshot snap disk cow $CLUSTER
	make_snapshot part disk cow2 $CLUSTER "2 since first"
	or_bail pattern origin write 3 0 -
	wait_copied snap
	wait_copied part
}

serve()
{
	"$FLEECED" --socket "$SCRATCH/nbd" --pid-file "$SCRATCH/pid" "whole=$(path_of snap)" \
		"part=$(path_of part)" 2> "$SCRATCH/fleeced" &
	server=$!
	defer clean_up
	wait_until 20 test -S "$SCRATCH/nbd" -a -s "$SCRATCH/pid" ||
		bail "fleeced starts" "$(cat "$SCRATCH/fleeced")"
}

# pull EXPORT TARGET OPTION...
pull()
{
	"$PULL" "nbd+unix:///$1?socket=$SCRATCH/nbd" "${@:2}"
}

test_block_device()
{
	local target

	target=$(path_of target)
	or_bail dd if=/dev/urandom of="$target" bs=1M count=16 oflag=direct status=none
	succeeds "a full backup onto a block device" pull whole "$target"
	succeeds "it is right" cmp "$SCRATCH/golden" "$target"
	or_bail dd if="$SCRATCH/old" of="$target" bs=1M oflag=direct status=none
	succeeds "an incremental one, of a limited snapshot" pull part "$target" --since first
	succeeds "it is right" cmp "$SCRATCH/golden" "$target"
	fails "a device that is too small" "has 8388608 bytes, the export 16777216" pull whole \
		"$(path_of small)"
	fails "a full backup of a limited snapshot" "cannot be read" pull part "$target"
	succeeds "leaves the device alone" cmp "$SCRATCH/golden" "$target"
	or_bail mount -o noload,ro "$target" "$SCRATCH/mnt"
	fails "a device that is mounted" "cannot open it: Device or resource busy" pull whole "$target"
	or_bail umount "$SCRATCH/mnt"
}

load_fleece
requires_program /usr/bin/python3 mkfs.ext4
[ -x "$FLEECED" ] || skip_all "fleeced is not built"
[ -x "$PULL" ] || skip_all "fleece-pull is not built"
make_arena 128
make_disk disk $SECTORS
make_disk cow "$(cow_sectors $CLUSTER 256)"
make_disk cow2 "$(cow_sectors $CLUSTER 256)"
make_disk target $SECTORS
make_disk small $((SECTORS / 2))
make_origin origin disk
has_module nbd
make_snapshots
serve
take_tap /usr/bin/python3 "$here/recipes.py" "$SCRATCH/nbd" whole part first "$SCRATCH/old" \
	"$SCRATCH/golden" "$SCRATCH/file"
test_block_device
clean_up
server=
wait_until 10 modprobe -r nbd
or_bail dm_remove part
or_bail dm_remove snap
finish
