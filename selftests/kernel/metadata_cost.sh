#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will count what writes cost on the metadata device: nothing where something
# was changed before, one grant for many where not; and what must not wait, does not.
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=131072
load_fleece
# What is to be seen as dirty is not to settle before somebody has looked.
set_parameter metadata_settle_ms 600000
no_probing
make_arena 96
make_disk disk $SECTORS
make_disk meta 16384
format_metadata meta $SECTORS
make_durable_origin origin disk meta

test_hot()
{
	local before

	or_bail pattern origin write 1 0 4M
	is "without a checkpoint nothing is written" "$(device_stat meta 7)" "$idle"
	or_bail message origin checkpoint_create one
	or_bail pattern origin write 2 0 4M
	is "the first writes need an intent, all of them one" \
		"$(message origin metadata_status | cut -d' ' -f1,5)" "dirty 1"
	or_bail dm_remove origin
	set_parameter metadata_settle_ms 500
	or_bail dm_create origin "$(durable_table disk meta)"
	or_bail pattern origin write 2 4M 4M
	succeeds "it is taken back" wait_until "$WAIT_SECONDS" settled origin
	at_least "there was one" "$(message origin metadata_status | cut -d' ' -f5)" 1
	# It is written a moment later; a deletion waits for that.
	! message origin checkpoint_delete none > /dev/null 2>&1 || bail "there is no such checkpoint"
	before=$(device_stat meta 5)
	for ((i = 0; i < 64; i++)); do
		or_bail pattern origin write $i $((i * 65536)) 64k
	done
	is "writes to what was changed before cost nothing" "$(device_stat meta 5)" "$before"
	is "and nothing is to be done later" "$(origin_field origin metadata)" clean
	or_bail pattern origin write 3 8M 64k
	is "a write elsewhere is noted" \
		"$([ "$(device_stat meta 5)" -gt "$before" ] && echo noted)" noted
}

# Nobody can ask for what is written when there is no checkpoint any more.
test_deleted()
{
	local before

	succeeds "nothing is under way" wait_until "$WAIT_SECONDS" settled origin
	or_bail message origin checkpoint_delete one
	before=$(message origin metadata_status)
	or_bail pattern origin write 4 32M 64k
	or_bail pattern origin write 4 48M 64k
	is "after the last checkpoint no intent is needed" "$(message origin metadata_status)" "$before"
}

test_nowait()
{
	local result

	or_bail message origin checkpoint_create two
	succeeds "all is settled" wait_until "$WAIT_SECONDS" settled origin
	or_bail pattern origin write 4 40M 64k
	result=$(pattern origin nowait 4 40M 64k)
	if [ "$result" = EOPNOTSUPP ]; then
		skip "NOWAIT" "this kernel's direct writes, or its device-mapper, do not have it"
		return
	fi
	is "NOWAIT: with the bits set it succeeds" "$result" ok
	or_bail message origin checkpoint_create three
	succeeds "all is settled again" wait_until "$WAIT_SECONDS" settled origin
	# The intent that will come is to be there when it is asked for again.
	set_parameter metadata_settle_ms 600000
	gets "NOWAIT: without an intent it is refused" EAGAIN origin nowait 5 40M 64k
	gets "NOWAIT: nothing was written" ok origin verify 4 40M 64k
	# It was asked for, and is granted soon; then it need not wait.
	succeeds "NOWAIT: the intent comes all the same" wait_until "$WAIT_SECONDS" \
		pattern origin nowait 5 40M 64k
	gets "NOWAIT: then it is written" ok origin verify 5 40M 64k
}

idle=$(device_stat meta 7)
test_hot
test_deleted
test_nowait
finish
