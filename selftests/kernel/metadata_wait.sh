#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will let writes that need an intent wait for no more than the metadata
# device: neither for the writes that a snapshot waits for, nor for a deletion that waits
# for the same, or writes a large map; nor does other I/O wait when the origin is to be
# suspended meanwhile. And there is no limit of time that cannot be meant. A write under way
# at the moment of a checkpoint counts as after it. A snapshot that breaks before its
# checkpoint is durable has an event nevertheless.
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=32768
ATTEMPTS=3
load_fleece
no_probing
make_arena 96
make_disk disk $SECTORS
make_disk meta 16384
make_disk cow "$(cow_sectors 128 256)"

# grants: how many the metadata has had.
grants()
{
	message origin metadata_status | cut -d' ' -f5
}

# holds_back PID: it waits for writes of the origin, and others wait for it.
holds_back()
{
	head -n 1 "/proc/$1/stack" | grep -q quiesce
}

has_granted_more()
{
	[ "$(grants)" -gt "$1" ]
}

# write_later GRANULE: in the background, it hangs.
write_later()
{
	pattern origin write 1 $(($1 * 65536)) 64k > "$SCRATCH/write.$1" 2>&1 &
}

# waits_briefly: a write gets its intent while a snapshot still waits for another write,
# and a deletion for the snapshot.
waits_briefly()
{
	local before snapshot result

	# After another attempt.
	wait_until "$WAIT_SECONDS" settled origin || bail "preparation: no intents"
	before=$(grants)
	stall disk
	write_later 1
	wait_until "$WAIT_SECONDS" has_granted_more "$before" || bail "preparation: the first intent"
	before=$(grants)
	dmsetup create "$PREFIX-snap" --table "$(snapshot_table disk cow 128)" \
		> "$SCRATCH/snapshot" 2>&1 &
	snapshot=$!
	wait_until "$WAIT_SECONDS" holds_back $snapshot || bail "preparation: writes are held back"
	dmsetup message "$PREFIX-origin" 0 checkpoint_delete two > "$SCRATCH/delete" 2>&1 &
	wait_until "$WAIT_SECONDS" has_called $! origin_message || bail "preparation: a deletion"
	write_later 100
	wait_until "$WAIT_SECONDS" has_granted_more "$before" || bail "there is an intent at last"
	has_called $snapshot fleece_origin_quiesce 2> /dev/null
	result=$?
	unstall disk
	wait
	dm_remove_deferred snap
	return $result
}

