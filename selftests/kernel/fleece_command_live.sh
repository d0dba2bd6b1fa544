#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will convert a mounted logical volume under a writer with `fleece`,
# take, map and remove snapshots of it, and convert it back.
#
#     ext4, writer                        ext4, writer
#         |                                   |
#     VG-data (linear)    attach -->      VG-data (fleece)    VG-data-snap
#         |               <-- detach          |                |       |
#       brd                          VG-data-lower (linear) <--+    COW space
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"
# shellcheck source-path=SCRIPTDIR
. "$here/../cli/lib.sh"

load_fleece
requires_program lvcreate mkfs.ext4 jq
requires_fleece
make_arena 256
make_group
make_volume data 64
mount_volume data

type_of()
{
	dmsetup table "$1" | cut -d' ' -f3
}

stamp_of()
{
	stat -c '%d:%i %Y' "$SCRATCH/data/lost+found" "$SCRATCH/data/first"
}

echo first > "$SCRATCH/data/first"
sync
stamp_before=$(stamp_of)
start_writer data

#
# Attach below the mount.
#
data=$(dm_name data)
says "attach converts the mounted volume" "^$data attached" "$FLEECE" attach "/dev/$GROUP/data"
is "its table is ours" "$(type_of "$data")" fleece
is "its old table is on the lower device" "$(type_of "$data-lower")" linear
succeeds "the writer goes on" writer_goes_on
is "the mount is the same" "$(stamp_of)" "$stamp_before"
exits "attach twice" 5 "$FLEECE" attach "$data"
exits "attach of the lower device" 5 "$FLEECE" attach "$data-lower"

#
# A snapshot with a checkpoint, while the writer goes on.
#
says "snapshot of the mounted volume" "^frozen for" \
	"$FLEECE" snapshot "$data" --cow-size 60M --checkpoint first
is "its COW space is a logical volume beside it" \
	"$("$FLEECE" status "$data-snap" --json | jq -r '.snapshots[0].cow_kind')" lvm
succeeds "the writer goes on" writer_goes_on
check_frozen_image data
exits "a second snapshot of the same name" 5 "$FLEECE" snapshot "$data" --cow-size 60M
says "a second snapshot of another name" "^frozen for" \
	"$FLEECE" snapshot "$data" --name second --cow-size 20M
is "the origin has two" "$("$FLEECE" status "$data" --json | jq -r '.origins[0].snapshots')" 2
is "the second one's COW space is a volume of its name" "$(lvs --noheadings -o name "$GROUP/data-second-cow" | tr -d ' ')" \
	data-second-cow
says "grow the second one" "^second  [0-9]+ of 368 clusters used, each 64.0K" \
	"$FLEECE" grow second 24M
is "its volume is larger" \
	"$(blockdev --getsize64 "/dev/$GROUP/data-second-cow")" $((24 * 1024 * 1024))
exits "make it smaller again" 1 "$FLEECE" grow second 20M
or_bail lvextend -q -q --yes -L 28M "$GROUP/data-second-cow"
says "take up what somebody else has given to its COW volume, even if that is more" \
	"^second  [0-9]+ of 432 clusters used" "$FLEECE" grow second 25M
exits "more than the group has" 1 "$FLEECE" grow second 1T
says "remove the second one" "^$" "$FLEECE" remove second
fails "its COW space is gone" "Failed to find" lvs "$GROUP/data-second-cow"
exits "detach with a snapshot" 5 "$FLEECE" detach "$data"
is "the whole snapshot can be read" "$("$FLEECE" map "$data-snap" | wc -l)" 1
like "map of the snapshot is one row of nbdinfo's" "$("$FLEECE" map "$data-snap")" \
	"^ +0 +67108864 +0  accessible$"
says "remove the snapshot" "^$" "$FLEECE" remove "$data-snap"
fails "its COW space is gone" "Failed to find" lvs "$GROUP/data-snap-cow"

#
# A crash leaves the COW space of the snapshot that was there.
#
says "a snapshot by who does not mind its children" "^frozen for" \
	env --ignore-signal=CHLD "$FLEECE" snapshot "$data" --cow-size 20M
is "its COW space is a volume, as always" "$(lvs --noheadings -o name "$GROUP/data-snap-cow" |
	tr -d ' ')" data-snap-cow
or_bail wait_until 20 dmsetup remove "$data-snap"
says "after a crash, check tells of its COW space" "BAD +$GROUP/data-snap-cow: .*lvremove" \
	sh -c "$FLEECE check || :"
