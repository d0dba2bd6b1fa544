#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will take snapshots of two mounted volumes at one moment, under a
# writer that writes to both in turns, with each kind of COW space, and have a
# freeze that cannot succeed given up.
#
#     ext4, writer   ext4, writer
#         |              |
#     VG-one (fleece) VG-two (fleece)    VG-one-snap    VG-two-snap
#         |              |                |     |        |     |
#     VG-one-lower   VG-two-lower  <------+    COW  <----+    COW
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"
# shellcheck source-path=SCRIPTDIR
. "$here/../cli/lib.sh"

load_fleece
requires_program lvcreate mkfs.ext4 jq losetup
requires_fleece
has_module loop || skip_all "needs the module loop"
make_arena 400
make_group
make_volume one 64
make_volume two 64
mount_volume one
mount_volume two
one=$(dm_name one)
two=$(dm_name two)
or_bail "$FLEECE" attach "$one"
or_bail "$FLEECE" attach "$two"
start_writer one two
or_bail writer_goes_on

# Records of one and two in the images: the same number, or one more in one.
check_one_moment()
{
	local first second

	or_bail mount_snapshot one
	or_bail mount_snapshot two
	first=$(records_of one)
	second=$(records_of two)
	or_bail wait_until 20 umount "$SCRATCH/one-snap"
	or_bail wait_until 20 umount "$SCRATCH/two-snap"
	like "all records of one are right: $first" "$first" " right$"
	like "all records of two are right: $second" "$second" " right$"
	at_least "two has no record that one has not" "${first% *}" "${second% *}"
	at_most "two lacks the last record at most" "${first% *}" "$((${second% *} + 1))"
}

kind_of()
{
	"$FLEECE" status "$1-snap" --json | jq -r '.snapshots[0].cow_kind'
}

# take_group DESCRIPTION KIND OPTION...
take_group()
{
	log_mark
	says "$1" "^frozen for" "$FLEECE" snapshot "$one" "$two" --cow-size 60M "${@:3}" || return
	is "the COW space is $2" "$(kind_of "$one") $(kind_of "$two")" "$2 $2"
	check_one_moment
	says "remove both" "^$" "$FLEECE" remove "$one-snap" "$two-snap"
	succeeds "the writer goes on" writer_goes_on
}

take_group "a group on logical volumes" lvm --checkpoint first
take_group "a group on files" file --cow-kind file
take_group "a group on files in a directory of choice" file --cow-dir "$SCRATCH"
is "no loop device is left" "$(losetup -a)" ""
if has_module zram; then
	zram=$(find /sys/block -name 'zram*' | wc -l)
	take_group "a group in compressed RAM" zram --cow-kind zram
	is "no zram device is left" "$(find /sys/block -name 'zram*' | wc -l)" "$zram"
else
	skip "a group in compressed RAM" "needs the module zram"
fi

#
# The command's own root filesystem is the one that gets frozen, and nothing of it
# is in memory when the command starts.
#
make_root()
{
	local root=$SCRATCH/one file

	mkdir "$root"/{dev,proc,sys,run,cow}
	for file in "$FLEECE" $(ldd "$FLEECE" | grep -oE '/[^ ]+'); do
		mkdir -p "$root$(dirname "$file")"
		cp -L "$file" "$root$file"
	done
	for file in dev proc sys run; do
		mount --rbind "/$file" "$root/$file" && mount --make-rslave "$root/$file" || return
	done
	mount -t tmpfs -o size=100M tmpfs "$root/cow"
}

unmake_root()
{
	local directory

	for directory in cow run sys proc dev; do
		mountpoint -q "$SCRATCH/one/$directory" || continue
		umount -R -l "$SCRATCH/one/$directory"
	done
}

defer unmake_root
make_root || bail "preparation: a root directory on one"
sync
echo 3 > /proc/sys/vm/drop_caches
says "a group whose command has its root on one of them" "^frozen for" \
	timeout 120 chroot "$SCRATCH/one" "$FLEECE" snapshot "$one" "$two" --cow-size 40M --cow-dir /cow
check_one_moment
says "remove both" "^$" "$FLEECE" remove "$one-snap" "$two-snap"
unmake_root

#
# A group that fails leaves nothing.
#
nothing_is_left()
{
	fails "$1: no snapshot of one" "does not exist" dmsetup info -c "$one-snap"
	is "$1: no COW space" "$(lvs --noheadings -o lv_name "$GROUP" 2>&1 | grep -c cow)" 0
	is "$1: nobody is suspended" "$(dmsetup info "$one" "$two" | grep -c SUSPENDED)" 0
	[ -z "$WRITER" ] || succeeds "$1: the writer goes on" writer_goes_on
}

or_bail dmsetup create "$two-snap" --notable
exits "a group of which one snapshot's name is in use" 5 \
	"$FLEECE" snapshot "$one" "$two" --cow-size 60M
or_bail dmsetup remove "$two-snap"
nothing_is_left "name in use"

exits "a group for which there is no room" 1 \
	"$FLEECE" snapshot "$one" "$two" --cow-size 200M --cow-kind lvm
nothing_is_left "no room"

exits "a checkpoint of which one exists" 5 \
	"$FLEECE" snapshot "$two" "$one" --cow-size 60M --checkpoint first