# On a machine that stands still for ten seconds it looks as if the write had waited.
test_quiesce()
{
	local attempt passed=""

	format_metadata meta $SECTORS --region 64K
	make_durable_origin origin disk meta
	for ((attempt = 0; attempt < ATTEMPTS && ${#passed} == 0; attempt++)); do
		or_bail message origin checkpoint_create one
		or_bail message origin checkpoint_create two
		or_bail message origin checkpoint_create three
		! waits_briefly || passed=yes
		is "the deletion was done ($attempt)" "$(cat "$SCRATCH/delete"; message origin checkpoint_list |
			awk '{ printf "%s ", $1 }')" "one three "
		or_bail message origin checkpoint_delete one
		or_bail message origin checkpoint_delete three
	done
	is "a write gets its intent while a snapshot and a deletion wait" "$passed" yes
	is "the writes were done" "$(sort -u "$SCRATCH"/write.*)" ok
	or_bail dm_remove origin
}

is_running()
{
	kill -0 "$1" 2> /dev/null && echo yes || echo no
}

# begin_long_deletion DISK GRANULARITY MS: $deletion is the process of a message for which
# each write to the metadata device takes so long, until that gets another table.
begin_long_deletion()
{
	format_metadata meta "$(blockdev --getsz "$(path_of "$1")")" --checkpoints 2 \
		--granularity $(($2 * 512))
	# Nothing else is to be written, or to fail, meanwhile.
	set_parameter metadata_settle_ms 600000
	set_parameter metadata_timeout_ms 600000
	make_durable_origin origin "$1" meta "$2"
	or_bail message origin checkpoint_create one
	or_bail message origin checkpoint_create two
	delay_writes meta "$3"
	dmsetup message "$PREFIX-origin" 0 checkpoint_delete two > "$SCRATCH/delete" 2>&1 &
	deletion=$!
	wait_until "$WAIT_SECONDS" has_called $deletion fleece_metadata_delete ||
		bail "preparation: the deletion takes no time"
}

has_returned()
{
	! has_called "$@"
}

# read_on: in the background, as $reader.
read_on()
{
	dd if="$(path_of origin)" of=/dev/null bs=4k count=1 iflag=direct status=none &
	reader=$!
}

test_suspend()
{
	local deletion suspend reader status

	begin_long_deletion disk 128 600000
	dmsetup suspend --nolockfs "$PREFIX-origin" &
	suspend=$!
	wait_until "$WAIT_SECONDS" has_called $suspend origin_presuspend ||
		bail "preparation: the suspend waits"
	read_on
	succeeds "an origin that is to be suspended can be read" \
		wait_until "$WAIT_SECONDS" has_ended "$reader"
	is "while the message goes on that is waited for" "$(is_running "$deletion")" yes
	# A read that the suspend waits for.
	stall disk
	read_on
	wait_until "$WAIT_SECONDS" has_called "$reader" blkdev_direct_IO ||
		bail "preparation: another read"
	or_bail replace_table meta "$(slice_table meta)"
	wait "$deletion"
	is "the deletion ends as always" "$? $(cat "$SCRATCH/delete")" "0 "
	wait_until "$WAIT_SECONDS" has_returned $suspend origin_presuspend ||
		bail "preparation: the suspend goes on"
	fails "there is no further one" "busy" message origin checkpoint_create three
	unstall disk
	wait $suspend
	status=$?
	is "and then the origin is suspended" "$status $(dmsetup info -c --noheadings -o suspended \
		"$PREFIX-origin")" "0 Suspended"
	succeeds "a message to a suspended origin is heard" message origin checkpoint_create three
	fails "but what may take long is refused" "busy" message origin checkpoint_delete one
	or_bail dmsetup resume "$PREFIX-origin"
	wait "$reader"
	is "the other read has ended as always" $? 0
	is "all was done that was promised" "$(message origin checkpoint_list | awk '{ printf "%s ", $1 }')" \
		"one three "
	or_bail dm_remove origin
}

# The map of so many granules takes some twenty times as long as what the write waits for
# takes once: a turn of the deletion, its intent, and a flush.
test_large_map()
{
	local deletion

	if ! has_module dm-zero; then
		skip "a write while a large map is written" "there is no dm-zero"
		return
	fi
	or_bail dm_create big "0 $((64 << 21)) zero"
	defer dm_remove_deferred big
	begin_long_deletion big 8 2000
	gets "a large map is written: a write gets its intent" ok origin write 1 1M 4k
	is "a large map is written: before the end of that" "$(is_running "$deletion")" yes
	or_bail replace_table meta "$(slice_table meta)"
	wait "$deletion"
	is "a large map is written: the deletion ends as always" "$? $(cat "$SCRATCH/delete")" "0 "
	is "a large map is written: the change is in it" "$(map origin changed one)" \
		"0 1048576 0,1048576 4096 1,1052672 68718424064 0"
	or_bail dm_remove origin
	or_bail dm_remove big
}

# create_under_way: the checkpoint two, while two writes are; one has begun before, the other one
# while the first was waited for.
create_under_way()
{
	local creator before result

	format_metadata meta $SECTORS --region 64K
	make_durable_origin origin disk meta
	or_bail message origin checkpoint_create one
	# Before, so that it needs no intent, and has none, when it is written again.
	or_bail pattern origin write 1 196608 64k
	wait_until "$WAIT_SECONDS" settled origin || bail "preparation: it has no intent"
	stall disk
	write_later 3
	wait_until "$WAIT_SECONDS" has_flying origin 1 || bail "preparation: a write"
	in_background message dmsetup message "$PREFIX-origin" 0 checkpoint_create two
	creator=$background
	wait_until "$WAIT_SECONDS" has_called "$creator" fleece_origin_quiesce ||
		bail "preparation: a checkpoint waits for the write"
	before=$(grants)
	write_later 5
	wait_until "$WAIT_SECONDS" has_granted_more "$before" ||
		bail "preparation: another write goes on"
	unstall disk
	wait "$creator"
	result=$?
	wait
	return $result
}

# They count as after the checkpoint, also later. A machine that stands still for ten seconds
# lets it be given up.
test_write_under_way()
{
	local attempt

	for ((attempt = 1; attempt < ATTEMPTS; attempt++)); do
		! create_under_way || break
		like "a checkpoint is given up in time" "$(cat "$SCRATCH/message")" "timed out"
		or_bail dm_remove origin
	done
	[ $attempt -lt $ATTEMPTS ] || create_under_way
	is "the checkpoint is made when the writes have ended" "$? $(cat "$SCRATCH/message")" "0 "
	is "they count as after the checkpoint" "$(map origin changed two)" "$(map origin changed one)"
	like "as do no others" "$(map origin changed two)" \
		"^0 196608 0,196608 65536 1,262144 65536 0,327680 65536 1,393216 "
	wait_until "$WAIT_SECONDS" settled origin || bail "preparation: no intents"
	or_bail dm_remove origin
	or_bail dm_create origin "$(durable_table disk meta)"
	is "also when the origin is attached again" "$(map origin changed two)" "$(map origin changed one)"
	or_bail dm_remove origin
}

# It is taken, but not yet resumed, for as long as the metadata device takes. Writes that have
# their intent go on.
test_event()
{
	local creator

	format_metadata meta $SECTORS
	make_durable_origin origin disk meta
	make_disk tiny "$(cow_sectors 128 1)"
	set_parameter metadata_settle_ms 600000
	set_parameter metadata_timeout_ms 600000
	or_bail message origin checkpoint_create zero
	or_bail pattern origin write 1 0 128k
	delay_writes meta 600000
	in_background creator dmsetup create "$PREFIX-snap" \
		--table "$(snapshot_table disk tiny 128 "2 checkpoint one")"
	creator=$background
	wait_until "$WAIT_SECONDS" has_called "$creator" fleece_origin_end_checkpoint ||
		bail "preparation: the checkpoint takes no time"
	log_mark
	gets "writes go on while a checkpoint becomes durable" ok origin write 2 0 128k
	expect_log "one finds no room in the snapshot" "snap.* is broken"
	is "which is not there yet" "$(is_running "$creator")" yes
	or_bail replace_table meta "$(slice_table meta)"
	wait "$creator"
	is "the snapshot is there when its checkpoint is" \
		"$? $(message origin checkpoint_list | awk '{ printf "%s ", $1 }')" "0 zero one "
	make_nodes
	like "it has broken" "$(status_of snap)" "^broken "
	at_least "there is an event for whoever hears it from now on" \
		"$(dmsetup info -c --noheadings -o events "$PREFIX-snap" | tr -d ' ')" 1
	or_bail dm_remove snap
	or_bail dm_remove origin
}

test_parameters()
{
	local name before

	for name in metadata_timeout_ms metadata_settle_ms; do
		before=$(cat /sys/module/dm_fleece/parameters/$name)
		fails "$name: 0 is refused" "Invalid" bash -c "echo 0 > /sys/module/dm_fleece/parameters/$name"
		is "$name: it is as it was" "$(cat /sys/module/dm_fleece/parameters/$name)" "$before"
		set_parameter $name 77
		is "$name: it can be changed" "$(cat /sys/module/dm_fleece/parameters/$name)" 77
	done
}

test_status()
{
	is "without metadata" "$(make_origin origin disk; message origin metadata_status)" "none 0 0 0 0"
	or_bail dm_remove origin
	format_metadata meta $SECTORS --region 64K
	set_parameter metadata_settle_ms 600000
	or_bail dm_create origin "$(durable_table disk meta)"
	or_bail message origin checkpoint_create one
	or_bail pattern origin write 1 0 64k
	like "with metadata" "$(message origin metadata_status)" '^dirty 0 0 [1-9][0-9]* 1$'
	or_bail dm_remove origin
	# The intents' second sector is not in use; the first one of the slot is.
	or_bail dd if=/dev/zero of="$(path_of meta)" bs=512 count=1 seek=4104 oflag=direct conv=notrunc
	log_mark
	or_bail dm_create origin "$(durable_table disk meta)"
	expect_log "a bad sector: the log says so" "1 sectors of the metadata are bad"
	like "a bad sector: it is counted" "$(message origin metadata_status)" '^(clean|dirty) 0 1 [0-9]+ [0-9]+$'
	is "a bad sector: all that it tells of counts as changed" "$(map origin changed one)" \
		"0 $((SECTORS * 512)) 1"
	or_bail dm_remove origin
	set_parameter metadata_settle_ms 5000
}

test_status
test_quiesce
test_write_under_way
test_suspend
test_large_map
test_event
test_parameters
finish