says "the next snapshot needs its name, and removes it" "left over.*was removed" \
	"$FLEECE" snapshot "$data" --cow-size 20M
says "check does not tell of one in use" "ok +no leftovers" sh -c "$FLEECE check || :"
says "it is removed as always" "^$" "$FLEECE" remove "$data-snap"
fails "with its COW space" "Failed to find" lvs "$GROUP/data-snap-cow"
long=$(printf '%0100d' 0)
for number in {1..12}; do
	or_bail lvcreate -qq -an -Zn -Wn --addtag fleece-cow -n "$long-$number-cow" -l 1 "$GROUP"
done
is "however many there are, check names them all, and no other one" \
	"$("$FLEECE" check --json | jq -r '.checks[] | select(.ok | not) | .name' | sort)" \
	"$(printf "$GROUP/$long-%d-cow\n" {1..12} | sort)"
or_bail lvremove -qq -f "@fleece-cow"
or_bail lvcreate -qq -n data-snap-cow -L 8M "$GROUP"
exits "a volume of that name that is somebody else's is left alone" 1 \
	"$FLEECE" snapshot "$data" --cow-size 20M
mkdir "$SCRATCH/lvm"
echo 'report { output_format = "json" } log { report_command_log = 1 }' > "$SCRATCH/lvm/lvm.conf"
exits "so it is where LVM reports in another form" 1 \
	env LVM_SYSTEM_DIR="$SCRATCH/lvm" "$FLEECE" snapshot "$data" --cow-size 20M
or_bail lvremove -qq -f "$GROUP/data-snap-cow"

#
# The second one knows what changed since the first.
#
succeeds "the writer goes on" writer_goes_on
says "snapshot since the checkpoint" "^frozen for" \
	"$FLEECE" snapshot "$data" --cow-size 60M --since first --checkpoint second
changed=$("$FLEECE" map "$data-snap" --since first --json |
	jq '[.[] | select(.type == 1) | .length] | add')
at_least "something changed since the first" "$changed" 65536
at_most "but not everything" "$changed" $((64 * 1024 * 1024 - 65536))
is "the extents add up to the device" \
	"$("$FLEECE" map "$data-snap" --since first --json | jq '[.[].length] | add')" 67108864
is "a map that is asked for twice is the same" \
	"$("$FLEECE" map "$data-snap" --since first | cksum)" \
	"$("$FLEECE" map "$data-snap" --since first | cksum)"
is "what can be read is what changed" \
	"$("$FLEECE" map "$data-snap" | awk '{ print $1, $2, $3 }')" \
	"$("$FLEECE" map "$data-snap" --since first | awk '{ print $1, $2, 1 - $3 }')"
exits "an unknown checkpoint" 7 "$FLEECE" map "$data-snap" --since never
is "both checkpoints are listed" \
	"$("$FLEECE" checkpoint list "$data" --json | jq -r '[.checkpoints[].name] | join(" ")')" \
	"first second"
succeeds "a release of all" "$FLEECE" release "$data-snap" all
is "nothing can be read any more" \
	"$("$FLEECE" status "$data-snap" --json | jq '.snapshots[0].accessible_clusters')" 0
says "remove the snapshot" "^$" "$FLEECE" remove "$data-snap"

#
# Two commands at the same time: one after the other, and both of their snapshots
# are whole.
#
two_at_once()
{
	"$FLEECE" snapshot "$data" --cow-size 8M --name pvmove-one > "$SCRATCH/one" 2>&1 &
	local other=$! status=0

	"$FLEECE" snapshot "$data" --cow-size 8M --name snapshot-two > "$SCRATCH/two" 2>&1 ||
		status=$?
	wait $other || status=$?
	cat "$SCRATCH/one" "$SCRATCH/two"
	return $status
}
two_at_once > "$SCRATCH/both"
is "both commands succeed" "$? $(grep -c '^frozen for' "$SCRATCH/both")" "0 2"
is "both snapshots can be read" "$("$FLEECE" status --json |
	jq -r '[.snapshots[].state] | join(" ")')" "active active"
exec 9< /run/fleece/lock
flock 9
in_background one "$FLEECE" remove pvmove-one snapshot-two 9<&-
remover=$background
succeeds "a command that has to wait says so" \
	wait_until 20 grep -q "^fleece: waiting for another" "$SCRATCH/one"
