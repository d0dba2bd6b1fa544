# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
#
# What the kernel tests of the command `fleece` share: a volume group of their
# own, mounted volumes, a writer whose files prove that a frozen image is of one
# moment. Sourced after ../lib.sh, never run.

# shellcheck disable=SC2034 # used by those who source this
FLEECE=$FLEECE_TREE/userspace/fleece/fleece
GROUP=fl$$
WRITER=

requires_fleece()
{
	[ -x "$FLEECE" ] || skip_all "fleece is not built: make -C userspace"
}

# says DESCRIPTION REGEX COMMAND...: it succeeds, and a line of its output is
# like REGEX.
says()
{
	local output

	if ! output=$("${@:3}" 2>&1); then
		not_ok "$1" "failed: ${*:3}" "$output"
	elif grep -qE "$2" <<< "$output"; then
		ok "$1"
	else
		not_ok "$1" "found: $output" "expected, as a pattern: $2"
	fi
}

# exits DESCRIPTION STATUS COMMAND...: it fails with that status and a message.
exits()
{
	local output status=0

	output=$("${@:3}" 2>&1) || status=$?
	if [ "$status" = "$2" ] && [[ $output =~ ^fleece:\  ]]; then
		ok "$1: exit status $2, ${output#fleece: }"
	else
		not_ok "$1" "exit status $status, expected $2" "$output"
	fi
}

# make_group: on the whole arena, as LVM would find a slice of it twice.
make_group()
{
	or_bail vgcreate --quiet --yes "$GROUP" "$ARENA"
	defer remove_group
}

remove_group()
{
	vgs "$GROUP" > /dev/null 2>&1 || return 0
	vgremove --quiet --yes --force "$GROUP" && pvremove --quiet --yes "$ARENA"
}

dm_name()
{
	echo "$GROUP-$1"
}

# make_volume NAME MIB
make_volume()
{
	or_bail lvcreate --quiet --yes -Wn -Zn -n "$1" -L "$2M" "$GROUP"
	defer give_back "$1"
}

# Undo what a test that broke off has not undone.
give_back()
{
	dmsetup info "$(dm_name "$1")" > /dev/null 2>&1 || return 0
	dmsetup resume "$(dm_name "$1")"
	dmsetup info "$(dm_name "$1")-snap" > /dev/null 2>&1 && "$FLEECE" remove "$(dm_name "$1")-snap"
	if dmsetup info "$(dm_name "$1")-lower" > /dev/null 2>&1; then
		"$FLEECE" detach "$(dm_name "$1")"
	fi
}

# mount_volume NAME: with a new ext4, on $SCRATCH/NAME
mount_volume()
{
	# Blocks that also suit COW space in zram.
	or_bail mkfs.ext4 -q -b 4096 "/dev/$GROUP/$1"
	mkdir "$SCRATCH/$1"
	or_bail mount "/dev/$GROUP/$1" "$SCRATCH/$1"
	defer unmount_volume "$1"
}

unmount_volume()
{
	mountpoint -q "$SCRATCH/$1" || return 0
	stop_writer
	wait_until 20 umount "$SCRATCH/$1"
}

# The writer numbers its records. Each one goes to every volume, in their order,
# and is durable there before the next volume gets it. So in images of one
# moment, the last record of a volume is that of the volume before, or one less.
write_records()
{
	local record=0 volume

	while [ ! -e "$SCRATCH/stop" ]; do
		record=$((record + 1))
		for volume; do
			printf '%08d\n' "$record" |
				dd of="$SCRATCH/$volume/log" bs=9 oflag=append conv=notrunc,fsync status=none || exit 1
		done
		echo "$record" > "$SCRATCH/written.new"
		mv "$SCRATCH/written.new" "$SCRATCH/written"
	done
}

# start_writer VOLUME...
start_writer()
{
	rm -f "$SCRATCH/stop"
	echo 0 > "$SCRATCH/written"
	write_records "$@" 2> "$SCRATCH/writer" &
	WRITER=$!
	defer stop_writer
}

stop_writer()
{
	[ -n "$WRITER" ] || return 0
	touch "$SCRATCH/stop"
	if wait "$WRITER"; then
		ok "the writer met no error"
	else
		not_ok "the writer met no error" "$(cat "$SCRATCH/writer")"
	fi
	WRITER=
}

written_more_than()
{
	[ "$(cat "$SCRATCH/written")" -gt "$1" ]
}

writer_goes_on()
{
	wait_until "$WAIT_SECONDS" written_more_than "$(($(cat "$SCRATCH/written") + 3))"
}

# mount_snapshot NAME: on $SCRATCH/NAME-snap
mount_snapshot()
{
	mkdir -p "$SCRATCH/$1-snap"
	mount -o ro "$MAPPER/$(dm_name "$1")-snap" "$SCRATCH/$1-snap"
}

# check_frozen_image NAME: the snapshot has a clean filesystem that does not move.
check_frozen_image()
{
	local snap

	snap=$MAPPER/$(dm_name "$1")-snap
	succeeds "the filesystem in the snapshot of $1 is clean" fsck.ext4 -fn "$snap"
	succeeds "it can be mounted without recovery" mount_snapshot "$1" || return
	records_of "$1" > "$SCRATCH/records-$1"
	writer_goes_on
	is "it does not move" "$(records_of "$1")" "$(cat "$SCRATCH/records-$1")"
	or_bail wait_until 20 umount "$SCRATCH/$1-snap"
}

# records_of NAME: number of records in the mounted snapshot, and whether they
# are those that were written.
records_of()
{
	awk '$1 + 0 != NR || length($0) != 8 { bad = 1 } END { print NR, bad ? "wrong" : "right" }' \
		"$SCRATCH/$1-snap/log"
}