#
# The third origin's filesystem lies in a file on one: that must be suspended after it, and
# resumed before.
#
# shellcheck disable=SC2317 # it is called by succeeds
take_down_inner()
{
	losetup "$inner" > /dev/null 2>&1 || return 0
	umount "$SCRATCH/inner" && "$FLEECE" detach "$PREFIX-inner" && losetup -d "$inner"
}

or_bail truncate -s 16M "$SCRATCH/one/inner"
or_bail mkfs.ext4 -q "$SCRATCH/one/inner"
inner=$(losetup -f --show "$SCRATCH/one/inner")
or_bail "$FLEECE" attach "$inner" --name "$PREFIX-inner"
mkdir "$SCRATCH/inner"
defer take_down_inner
or_bail mount "$MAPPER/$PREFIX-inner" "$SCRATCH/inner"

# Something to write when freezing, whatever was flushed before.
dirty_inner()
{
	while [ ! -e "$SCRATCH/inner-stop" ]; do
		dd if=/dev/zero of="$SCRATCH/inner/file" bs=64k count=40 conv=notrunc status=none
	done
}

# take_stack ORIGIN...
take_stack()
{
	says "a group of which one lies on another: $*" "^frozen for" \
		"$FLEECE" snapshot "$@" --cow-size 20M --cow-kind file --freeze-timeout 60
	is "the upper one was frozen: its journal is empty" "$(dumpe2fs -h \
		"$MAPPER/$PREFIX-inner-snap" 2>&1 |
		awk '/^Filesystem features:/ { print /needs_recovery/ ? "in use" : "empty" }')" empty
	succeeds "remove both" "$FLEECE" remove "$one-snap" "$PREFIX-inner-snap"
	succeeds "the writer goes on" writer_goes_on
}

dirty_inner &
dirty=$!
take_stack "$one" "$PREFIX-inner"
take_stack "$PREFIX-inner" "$one"
touch "$SCRATCH/inner-stop"
wait "$dirty"
succeeds "the inner one can be taken down" take_down_inner

#
# An origin that cannot be suspended, as its lower device holds a read back.
#
hold_two()
{
	or_bail dmsetup suspend "$two-lower"
	dd if="$MAPPER/$two" of=/dev/null bs=4k count=1 iflag=direct status=none &
	late=$!
	wait_until 20 is_stuck $late || bail "preparation: a read is held back"
}

let_two_go()
{
	or_bail dmsetup resume "$two-lower"
	wait "$late"
}

stop_writer
unmount_volume two
hold_two
fails "a freeze that waits for it is given up" "could not be suspended in time" \
	"$FLEECE" snapshot "$one" "$two" --cow-size 20M --cow-kind file --freeze-timeout 3
let_two_go
nothing_is_left "given up"

#
# Killed in the window with its process group, as by timeout(1), and all of its control group,
# as by systemd: the guardian resumes.
#
CGROUP=/sys/fs/cgroup
if ! grep -q " $CGROUP cgroup2 " /proc/mounts; then
	or_bail mount -t cgroup2 cgroup2 "$CGROUP"
	defer umount "$CGROUP"
fi
or_bail mkdir "$CGROUP/killed"
hold_two
# shellcheck disable=SC2016 # the shell's own
setsid sh -c 'echo $$ > "$1" && shift && exec "$@"' sh "$CGROUP/killed/cgroup.procs" \
	"$FLEECE" snapshot "$one" "$two" --cow-size 20M --cow-kind file --freeze-timeout 600 \
	> "$SCRATCH/killed" 2>&1 &
killed=$!

# shellcheck disable=SC2317 # it is called by wait_until
is_suspended()
{
	dmsetup info "$1" | grep -q 'SUSPENDED'
}

# shellcheck disable=SC2317 # likewise
nobody_is_suspended()
{
	! is_suspended "$one" && ! is_suspended "$two"
}

if wait_until 60 is_suspended "$one"; then
	xargs -a "$CGROUP/killed/cgroup.procs" kill -9 -- "-$killed"
	wait "$killed" 2> /dev/null
	succeeds "killed in the window: the guardian resumes" wait_until 30 nobody_is_suspended
else
	kill "$killed"
	not_ok "killed in the window" "one was not suspended" "$(cat "$SCRATCH/killed")"
fi
let_two_go
or_bail wait_until 30 rmdir "$CGROUP/killed"
or_bail mount "/dev/$GROUP/two" "$SCRATCH/two"
for name in "$one-snap" "$two-snap"; do
	dmsetup info "$name" > /dev/null 2>&1 || continue
	fails "check finds what was left: $name" "was never started" "$FLEECE" check
	succeeds "remove removes it" "$FLEECE" remove "$name"
done
is "and its COW space" "$(losetup -a)" ""
nothing_is_left "killed"

start_writer one two
succeeds "the writer goes on" writer_goes_on
stop_writer
says "detach one" "detached" "$FLEECE" detach "$one"
says "detach two" "detached" "$FLEECE" detach "$two"
unmount_volume one
unmount_volume two
succeeds "the filesystem of one is clean" fsck.ext4 -fn "/dev/$GROUP/one"
succeeds "the filesystem of two is clean" fsck.ext4 -fn "/dev/$GROUP/two"
remove_group > /dev/null 2>&1
finish
