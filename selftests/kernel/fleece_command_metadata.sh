#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will attach origins with metadata devices by `fleece attach`, one by one and as
# fleecetab lists them: checkpoints and their maps survive a detach, a metadata device that
# is not the right one is refused and stays as it is, and when the device was in use without
# the target, or may have been, no checkpoint is valid.
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"
# shellcheck source-path=SCRIPTDIR
. "$here/../cli/lib.sh"

load_fleece
requires_program lvcreate mkfs.ext4 jq
requires_fleece
requires_module loop
make_arena 256
make_group
for volume in data other; do
	make_volume $volume 32
done
for volume in meta meta-other small used; do
	make_volume $volume 8
done
data=$(dm_name data)
meta=/dev/$GROUP/meta
tab=$SCRATCH/fleecetab

empty()
{
	or_bail dd if=/dev/zero of="$1" bs=1M count=8 oflag=direct status=none
}

# write_at DEVICE BLOCK: 4 KiB of a granule of 64 KiB
write_at()
{
	or_bail dd if=/dev/urandom of="$1" bs=4k seek=$(($2 * 16)) count=1 oflag=direct \
		conv=notrunc status=none
}

metadata_state()
{
	"$FLEECE" status "$1" --json | jq -r '.origins[0].metadata'
}

checkpoints()
{
	"$FLEECE" checkpoint list "$1" --json | jq -r '[.checkpoints[].name] | join(" ")'
}

changed()
{
	"$FLEECE" map "$1" --since "$2" | awk '$4 ~ /dirty/ { print $1 "+" $2 }' | paste -sd,
}

test_refusals()
{
	local before

	or_bail mkfs.ext4 -q "/dev/$GROUP/used"
	before=$(sha256sum < "/dev/$GROUP/used")
	exits "attach to a filesystem" 1 "$FLEECE" attach "$data" --metadata "/dev/$GROUP/used"
	is "which stays as it is" "$(sha256sum < "/dev/$GROUP/used")" "$before"
	exits "attach to a directory" 4 "$FLEECE" attach "$data" --metadata /tmp
	exits "attach to nothing" 4 "$FLEECE" attach "$data" --metadata /dev/none
	exits "attach to the device itself" 1 "$FLEECE" attach "$data" --metadata "/dev/mapper/$data"
	mkdir "$SCRATCH/used"
	or_bail mount -o ro "/dev/$GROUP/used" "$SCRATCH/used"
	exits "attach to a mounted device" 5 "$FLEECE" attach "$data" --metadata "/dev/$GROUP/used"
	fails "it says who may use it, and what to do" \
		"used.*is in use: mounted, or by another origin.*choose another metadata device" \
		"$FLEECE" attach "$data" --metadata "/dev/$GROUP/used"
	exits "metadata on a mounted device, by force" 5 \
		"$FLEECE" metadata create "/dev/$GROUP/used" --origin-size 32M --force
	or_bail umount "$SCRATCH/used"
	is "it is as it was" "$(sha256sum < "/dev/$GROUP/used")" "$before"
	or_bail dm_create tiny "0 64 linear $meta 0"
	exits "attach to one that is too small" 1 "$FLEECE" attach "$data" --metadata "$(path_of tiny)"
	or_bail dm_remove tiny
	is "nothing is attached" "$(dmsetup table "$data" | cut -d' ' -f3)" linear
}

