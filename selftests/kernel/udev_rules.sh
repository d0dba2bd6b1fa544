#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will make devices with the uuids of lower devices and snapshots, as others than
# `fleece` would: udev must find no file system on them, with the rules of this distribution.
#
#     plain      lower      snap     uuids: none, FLEECE-lower-..., FLEECE-snapshot-...
#       |          |          |
#       +------- disk --------+      an ext4 with a label, on a slice of a brd
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

RULES=/run/udev/rules.d/12-dm-fleece.rules
SECTORS=16384

# properties NAME: what udev has found out, as one line.
properties()
{
	udevadm settle --timeout=60
	udevadm info --query=property --name="$(path_of "$1")" | paste -sd' '
}

# make NAME [UUID]: with the content of the disk.
make()
{
	or_bail dmsetup create "$PREFIX-$1" ${2:+--uuid "$2"} \
		--table "0 $SECTORS linear $(path_of disk) 0"
	defer dm_remove_deferred "$1"
}

check_hidden()
{
	local found

	found=$(properties "$1")
	like "$2 has no file system for udev" "$found" "SYSTEMD_READY=0"
	is "and no name of it" "$(grep -oE 'ID_FS_[A-Z]+|by-label' <<< "$found")" ""
}

# What a device of others must not have.
check_untouched()
{
	like "$2 is looked at" "$1" "DEVNAME="
	is "and not hidden" "$(grep -oE 'SYSTEMD_READY=0|(DISK|SUBSYSTEM|OTHER)_RULES_FLAG=1' <<< "$1")" ""
}

requires_program udevadm mkfs.ext4
[ -S /run/udev/control ] || skip_all "udev does not run"
load_fleece
make_arena 16
make_disk disk $SECTORS
or_bail mkfs.ext4 -q -L fleecetest "$(path_of disk)"
mkdir -p "$(dirname $RULES)"
or_bail cp "$FLEECE_TREE/userspace/udev/12-dm-fleece.rules" $RULES
defer udevadm control --reload
defer rm -f $RULES
or_bail udevadm control --reload
or_bail udevadm trigger --action=change "/sys/block/$(basename "$ARENA")"
udevadm settle --timeout=60
check_untouched "$(udevadm info --query=property --name="$ARENA" | paste -sd' ')" "a disk"
make plain
check_untouched "$(properties plain)" "a device of device-mapper"
like "udev finds the file system on a device of others" "$(properties plain)" "ID_FS_LABEL=fleecetest"
make lower "FLEECE-lower-$$"
check_hidden lower "a lower device"
make snap "FLEECE-snapshot-$$-user"
check_hidden snap "a snapshot"
or_bail udevadm trigger --action=change "/sys/block/$(basename "$(readlink -f "$(path_of lower)")")"
check_hidden lower "after another event, a lower device"
finish