is "and waits" "$(type_of pvmove-one)" fleece-snapshot
exec 9<&-
wait $remover
is "then it goes on" "$?" 0
fails "the snapshots are removed" "No such device" dmsetup table pvmove-one

#
# Back.
#
says "detach under the mount" "detached$" "$FLEECE" detach "$data"
is "the old table is back" "$(type_of "$data")" linear
fails "the lower device is gone" "No such device" dmsetup table "$data-lower"
succeeds "the writer goes on" writer_goes_on
stop_writer
is "the mount is the same" "$(stamp_of)" "$stamp_before"
exits "detach twice" 4 "$FLEECE" detach "$data"
unmount_volume data
succeeds "the filesystem is clean" fsck.ext4 -fn "/dev/$GROUP/data"

#
# A filesystem on several devices, the origin one that its mount does not name.
#
test_btrfs()
{
	local mount="$SCRATCH/a b" origin loop

	if ! command -v mkfs.btrfs > /dev/null || ! has_module btrfs || ! has_module loop; then
		skip "COW space on btrfs" "there is no btrfs, or no loop device"
		return
	fi
	make_volume one 32
	make_volume two 32
	mkdir "$mount"
	or_bail mkfs.btrfs -q -M -d single -m single "/dev/$GROUP/one" "/dev/$GROUP/two"
	or_bail mount "/dev/$GROUP/one" "$mount"
	defer eval "! mountpoint -q '$mount' || umount '$mount'"
	origin=$(dm_name two)
	or_bail "$FLEECE" attach "/dev/$GROUP/two"
	fails "COW space on btrfs that the origin is part of" "would lie on the origin $origin" \
		"$FLEECE" snapshot "$origin" --cow-size 4M --cow-dir "$mount"
	or_bail truncate -s 4M "$mount/file"
	loop=$(losetup --find --show "$mount/file" 2>&1) || bail "preparation: a loop device" "$loop"
	fails "a COW device there" "is the origin or lies on it" \
		"$FLEECE" snapshot "$origin" --cow "$loop"
	or_bail losetup -d "$loop"
	or_bail "$FLEECE" detach "$origin"
	or_bail wait_until 20 umount "$mount"
}

# The only disk of the group that has room is an origin itself.
test_lvm_on_origin()
{
	local disk name=$PREFIX-other snapshot

	if ! has_module loop; then
		skip "COW space on LVM that lies on an origin" "there is no loop device"
		return
	fi
	truncate -s 32M "$SCRATCH/other"
	disk=$(losetup --find --show "$SCRATCH/other" 2>&1) || bail "preparation: a loop device" "$disk"
	defer losetup -d "$disk"
	make_volume last 8
	or_bail lvcreate --quiet --yes -Wn -Zn -n filler -l 100%FREE "$GROUP"
	or_bail "$FLEECE" attach "$disk" --name "$name"
	# As fleece(8), LVM, says: or there would be two of the same physical volume.
	mkdir "$SCRATCH/lvm"
	echo "devices { global_filter = [ \"r|^$disk\$|\" ] }" > "$SCRATCH/lvm/lvm.conf"
	export LVM_SYSTEM_DIR=$SCRATCH/lvm
	or_bail vgextend --quiet --yes "$GROUP" "/dev/mapper/$name"
	or_bail "$FLEECE" attach "/dev/$GROUP/last"
	snapshot=$(dm_name last)-snap
	exits "a volume that was asked for, which only an origin has room for" 5 \
		"$FLEECE" snapshot "$(dm_name last)" --cow-size 4M --cow-kind lvm
	says "otherwise the space is made elsewhere" "puts its COW space on the origin $name" \
		"$FLEECE" snapshot "$(dm_name last)" --cow-size 4M
	like "not as a volume" \
		"$("$FLEECE" status "$snapshot" --json | jq -r '.snapshots[0].cow_kind')" "^(file|zram)$"
	fails "of which none is left" "Failed to find" lvs "$GROUP/last-snap-cow"
	or_bail "$FLEECE" remove "$snapshot"
	or_bail "$FLEECE" detach "$(dm_name last)"
	or_bail vgreduce --quiet --yes "$GROUP" "/dev/mapper/$name"
	or_bail pvremove --quiet --yes "/dev/mapper/$name"
	unset LVM_SYSTEM_DIR
	or_bail "$FLEECE" detach "$name"
}

test_btrfs
test_lvm_on_origin
remove_group
finish