test_restart()
{
	local name=$PREFIX-plain map
	local path=/dev/mapper/$name

	says "attach makes metadata on an empty device" "was empty, new metadata" \
		"$FLEECE" attach "$spare" --name "$name" --metadata "/dev/$GROUP/small"
	defer dm_remove_deferred plain
	is "it is in order" "$(metadata_state "$name")" clean
	or_bail "$FLEECE" checkpoint create "$name" one
	write_at "$path" 3
	write_at "$path" 100
	map=$(changed "$name" one)
	is "the map has the writes" "$map" "196608+65536,6553600+65536"
	exits "another origin on the same metadata device" 5 \
		"$FLEECE" attach "$data" --metadata "/dev/$GROUP/small"
	fails "it says that it is in use" "small.*is in use" \
		"$FLEECE" attach "$data" --metadata "/dev/$GROUP/small"
	says "detach" "detached" "$FLEECE" detach "$name"
	exits "attach with another granularity" 1 "$FLEECE" attach "$spare" --name "$name" \
		--metadata "/dev/$GROUP/small" --granularity 16K
	succeeds "attach again" "$FLEECE" attach "$spare" --name "$name" \
		--metadata "/dev/$GROUP/small"
	is "the checkpoint is there" "$(checkpoints "$name")" one
	is "with its map" "$(changed "$name" one)" "$map"
	says "a snapshot since then" "^frozen for" \
		"$FLEECE" snapshot "$name" --cow "/dev/$GROUP/meta-other" --since one
	succeeds "and its end" "$FLEECE" remove "$name-snap"
	or_bail "$FLEECE" detach "$name"
	truncate -s 12M "$SCRATCH/spare"
	or_bail losetup --set-capacity "$spare"
	says "attach of a device that has grown says what it costs" "grown.*1 checkpoint was dropped" \
		"$FLEECE" attach "$spare" --name "$name" --metadata "/dev/$GROUP/small"
	is "all of it is there" "$(blockdev --getsize64 "$path")" $((12 << 20))
	is "and in order" "$(metadata_state "$name") $(checkpoints "$name")" "clean "
	or_bail "$FLEECE" detach "$name"
}

# Nobody knows whether a volume is used between a live detach and the next attach.
test_live()
{
	local before

	or_bail "$FLEECE" attach "$data" --metadata "$meta"
	or_bail "$FLEECE" checkpoint create "$data" one
	or_bail "$FLEECE" detach "$data"
	before=$(sha256sum < "$meta")
	exits "attach of another device" 7 "$FLEECE" attach "$(dm_name other)" --metadata "$meta"
	is "whose metadata stays as it is" "$(sha256sum < "$meta")" "$before"
	or_bail "$FLEECE" attach "$data" --metadata "$meta"
	exits "after a live detach the checkpoint is invalid" 7 "$FLEECE" map "$data" --since one
	or_bail "$FLEECE" checkpoint delete "$data" one
	or_bail "$FLEECE" detach "$data"
}

# Used while it is not attached, or attached while it is used.
test_unseen()
{
	or_bail mkfs.ext4 -q -b 4096 "/dev/mapper/$data"
	mkdir "$SCRATCH/data"
	or_bail "$FLEECE" attach "$data" --metadata "$meta"
	or_bail mount "/dev/mapper/$data" "$SCRATCH/data"
	defer unmount_volume data
	or_bail "$FLEECE" checkpoint create "$data" two
	says "detach of a mounted one says what it costs" "1 checkpoint was deleted" \
		"$FLEECE" detach "$data"
	echo unseen > "$SCRATCH/data/file"
	or_bail umount "$SCRATCH/data"
	or_bail "$FLEECE" attach "$data" --metadata "$meta"
	is "no checkpoint outlives a detach while mounted" "$(checkpoints "$data")" ""
	or_bail "$FLEECE" checkpoint create "$data" three
	or_bail "$FLEECE" detach "$data"
	or_bail mount "/dev/mapper/$data" "$SCRATCH/data"
	echo unseen > "$SCRATCH/data/file"
	says "attach of a mounted one says what it costs" "1 checkpoint was dropped" \
		"$FLEECE" attach "$data" --metadata "$meta"
	is "no checkpoint is left" "$(checkpoints "$data")" ""
	exits "an incremental snapshot" 7 "$FLEECE" snapshot "$data" --cow-size 16M --since three
	or_bail umount "$SCRATCH/data"
	or_bail "$FLEECE" detach "$data"
}

# A device that cannot be attached is used all the same.
test_missed()
{
	local name=$PREFIX-plain

	echo "$name $spare /dev/$GROUP/small" > "$tab"
	or_bail "$FLEECE" attach --all="$tab"
	or_bail "$FLEECE" checkpoint create "$name" one
	or_bail "$FLEECE" detach "$name"
	or_bail mkfs.ext4 -q -F "$spare"
	mkdir -p "$SCRATCH/missed"
	or_bail mount "$spare" "$SCRATCH/missed"
	defer eval "! mountpoint -q $SCRATCH/missed || umount $SCRATCH/missed"
	exits "attach of all, of a mounted device" 1 "$FLEECE" attach --all="$tab"
	is "no checkpoint is left to be believed" \
		"$("$FLEECE" metadata dump "/dev/$GROUP/small" --json | jq '.checkpoints | length')" 0
	or_bail umount "$SCRATCH/missed"
	succeeds "later it can be attached" "$FLEECE" attach --all="$tab"
	is "without checkpoints" "$(checkpoints "$name")" ""
	or_bail "$FLEECE" detach --all="$tab"
}

