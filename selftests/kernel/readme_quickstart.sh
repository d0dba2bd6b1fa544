#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will run the blocks of the README's quick start word for word: one on a mounted
# logical volume, one with nothing but dmsetup; and those about reboots. And the script of
# docs/backup.rst for a backup every night.
#
#     vg0-data (ext4) on a loop device      sdb, sdc: emulated SCSI disks
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

export PATH=$FLEECE_TREE/userspace/fleece:$FLEECE_TREE/userspace/fleeced:$PATH

load_fleece
requires_program lvcreate mkfs.ext4 nbdcopy nbdinfo
requires_module loop
[ -x "$FLEECE_TREE/userspace/fleece/fleece" ] || skip_all "the programs are not built"
[ ! -e /backup ] || skip_all "/backup exists"
! vgs vg0 > /dev/null 2>&1 || skip_all "a volume group vg0 exists"

# night: the script of docs/backup.rst.
night()
{
	awk '$0 == "A backup every night" { inside = 1; next }
		inside && $0 == "Restore" { exit }
		inside && /^(\t|$)/ { print substr($0, 2) }' "$FLEECE_TREE/docs/backup.rst" > "$SCRATCH/night"
	[ -s "$SCRATCH/night" ] || return
	PATH=$1:$PATH bash "$SCRATCH/night"
}

# broken_night VERB [COMMAND]: one in which this happens instead of that verb of fleece.
broken_night()
{
	mkdir -p "$SCRATCH/broken"
	cat > "$SCRATCH/broken/fleece" <<-END
		#!/bin/sh
		[ "\$1" = $1 ] && { echo "$1 is broken" >&2; ${2:-exit 1}; exit 1; }
		exec $(command -v fleece) "\$@"
	END
	chmod +x "$SCRATCH/broken/fleece"
	night "$SCRATCH/broken"
}

# in_image IMAGE: what its file has.
in_image()
{
	debugfs -R "cat /file" "/backup/$1" 2> /dev/null
}

