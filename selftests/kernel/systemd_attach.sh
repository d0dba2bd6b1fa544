#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will have a real systemd, process 1 of a namespace of its own, attach what
# /etc/fleece/fleecetab lists by fleece-attach.service, before it mounts the origin: at a first
# boot, after a shutdown that detaches nothing, and when things are missing. It runs in a VM.
#
#     mount.service       after local-fs-pre.target
#         |
#     NAME (fleece) <---  fleece-attach.service, before local-fs-pre.target
#      |        |
#     disk    meta        a loop device, and a slice of a brd
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"
# shellcheck source-path=SCRIPTDIR
. "$here/../cli/lib.sh"
# shellcheck source-path=SCRIPTDIR
. "$here/../systemd.sh"

SECTORS=65536
TAB=/etc/fleece/fleecetab
UNIT=fleece-attach.service
NAME=$PREFIX-origin
MOUNTPOINT=$SCRATCH/mnt

# Also what mounts the origin, as if it stood in fstab, and a step of each boot that is
# ordered like any other mount.
set_up_units()
{
	make_units "$FLEECE" basic shutdown
	cat > "$UNITS/local-fs-pre.target" <<-END
		[Unit]
		DefaultDependencies=no
	END
	cat > "$UNITS/local-fs.target" <<-END
		[Unit]
		DefaultDependencies=no
		After=local-fs-pre.target
	END
	cat > "$UNITS/mount.service" <<-END
		[Unit]
		DefaultDependencies=no
		After=local-fs-pre.target
		Before=local-fs.target
		[Service]
		Type=oneshot
		RemainAfterExit=yes
		ExecStart=$(command -v mount) /dev/mapper/$NAME $MOUNTPOINT
		ExecStop=$(command -v umount) $MOUNTPOINT
	END
	mkdir "$UNITS/local-fs.target.wants" "$UNITS/$UNIT.d"
	ln -s "../mount.service" "../$UNIT" "$UNITS/local-fs.target.wants"
	printf '[Service]\nStandardOutput=append:%s\nStandardError=append:%s\n' "$SCRATCH/log" \
		"$SCRATCH/log" > "$UNITS/$UNIT.d/log.conf"
}

# list DEVICE METADATA [OPTIONS]: as the only line.
list()
{
	mkdir -p /etc/fleece
	echo "$NAME $*" > "$TAB"
}

# shut_down: mounts end, then all processes, and systemd-shutdown removes what is left.
shut_down()
{
	or_bail ctl stop mount.service
	stop_systemd
	dmsetup info "$NAME" > /dev/null 2>&1 && or_bail dmsetup remove --retry "$NAME"
	: > "$SCRATCH/log"
}

start()
{
	: > "$SCRATCH/log"
	start_systemd local-fs
}

changed()
{
	"$FLEECE" map "$NAME" --since "$1" | awk '$4 == "dirty" { sum += $2 } END { print sum + 0 }'
}

metadata()
{
	"$FLEECE" status "$NAME" --json | jq -r '.origins[0].metadata'
}

test_first_boot()
{
	list "$disk" "$(path_of meta)"
	start
	is "the service has attached the origin" \
		"$(property ActiveState $UNIT) $(property Result $UNIT)" "active success"
	is "before it was mounted" "$(property ActiveState mount.service) $(metadata)" "active clean"
	or_bail "$FLEECE" checkpoint create "$NAME" one
	or_bail inside dd if=/dev/urandom of="$MOUNTPOINT/file" bs=64k count=8 conv=fsync status=none
	at_least "changes are seen" "$(changed one)" $((8 * 65536))
	at_most "but not everywhere" "$(changed one)" $((SECTORS * 512 / 2))
	changed one > "$SCRATCH/before"
	shut_down
}

test_next_boot()
{
	start
	# Or dirty: an ext4 that is mounted writes of itself after a while.
	like "after a reboot it is attached again" "$(property Result $UNIT) $(metadata)" \
		"^success (clean|dirty)$"
	succeeds "the checkpoint is still valid" "$FLEECE" map "$NAME" --since one
	at_least "and what was changed has not been forgotten" "$(changed one)" \
		"$(cat "$SCRATCH/before")"
	succeeds "what was written is there" inside test -s "$MOUNTPOINT/file"
	succeeds "a restart of the service changes nothing" ctl restart $UNIT
	succeeds "as it says" grep -q "$NAME is attached already" "$SCRATCH/log"
	shut_down
}

test_refused()
{
	list "$disk" "$(path_of other)"
	start
	is "without its metadata the machine boots all the same" \
		"$(property ActiveState mount.service) $(metadata)" "active none"
	is "but the service has failed" "$(property Result $UNIT)" exit-code
	succeeds "and says why" grep -q "WITHOUT its metadata" "$SCRATCH/log"
	shut_down
}

# What was written meanwhile is not in the maps. Of a file system as small as this one, an
# unmount changes nothing at the start but the superblock, which ends with its own checksum.
test_back()
{
	list "$disk" "$(path_of meta)"
	start
	like "with its metadata again" "$(property Result $UNIT) $(metadata)" \
		"^success (clean|dirty)$"
	exits "the checkpoint is invalid" 7 "$FLEECE" map "$NAME" --since one
	shut_down
}

test_no_command()
{
	sed -i "s:^\(AssertFileIsExecutable=\).*:\1$SCRATCH/gone:" "$UNITS/$UNIT"
	start
	is "without the command it is not attached" "$(property AssertResult $UNIT)" no
	stop_systemd
}

load_fleece
requires_fleece
requires_module loop
requires_program "$SYSTEMD" make nsenter unshare jq mkfs.ext4
make_arena 96
truncate -s $((SECTORS * 512)) "$SCRATCH/disk"
disk=$(losetup --find --show "$SCRATCH/disk") || bail "preparation: a loop device"
defer losetup -d "$disk"
make_disk meta 16384
make_disk other 16384
or_bail dd if=/dev/zero of="$(path_of meta)" bs=1M count=8 oflag=direct status=none
or_bail mkfs.ext4 -q -F "$disk"
or_bail mkfs.ext4 -q -F "$(path_of other)"
mkdir "$MOUNTPOINT"
defer rm -f "$TAB"
defer dm_remove_deferred origin
set_up_units
test_first_boot
test_next_boot
test_refused
test_back
test_no_command
finish