# dump_checkpoints: those that the next attach would believe
dump_checkpoints()
{
	"$FLEECE" metadata dump "/dev/$GROUP/small" --json | jq -r '[.checkpoints[].name] | join(" ")'
}

# make_checkpoint DEVICE CHECKPOINT: on the small metadata device; nothing is attached then.
make_checkpoint()
{
	echo "$PREFIX-plain $1 /dev/$GROUP/small" > "$tab"
	or_bail "$FLEECE" attach --all="$tab"
	or_bail "$FLEECE" checkpoint create "$PREFIX-plain" "$2"
	or_bail "$FLEECE" detach "$PREFIX-plain"
}

# A device that is not there may appear, and be used, when nobody attaches it any more.
test_absent()
{
	or_bail ln -s "$spare" "$SCRATCH/late"
	make_checkpoint "$SCRATCH/late" two
	or_bail rm "$SCRATCH/late"
	exits "attach of all, one of which is not there" 1 "$FLEECE" attach --all="$tab" --wait 1
	is "its checkpoint waits for it" "$(dump_checkpoints)" two
	exits "attach of all, for the last time" 1 "$FLEECE" attach --all="$tab" --wait 1 --final
	is "its checkpoint waits no longer" "$(dump_checkpoints)" ""
}

# A virtual machine on a raw device does not ask for it alone.
test_writers()
{
	local name=$PREFIX-plain writer

	sleep 600 3<> "$spare" &
	writer=$!
	defer eval "! kill $writer 2> /dev/null"
	wait_until 20 test -e "/proc/$writer/fd/3"
	exits "attach of a device that a program writes to" 5 "$FLEECE" attach "$spare" --name "$name"
	says "says which one" "open for writing by sleep .pid $writer" \
		sh -c "$FLEECE attach $spare --name $name 2>&1 || :"
	kill "$writer"
	wait "$writer" 2> /dev/null
	or_bail "$FLEECE" attach "$spare" --name "$name"
	sleep 600 3< "$spare" 4<> "/dev/mapper/$name" &
	writer=$!
	defer eval "! kill $writer 2> /dev/null"
	wait_until 20 test -e "/proc/$writer/fd/4"
	succeeds "who writes to the origin, and reads below it, is welcome" "$FLEECE" check
	kill "$writer"
	wait "$writer" 2> /dev/null
	sleep 600 3<> "$spare" &
	writer=$!
	defer eval "! kill $writer 2> /dev/null"
	wait_until 20 test -e "/proc/$writer/fd/3"
	says "check finds who writes past the target" "sleep .pid $writer.* writes to its lower device" \
		sh -c "$FLEECE check || :"
	kill "$writer"
	wait "$writer" 2> /dev/null
	mkdir -p "$SCRATCH/fake"
	printf '#!/bin/sh\necho 0123456789ABCDEF\n' > "$SCRATCH/fake/modinfo"
	chmod +x "$SCRATCH/fake/modinfo"
	says "check finds that another module is installed" "another one is installed than is loaded" \
		sh -c "PATH=$SCRATCH/fake:\$PATH $FLEECE check || :"
	or_bail "$FLEECE" detach "$name"
}

# move_clock SECONDS: then the last boot seems to have been so much later.
move_clock()
{
	date -s "@$(($(date +%s) + $1))" > /dev/null
}

# Whoever attaches by hand after a boot may be too late, and cannot be told so for sure.
test_rebooted()
{
	make_checkpoint "$spare" four
	says "attach by hand, in the same boot" "attached, use" \
		"$FLEECE" attach "$spare" --name "$PREFIX-plain" --metadata "/dev/$GROUP/small"
	or_bail "$FLEECE" detach "$PREFIX-plain"
	or_bail move_clock 86400
	says "attach by hand, after a boot, says what it may cost" "are from before the last boot" \
		sh -c "$FLEECE attach $spare --name $PREFIX-plain --metadata /dev/$GROUP/small 2>&1"
	or_bail move_clock -86400
	is "the checkpoint is kept" "$(checkpoints "$PREFIX-plain")" four
	or_bail "$FLEECE" checkpoint delete "$PREFIX-plain" four
	or_bail "$FLEECE" detach "$PREFIX-plain"
}