# On a mounted volume, without a metadata device.
test_nights()
{
	local first

	or_bail fleece attach /dev/vg0/data
	echo first > /mnt/file
	fails "a night without the filesystem of the backups" "not a mountpoint" night /bin
	is "writes nothing" "$(ls /backup)" ""
	or_bail mount --bind /backup /backup
	defer umount /backup
	succeeds "the first night, a full backup" night /bin
	first=$(readlink /backup/last)
	is "has its image" "$(in_image last)" first
	echo second > /mnt/file
	sleep 1
	succeeds "the second night, an incremental one" night /bin
	is "has its image" "$(in_image last)" second
	is "the first one is as it was" "$(in_image "$first")" first
	succeeds "the image has a filesystem" e2fsck -fn /backup/last
	is "one checkpoint is left" "$(dmsetup message vg0-data 0 checkpoint_list | wc -l)" 1
	sleep 1
	fails "a night whose pull fails" "pull is broken" broken_night pull
	is "leaves no image" "$(find /backup -mindepth 1 | wc -l)" 3
	is "and no checkpoint" "$(dmsetup message vg0-data 0 checkpoint_list | wc -l)" 1
	fails "nor a snapshot" "No such device" dmsetup table vg0-data-snap
	sleep 1
	fails "a night that is told to end" "pull is broken" broken_night pull "kill \$PPID; sleep 1"
	is "leaves no image either" "$(find /backup -mindepth 1 | wc -l)" 3
	is "and no checkpoint" "$(dmsetup message vg0-data 0 checkpoint_list | wc -l)" 1
	sleep 1
	fails "a night that is killed" "pull is broken" broken_night pull "kill -9 \$PPID"
	is "leaves what it has made" "$(find /backup -name '*.new' | wc -l)" 1
	succeeds "also its snapshot" dmsetup table vg0-data-snap
	sleep 1
	succeeds "one that cannot delete the old checkpoint has succeeded" broken_night checkpoint
	is "it has its image" "$(in_image last)" second
	echo third > /mnt/file
	or_bail dmsetup message vg0-data 0 checkpoint_delete "$(readlink /backup/last)"
	sleep 1
	succeeds "a night without the checkpoint of the last one" night /bin
	is "has its image" "$(in_image last)" third
	is "nothing is left of those that went wrong" "$(find /backup -mindepth 1 | wc -l) $(
		dmsetup message vg0-data 0 checkpoint_list | wc -l)" "5 1"
	or_bail fleece detach vg0-data
	rm -f /backup/*
	echo monday > /mnt/file
	sync
}

# block NUMBER [SECTION]: an indented block of the quick start, or that section, counted from 1.
block()
{
	awk -v wanted="$1" -v section="## ${2:-Quick start}" '
		/^## / { inside = ($0 == section); next }
		!inside { next }
		/^    / { if (!block) number++; block = 1 }
		# A blank line between two indented ones belongs to the block.
		/^[^ ]/ { block = 0 }
		block && number == wanted { print substr($0, 5) }' "$FLEECE_TREE/README.md"
}

remove_volume()
{
	umount /mnt 2> /dev/null
	vgremove -qq -y vg0 2> /dev/null
	pvremove -qq -y "$loop" 2> /dev/null
	losetup -d "$loop"
	wait_until 10 eval "! losetup $loop"
}

make_volume()
{
	# The README asks for 10 GiB of COW space; nothing of it is used.
	truncate -s 11G "$SCRATCH/disk"
	loop=$(losetup -f --show "$SCRATCH/disk") || skip_all "no loop device"
	defer remove_volume
	vgcreate -qq vg0 "$loop" || bail "a volume group"
	lvcreate -qq -y -L 64M -n data vg0 || bail "a volume"
	mkfs.ext4 -q /dev/vg0/data || bail "a filesystem"
	mount /dev/vg0/data /mnt || bail "a mount"
	echo monday > /mnt/file
	sync
}

# run_block NUMBER TEXT [SECTION]: each command must succeed.
run_block()
{
	block "$1" "${3:-}" > "$SCRATCH/block$1"
	[ -s "$SCRATCH/block$1" ] || bail "the quick start has block $1"
	if bash -e "$SCRATCH/block$1" > "$SCRATCH/out$1" 2>&1; then
		ok "$2"
	else
		not_ok "$2" "$(cat "$SCRATCH/out$1")"
	fi
}

mkdir /backup
defer rm -rf /backup
make_volume
test_nights
run_block 1 "the quick start with fleece, on a mounted volume"
succeeds "the backup of monday has a filesystem" e2fsck -fn /backup/monday.img
is "the volume is as it was" "$(dmsetup table vg0-data | cut -d' ' -f3)" linear
is "the file is there" "$(cat /mnt/file)" monday
succeeds "so has that of tuesday" e2fsck -fn /backup/tuesday.img
rm -f /backup/*.img

# reboot: all devices go and come back, without a word to anybody.
reboot()
{
	umount /mnt && dmsetup remove --retry vg0-data && dmsetup remove --retry vg0-data-lower &&
		vgchange -qq -an vg0 && vgchange -qq -ay vg0
}

# systemd_attach.sh has a real one.
mkdir "$SCRATCH/bin" /etc/fleece
defer rm -rf /etc/fleece
ln -s /bin/true "$SCRATCH/bin/systemctl"
PATH=$SCRATCH/bin:$PATH
run_block 1 "the commands for reboots" "Across reboots"
echo wednesday > /mnt/file
or_bail reboot
succeeds "what the service does at boot" fleece attach --all
mount /dev/vg0/data /mnt || bail "a mount"
succeeds "check has nothing to complain of" fleece check
like "the metadata is in use" "$(fleece status vg0-data)" "metadata +(clean|dirty)"
like "the next backup is an incremental one" "$(fleece map vg0-data --since wednesday)" " dirty"
tab=$(cat /etc/fleece/fleecetab)
echo "other /dev/vg0/data -" > /etc/fleece/fleecetab
fails "check tells of one that is not attached" "other: is not attached" fleece check
echo "vg0-data /dev/vg0/data-meta -" > /etc/fleece/fleecetab
fails "of one on another device" "vg0-data: is attached to another device" fleece check
echo "vg0-data /dev/vg0/data /dev/vg0/data" > /etc/fleece/fleecetab
fails "of one with other metadata" "vg0-data: .*another metadata device" fleece check
echo "$tab" > /etc/fleece/fleecetab
run_block 2 "the commands to end that" "Across reboots"
is "the volume is as it was" "$(dmsetup table vg0-data | cut -d' ' -f3)" linear

modprobe scsi_debug add_host=3 per_host_store=1 dev_size_mb=32 delay=0 ||
	bail "three emulated SCSI disks"
defer modprobe -r scsi_debug
wait_until 20 eval "test -b /dev/sdb && test -b /dev/sdc" || bail "the disks appear"
# To the device: whoever looks at it, as udev does, keeps its last close from writing it out.
dd if=/dev/urandom of=/dev/sdb bs=1M count=4 conv=notrunc,fsync status=none
run_block 2 "the quick start with dmsetup"
succeeds "the backup is what the disk holds" cmp /dev/sdb /backup/monday.img
dmsetup remove data
finish
