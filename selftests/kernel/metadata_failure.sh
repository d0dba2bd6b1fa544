#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will let the metadata device fail, and not answer: live writes go on, the
# status, an event and the log say so, and the checkpoints are invalid when the origin
# is started again, whether or not the device could be told. One that is in order again is.
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=32768
load_fleece
make_arena 96
make_disk disk $SECTORS
make_disk meta 16384
make_disk cow "$(cow_sectors 128 256)"
good=$(slice_table meta)
bad="0 16384 error"

# begin: an origin with new metadata and a checkpoint.
begin()
{
	or_bail replace_table meta "$good"
	format_metadata meta $SECTORS --region 64K
	or_bail dm_create origin "$(durable_table disk meta)"
	or_bail message origin checkpoint_create one
	or_bail pattern origin write 1 0 64k
}

has_failed()
{
	[ "$(origin_field origin metadata)" = failed ]
}

# invalid_after WHAT: the next start knows.
invalid_after()
{
	or_bail dm_create origin "$(durable_table disk meta)"
	is "$1: the checkpoint is invalid at the next start" \
		"$(message origin checkpoint_list | awk '{ print $1, $5 }')" "one invalid"
	fails "$1: it is refused" ESTALE maps origin extents changed one
	succeeds "$1: a new one can be made" message origin checkpoint_create two
	or_bail pattern origin write 2 3M 64k
	or_bail dm_remove origin
	or_bail dm_create origin "$(durable_table disk meta)"
	is "$1: which is valid" "$(message origin checkpoint_list | awk '{ print $1, $5 }' |
		paste -sd,)" "one invalid,two valid"
	is "$1: and right" "$(map origin changed two)" "0 3145728 0,3145728 65536 1,3211264 13565952 0"
	or_bail dm_remove origin
}

# is_told WHAT: that it has failed.
is_told()
{
	local said

	said=$("$FLEECE_TREE/userspace/fleece/fleece" metadata check "$(path_of meta)" 2>&1)
	like "$1" "$said" invalid
}

# goes_on WHAT ERROR ERRNO: with a device that has failed, and what is refused is for that.
# The first write took $took ms.
goes_on()
{
	took=$(elapsed_ms pattern origin write 1 1M 64k)
	is "$1: a write into a new region goes on" "$(cat "$SCRATCH/output")" ok
	succeeds "$1: the status says so" wait_until "$WAIT_SECONDS" has_failed
	like "$1: with the errno" "$(message origin metadata_status)" "^failed $3 "
	gets "$1: later writes as well" ok origin write 1 2M 64k
	is "$1: changes are tracked" "$(map origin changed one)" \
		"0 65536 1,65536 983040 0,1048576 65536 1,1114112 983040 0,2097152 65536 1,2162688 14614528 0"
	expect_log "$1: the log says so" "metadata has failed"
	fails "$1: no checkpoint is promised" "$2" message origin checkpoint_create three
	fails "$1: nor with a snapshot" "$2" dm_create snap \
		"$(snapshot_table disk cow 128 "2 checkpoint three")"
	is "$1: there is none" "$(origin_field origin checkpoints)" 1
	make_snapshot snap disk cow 128 "2 since one"
	is "$1: a snapshot alone is possible" "$(snapshot_field snap accessible)" 3
	or_bail dm_remove snap
}

test_error_passes()
{
	begin
	dmsetup wait "$PREFIX-origin" > /dev/null 2>&1 &
	local waiter=$!
	log_mark
	or_bail replace_table meta "$bad"
	goes_on "errors" "Input/output" 5
	succeeds "errors: there is an event" wait_until "$WAIT_SECONDS" has_ended $waiter
	or_bail replace_table meta "$good"
	or_bail dm_remove origin
	is_told "errors: the device was told in the end"
	invalid_after "errors"
}

test_error_stays()
{
	begin
	log_mark
	or_bail replace_table meta "$bad"
	goes_on "errors up to the end" "Input/output" 5
	or_bail dm_remove origin
	or_bail replace_table meta "$good"
	invalid_after "errors up to the end"
}

# blocks_written: to the metadata device, or in vain.
blocks_written()
{
	message origin metadata_status | cut -d' ' -f4
}

has_written_more()
{
	[ "$(blocks_written)" -gt "$1" ]
}

# Both copies of the superblock say so.
both_are_invalid()
{
	local sector state

	for sector in 0 2048; do
		state=$(dd if="$(path_of meta)" bs=512 skip="$sector" count=1 iflag=direct \
			status=none | od -An -tu1 -j20 -N1)
		[ "$state" -eq 3 ] || return
	done
}