# Without the module a plain device is there under its name all the same, but not seen.
test_no_module()
{
	local name=$PREFIX-plain mount=$SCRATCH/stand-in

	make_checkpoint "$spare" three
	or_bail mkfs.ext4 -q -F "$spare"
	or_bail rmmod dm_fleece
	exits "without the module: attach of all" 8 "$FLEECE" attach --all="$tab"
	fails "without the module: a service that comes later may have it" "No such device" \
		dmsetup table "$name"
	is "without the module: no checkpoint is believed any more" "$(dump_checkpoints)" ""
	says "without the module: for the last time" "WITHOUT the target" \
		sh -c "$FLEECE attach --all=$tab --final 2>&1 || :"
	is "without the module: what is to be mounted is there" \
		"$(dmsetup table "$name" | cut -d' ' -f3)" linear
	mkdir -p "$mount"
	or_bail mount "/dev/mapper/$name" "$mount"
	defer eval "! mountpoint -q $mount || umount $mount"
	says "without the module: once more it is left alone" "modprobe dm-fleece" \
		sh -c "$FLEECE attach --all=$tab --final 2>&1 || :"
	or_bail insmod "$(find_module)"
	says "with the module again: says what to do" "fleece attach /dev/mapper/$name" \
		sh -c "$FLEECE attach --all=$tab 2>&1 || :"
	succeeds "with the module again: which is done live" "$FLEECE" attach "/dev/mapper/$name"
	or_bail "$FLEECE" detach "$name"
	or_bail umount "$mount"
	or_bail dm_remove plain
	echo "$name $spare /dev/$GROUP/small needs-metadata" > "$tab"
	or_bail rmmod dm_fleece
	exits "without the module: one that needs it" 8 "$FLEECE" attach --all="$tab" --final
	fails "without the module: is not there" "No such device" dmsetup table "$name"
	or_bail insmod "$(find_module)"
}

# ends_in_order ATTACHER WHAT COMMAND...: the attach that waits for it is told to end, when the
# command says that it waits.
ends_in_order()
{
	local attacher=$1 status=0

	defer kill_waiter "$attacher"
	wait_until "$WAIT_SECONDS" "${@:3}" || bail "preparation: it waits for $2"
	kill -s TERM "$attacher"
	wait "$attacher" || status=$?
	is "it ends by SIGTERM, waiting for $2" "$status $(grep -c "$PREFIX-plain: is not attached" \
		"$SCRATCH/said")" "1 1"
	fails "what had no turn is not attached" "No such device" dmsetup table "$PREFIX-plain"
	is "its checkpoint is not believed" "$(dump_checkpoints)" ""
}

# The service that attaches them has no more time.
test_time_up()
{
	local holder

	or_bail ln -s "$spare" "$SCRATCH/late"
	make_checkpoint "$SCRATCH/late" two
	or_bail rm "$SCRATCH/late"
	"$FLEECE" attach --all="$tab" --wait 600 --final > "$SCRATCH/said" 2>&1 &
	ends_in_order $! "a device" grep -q nanosleep "/proc/$!/stack"
	make_checkpoint "$spare" two
	sh -c "exec 9> /run/fleece/lock; flock 9; exec sleep 1000" &
	holder=$!
	defer kill_waiter $holder
	wait_until 30 eval "! flock -n /run/fleece/lock true" || bail "preparation: the lock is held"
	"$FLEECE" attach --all="$tab" --wait 600 --final > "$SCRATCH/said" 2>&1 &
	ends_in_order $! "another command" grep -q "waiting for another command" "$SCRATCH/said"
	kill_waiter $holder
}

# The initial RAM disk has done without a metadata device that is there now.
test_done_without()
{
	make_checkpoint "$spare" three
	or_bail "$FLEECE" attach "$spare" --name "$PREFIX-plain"
	exits "attach of all, one of which is attached without its metadata" 1 \
		"$FLEECE" attach --all="$tab"
	is "its checkpoint is not believed the next time" "$(dump_checkpoints)" ""
	or_bail "$FLEECE" detach "$PREFIX-plain"
}

# waits_for WHAT DEVICE: attach waits while somebody holds it.
waits_for()
{
	local attacher status=0

	or_bail dm_create holder "0 64 linear $2 0"
	"$FLEECE" attach --all="$tab" --wait 600 > "$SCRATCH/said" 2>&1 &
	attacher=$!
	defer kill_waiter $attacher
	wait_until "$WAIT_SECONDS" grep -q nanosleep "/proc/$attacher/stack" ||
		bail "preparation: it waits"
	fails "attach of all waits for $1 that is held" "No such device" \
		dmsetup table "$PREFIX-plain"
	or_bail dm_remove holder
	wait $attacher || status=$?
	is "then it takes it: $1" \
		"$status $(metadata_state "$PREFIX-plain") $(checkpoints "$PREFIX-plain")" "0 clean four"
	or_bail "$FLEECE" detach "$PREFIX-plain"
}

# Somebody else has a device, for a moment and for longer.
test_held()
{
	make_checkpoint "$spare" four
	waits_for "a metadata device" "/dev/$GROUP/small"
	waits_for "an origin" "$spare"
	or_bail dm_create holder "0 64 linear /dev/$GROUP/small 0"
	fails "one that is held for longer" "nothing can be noted on it.*WITHOUT its metadata" \
		"$FLEECE" attach --all="$tab" --wait 1
	is "is done without" "$(metadata_state "$PREFIX-plain")" none
	or_bail "$FLEECE" detach "$PREFIX-plain"
	or_bail dm_remove holder
	or_bail "$FLEECE" metadata create "/dev/$GROUP/small" --origin "$spare" --force
}

# The uuid of an origin on a plain device is another one each time.
test_identity()
{
	local name=$PREFIX-plain disk

	if ! modprobe scsi_debug dev_size_mb=8 delay=0; then
		skip "identity of a plain device" "there is no scsi_debug"
		return
	fi
	defer modprobe -r scsi_debug
	or_bail wait_until 20 find_scsi_debug
	disk=$(find_scsi_debug)
	or_bail "$FLEECE" attach "$disk" --name "$name"
	defer dm_remove_deferred plain
	succeeds "metadata is made for what is attached" \
		"$FLEECE" metadata create "/dev/$GROUP/small" --origin "/dev/mapper/$name" --force
	or_bail "$FLEECE" detach "$name"
	succeeds "it is that of the device below" \
		"$FLEECE" attach "$disk" --name "$name" --metadata "/dev/$GROUP/small"
	succeeds "and of the origin" \
		"$FLEECE" metadata check "/dev/$GROUP/small" --origin "/dev/mapper/$name"
	or_bail "$FLEECE" detach "$name"
	fails "of no other one" "belongs to" \
		"$FLEECE" metadata check "/dev/$GROUP/small" --origin "/dev/$GROUP/data"
	empty "/dev/$GROUP/small"
}

test_tab()
{
	cat > "$tab" <<-END
		# the first one
		$data	/dev/$GROUP/data	$meta
		$PREFIX-plain $spare - granularity=16K
		$(dm_name other) /dev/$GROUP/other - noauto
	END
	succeeds "attach of all" "$FLEECE" attach --all="$tab"
	is "the first one has its metadata" "$(metadata_state "$data")" clean
	is "the second one its granularity" \
		"$(dmsetup table "$PREFIX-plain" | cut -d' ' -f6)" 32
	is "the third one is not attached" "$(dmsetup table "$(dm_name other)" | cut -d' ' -f3)" linear
	says "attach of all again" "is attached already" "$FLEECE" attach --all="$tab"
	grep "^$PREFIX" "$tab" | sed "s/granularity=16K/granularity=32K/" > "$tab.other"
	exits "attach of all with another granularity" 1 "$FLEECE" attach --all="$tab.other"
	grep "^$data" "$tab" | sed "s:$meta:/dev/$GROUP/meta-other:" > "$tab.other"
	exits "with another metadata device" 1 "$FLEECE" attach --all="$tab.other"
	grep "^$data" "$tab" | sed "s:/dev/$GROUP/data:/dev/$GROUP/other:" > "$tab.other"
	exits "with another device" 1 "$FLEECE" attach --all="$tab.other"
	is "changes nothing" "$(metadata_state "$data") $(dmsetup table "$PREFIX-plain" | cut -d' ' -f6)" \
		"clean 32"
	exits "attach of one that is attached" 5 "$FLEECE" attach "$spare" --name "$PREFIX-plain"
	succeeds "detach of all" "$FLEECE" detach --all="$tab"
	is "is done" "$(dmsetup table "$data" | cut -d' ' -f3)" linear
	fails "a plain device that is to be mounted by its name is left alone" \
		"root=/dev/mapper/$PREFIX-plain" "$FLEECE" attach --all="$tab" --root "$spare"
	fails "so that it can be" "No such device" dmsetup table "$PREFIX-plain"
	is "the others are not" "$(metadata_state "$data")" clean
	or_bail "$FLEECE" detach --all="$tab"
	succeeds "one that keeps its name need not be" \
		"$FLEECE" attach --all="$tab" --root "/dev/$GROUP/data"
	or_bail "$FLEECE" detach --all="$tab"
	echo "nonsense" >> "$tab"
	exits "one wrong line" 1 "$FLEECE" attach --all="$tab"
	is "keeps no other from being attached" "$(metadata_state "$data")" clean
	succeeds "nor does it keep others" dmsetup info "$PREFIX-plain"
	exits "or from being detached" 1 "$FLEECE" detach --all="$tab"
	is "all of them" "$(dmsetup table "$data" | cut -d' ' -f3)" linear
	exits "no such file" 1 "$FLEECE" attach --all="$SCRATCH/none"
}