# Nobody does anything for that: what settles tries it, again and again.
test_error_passes_later()
{
	local before

	set_parameter metadata_settle_ms 200
	begin
	or_bail replace_table meta "$bad"
	gets "errors for longer: a write goes on" ok origin write 1 1M 64k
	wait_until "$WAIT_SECONDS" has_failed || bail "preparation: it has failed"
	before=$(blocks_written)
	succeeds "errors for longer: telling the device is tried again" \
		wait_until "$WAIT_SECONDS" has_written_more "$before"
	or_bail replace_table meta "$good"
	succeeds "errors for longer: the device is told while it is in use" \
		wait_until "$WAIT_SECONDS" both_are_invalid
	or_bail dm_remove origin
	set_parameter metadata_settle_ms 5000
	invalid_after "errors for longer"
}

# A time limit in which this machine does a lot: it is over once, not for each of the things
# that are to be done about it.
test_silence()
{
	local limit=$((3000 * ${FLEECE_SLOWDOWN:-1})) took

	begin
	log_mark
	stall meta
	defer dmsetup resume "$PREFIX-meta"
	set_parameter metadata_timeout_ms $limit
	goes_on "no answer" "timed out" 110
	at_most "no answer: the write waited for one time limit" "$took" $((2 * limit))
	unstall meta
	or_bail dm_remove origin
	set_parameter metadata_timeout_ms 10000
	is_told "no answer: the device was told in the end"
	invalid_after "no answer"
}

test_start()
{
	begin
	or_bail dm_remove origin
	or_bail dmsetup create "$PREFIX-origin" --notable
	or_bail dmsetup load "$PREFIX-origin" --table "$(durable_table disk meta)"
	or_bail replace_table meta "$bad"
	succeeds "errors at the start: it starts" dmsetup resume "$PREFIX-origin"
	make_nodes
	at_least "errors at the start: there is an event" "$(dmsetup info -c --noheadings -o events \
		"$PREFIX-origin" | tr -d ' ')" 1
	is "errors at the start: the status says so" "$(origin_field origin metadata)" failed
	is "errors at the start: whether the checkpoint misses anything is not known" \
		"$(message origin checkpoint_list | awk '{ print $1, $5 }')" "one invalid"
	fails "errors at the start: so it is refused" ESTALE maps origin extents changed one
	gets "errors at the start: writes go on" ok origin write 1 1M 64k
	or_bail dm_remove origin
	or_bail replace_table meta "$good"
	invalid_after "errors at the start"
}

# Loading a table waits for a device that does not answer, as its reads are in our memory, and
# then refuses it: what it says late may be right, but the user was told nothing meanwhile.
test_silent_start()
{
	local loader

	begin
	or_bail dm_remove origin
	or_bail dmsetup create "$PREFIX-origin" --notable
	set_parameter metadata_timeout_ms 500
	stall meta
	dmsetup load "$PREFIX-origin" --table "$(durable_table disk meta)" > "$SCRATCH/load" 2>&1 &
	loader=$!
	# From then on it waits for what it had asked of the device, nothing more.
	wait_until "$WAIT_SECONDS" has_called $loader fleece_metadata_dev_free ||
		not_ok "no answer to the start: it is not waited for without end"
	unstall meta
	wait $loader
	is "no answer to the start: the table is refused" "$(($? != 0))" 1
	like "no answer to the start: for that" "$(cat "$SCRATCH/load")" "Input/output"
	is "no answer to the start: there is none" "$(dmsetup info -c --noheadings -o \
		tables_loaded "$PREFIX-origin")" None
	set_parameter metadata_timeout_ms 10000
	or_bail dmsetup load "$PREFIX-origin" --table "$(durable_table disk meta)"
	or_bail dmsetup resume "$PREFIX-origin"
	make_nodes
	is "no answer to the start: with an answer, all is as it was" \
		"$(message origin checkpoint_list | awk '{ print $1, $5 }') $(map origin changed one)" \
		"one valid 0 65536 1,65536 16711680 0"
	or_bail dm_remove origin
}

# It fails at the commit of a checkpoint that a snapshot makes, not before, by settling.
test_snapshot()
{
	set_parameter metadata_settle_ms 600000
	begin
	or_bail replace_table meta "$bad"
	log_mark
	fails "errors at the moment: no snapshot with a checkpoint" "Input/output" dm_create snap \
		"$(snapshot_table disk cow 128 "2 checkpoint two")"
	expect_log "errors at the moment: the log says why" "did not become durable"
	dm_remove_deferred snap
	is "errors at the moment: there is no checkpoint either" "$(status_of origin)" \
		"128 256 1 failed 0 1 one"
	gets "errors at the moment: writes go on" ok origin write 1 1M 64k
	or_bail dm_remove origin
	or_bail replace_table meta "$good"
	invalid_after "errors at the moment"
}

defer dm_remove_deferred origin
test_error_passes
test_error_passes_later
test_error_stays
test_silence
test_start
test_silent_start
test_snapshot
finish