is_attached()
{
	[ "$(dmsetup table "$1" | cut -d' ' -f3)" = fleece ]
}

# One device appears late: the others do not wait for it, nor do other commands.
test_wait()
{
	local waiter status=0

	cat > "$tab" <<-END
		$data $SCRATCH/later $meta
		$PREFIX-plain $spare -
	END
	succeeds "attach of what is there, early" "$FLEECE" attach --all="$tab" --early
	is "leaves out what is not" "$(is_attached "$PREFIX-plain" && ! is_attached "$data"; echo $?)" 0
	or_bail "$FLEECE" detach --all="$tab"
	"$FLEECE" attach --all="$tab" --wait 600 > "$SCRATCH/said" 2>&1 &
	waiter=$!
	defer kill_waiter $waiter
	succeeds "attach does not wait for all" wait_until 30 is_attached "$PREFIX-plain"
	succeeds "and keeps no other command waiting" wait_until 30 flock -n /run/fleece/lock true
	is "while it waits for one" "$(is_attached "$data"; echo $?)" 1
	ln -s "$(readlink -f "/dev/$GROUP/data")" "$SCRATCH/later"
	wait $waiter || status=$?
	is "that has appeared" "$status $(metadata_state "$data")" "0 clean"
	or_bail "$FLEECE" detach --all="$tab"
	echo "$data $SCRATCH/never $meta" > "$tab"
	exits "it does not wait for ever" 1 "$FLEECE" attach --all="$tab" --wait 1
}

kill_waiter()
{
	kill "$1" 2> /dev/null || :
}

# The machine needs the device more than its checkpoints, unless the file says otherwise.
test_without_metadata()
{
	local name=$PREFIX-plain kind

	or_bail "$FLEECE" attach "$spare" --name "$name" --metadata "/dev/$GROUP/small"
	or_bail "$FLEECE" checkpoint create "$name" one
	or_bail "$FLEECE" detach "$name"
	for kind in "$SCRATCH/never" "/dev/$GROUP/used" "$meta"; do
		printf '%s\n' "$name $spare $kind granularity=32K" > "$tab"
		exits "attach of all without metadata" 1 "$FLEECE" attach --all="$tab" --wait 1
		is "the device is there, without" "$(metadata_state "$name")" none
		is "with what else was asked for" "$(dmsetup table "$name" | cut -d' ' -f6)" 64
		exits "once more, it is not as it should be" 1 "$FLEECE" attach --all="$tab"
		or_bail "$FLEECE" detach "$name"
	done
	is "checkpoints elsewhere are not touched" "$("$FLEECE" metadata dump "/dev/$GROUP/small" --json |
		jq -r '.checkpoints[].name')" one
	echo "$name $spare /dev/$GROUP/small granularity=32K" > "$tab"
	says "it says so" "WITHOUT its metadata" sh -c "$FLEECE attach --all=$tab 2>&1 || :"
	is "its own are dropped, as changes are missed now" \
		"$("$FLEECE" metadata dump "/dev/$GROUP/small" --json | jq '.checkpoints | length')" 0
	or_bail "$FLEECE" detach "$name"
	echo "$name $spare /dev/$GROUP/used needs-metadata" > "$tab"
	exits "one that needs it" 1 "$FLEECE" attach --all="$tab"
	fails "is not attached" "No such device" dmsetup table "$name"
	echo "$data /dev/$GROUP/data /dev/$GROUP/used" > "$tab"
	exits "a volume, too" 1 "$FLEECE" attach --all="$tab"
	is "is attached without" "$(metadata_state "$data")" none
	or_bail "$FLEECE" detach "$data"
}

# refused_and_dropped WHAT DEVICE: the checkpoints of what is refused as DEVICE.
refused_and_dropped()
{
	local name=$PREFIX-plain

	echo "$name $spare $2" > "$tab"
	exits "$1: refused" 1 "$FLEECE" attach --all="$tab"
	is "$1: it is there without its metadata" "$(metadata_state "$name")" none
	or_bail "$FLEECE" detach "$name"
	is "$1: which has no checkpoint any more" "$("$FLEECE" metadata dump "/dev/$GROUP/small" --json |
		jq '.checkpoints | length')" 0
}

# By mistake: at the next boot they may be as large as ever, with what was written meanwhile.
test_too_small()
{
	empty "/dev/$GROUP/small"
	make_checkpoint "$spare" one
	truncate -s 4M "$SCRATCH/spare"
	or_bail losetup --set-capacity "$spare"
	refused_and_dropped "an origin that was made smaller" "/dev/$GROUP/small"
	truncate -s 8M "$SCRATCH/spare"
	or_bail losetup --set-capacity "$spare"
	make_checkpoint "$spare" one
	or_bail dm_create short "0 4104 linear /dev/$GROUP/small 0"
	defer dm_remove_deferred short
	refused_and_dropped "metadata that was cut off" "$MAPPER/$PREFIX-short"
	or_bail dm_remove short
}

# There is none without its checkpoint.
test_no_place()
{
	local name=$PREFIX-plain cow=/dev/$GROUP/meta-other

	empty "/dev/$GROUP/small"
	empty "$cow"
	or_bail "$FLEECE" metadata create "/dev/$GROUP/small" --origin "$spare" --checkpoints 1
	or_bail "$FLEECE" attach "$spare" --name "$name" --metadata "/dev/$GROUP/small"
	or_bail "$FLEECE" checkpoint create "$name" one
	fails "a snapshot whose checkpoint has no place" "no more checkpoints" \
		"$FLEECE" snapshot "$name" --cow "$cow" --checkpoint two
	fails "is not there" "No such device" dmsetup table "$name-snap"
	or_bail "$FLEECE" checkpoint delete "$name" one
	succeeds "when another is deleted, it is taken" \
		"$FLEECE" snapshot "$name" --cow "$cow" --checkpoint two
	or_bail "$FLEECE" remove "$name-snap"
	or_bail "$FLEECE" detach "$name"
	empty "/dev/$GROUP/small"
}

is_open()
{
	[ "$(dmsetup info -c --noheadings -o open "$1")" -gt 0 ]
}

# Between the look at the device and the target nobody can begin to write to it. Reading the
# metadata takes as long as is needed to try.
test_claim()
{
	local attacher status=0

	or_bail "$FLEECE" attach "$data" --metadata "$meta"
	or_bail "$FLEECE" checkpoint create "$data" four
	or_bail "$FLEECE" detach "$data"
	or_bail mkfs.ext4 -q -F "/dev/mapper/$data"
	or_bail dmsetup suspend "$(dm_name meta)"
	"$FLEECE" attach "$data" --metadata "$meta" > "$SCRATCH/said" 2>&1 &
	attacher=$!
	succeeds "attach has claimed the device" wait_until 30 is_open "$data"
	succeeds "and looks at its metadata" wait_until 30 is_open "$(dm_name meta)"
	fails "nobody can mount it meanwhile" "busy|mounted|open blockdev" mount "/dev/mapper/$data" "$SCRATCH/data"
	or_bail dmsetup resume "$(dm_name meta)"
	wait $attacher || status=$?
	is "then it is attached" "$status $(checkpoints "$data")" "0 four"
	succeeds "and can be mounted" mount "/dev/mapper/$data" "$SCRATCH/data"
	or_bail umount "$SCRATCH/data"
	or_bail "$FLEECE" checkpoint delete "$data" four
	or_bail "$FLEECE" detach "$data"
}

# A kill in the middle, of an attach and of a detach.
test_leftovers()
{
	local name=$PREFIX-plain

	or_bail dmsetup create "$name" --uuid FLEECE-origin-left --notable
	fails "check finds an origin that was never started" "dmsetup remove $name" "$FLEECE" check
	says "an origin that was never started is no obstacle" "left over" \
		"$FLEECE" attach "$spare" --name "$name"
	or_bail "$FLEECE" detach "$name"
	or_bail dmsetup create "$data-lower" --uuid FLEECE-lower-left \
		--table "$(dmsetup table "$data")"
	fails "check finds a lower device that is left over" "fleece detach $data" "$FLEECE" check
	says "it is no obstacle" "left over" "$FLEECE" attach "$data"
	is "the origin has a new one" "$(dmsetup info -c --noheadings -o open "$data-lower")" 1
	or_bail "$FLEECE" detach "$data"
	or_bail dmsetup create "$data-lower" --uuid FLEECE-lower-left \
		--table "$(dmsetup table "$data")"
	says "detach removes it" "$data detached" "$FLEECE" detach "$data"
	fails "then it is gone" "No such device" dmsetup table "$data-lower"
	exits "and there is nothing to detach" 4 "$FLEECE" detach "$data"
}

# The device below an origin has grown.
test_grow()
{
	local name=$PREFIX-plain

	make_checkpoint "$spare" five
	or_bail "$FLEECE" attach --all="$tab"
	or_bail mkfs.ext4 -q "$MAPPER/$name" 6M
	mkdir -p "$SCRATCH/grown"
	or_bail mount "$MAPPER/$name" "$SCRATCH/grown"
	defer eval "! mountpoint -q $SCRATCH/grown || umount $SCRATCH/grown"
	exits "an origin whose device has not grown" 1 "$FLEECE" grow "$name"
	or_bail "$FLEECE" checkpoint create "$name" six
	or_bail truncate -s 4G "$SCRATCH/spare"
	or_bail losetup -c "$spare"
	fails "more than its metadata has room for" "has no room" "$FLEECE" grow "$name"
	is "it is as it was" "$(blockdev --getsize64 "$MAPPER/$name") $(checkpoints "$name")" \
		"8388608 five six"
	or_bail truncate -s 12M "$SCRATCH/spare"
	or_bail losetup -c "$spare"
	or_bail dmsetup suspend "$name"
	exits "an origin that somebody else has suspended" 5 "$FLEECE" grow "$name"
	or_bail dmsetup resume "$name"
	exits "a size for an origin" 4 "$FLEECE" grow "$name" 12M
	says "grow takes up what it has gained" "^$name +12582912 bytes$" "$FLEECE" grow "$name"
	is "it has it" "$(blockdev --getsize64 "$MAPPER/$name")" 12582912
	is "with its checkpoints" "$(metadata_state "$name") $(checkpoints "$name")" "dirty five six"
	is "what was gained has changed since then" \
		"$("$FLEECE" map "$name" --since six | tail -n 1 | awk '{ print $1 + $2, $NF }')" \
		"12582912 dirty"
	succeeds "its filesystem grows with it" resize2fs "$MAPPER/$name"
	or_bail umount "$SCRATCH/grown"
	succeeds "and is whole" e2fsck -fn "$MAPPER/$name"
	or_bail "$FLEECE" detach "$name"
	succeeds "the next attach has all of it" "$FLEECE" attach --all="$tab"
	is "and its checkpoints" "$(blockdev --getsize64 "$MAPPER/$name") $(checkpoints "$name")" \
		"12582912 five six"
	or_bail "$FLEECE" detach "$name"
	or_bail "$FLEECE" attach "$data"
	fails "a volume that was attached live" "detach it, make it larger" "$FLEECE" grow "$data"
	or_bail "$FLEECE" detach "$data"
}

for volume in meta meta-other small; do
	empty "/dev/$GROUP/$volume"
done
truncate -s 8M "$SCRATCH/spare"
spare=$(losetup --find --show "$SCRATCH/spare") || bail "preparation: a loop device"
defer losetup -d "$spare"
test_refusals
test_restart
test_live
test_unseen
test_missed
test_absent
test_writers
test_rebooted
test_no_module
test_time_up
test_done_without
test_held
test_identity
test_tab
test_wait
test_without_metadata
test_too_small
test_no_place
test_claim
test_leftovers
test_grow
finish
