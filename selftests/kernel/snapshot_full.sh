#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will fill the COW device: the snapshot breaks with ENOSPC, says so
# in status, event and log, and live writes never notice.
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=32768
load_fleece
make_arena 64
make_disk disk $SECTORS
make_disk cow "$(cow_sectors 128 4)"
make_origin origin disk
or_bail pattern origin write 1 0 -

events_of()
{
	dmsetup info -c --noheadings -o events "$PREFIX-$1" | tr -d ' '
}

# test_full STAGING
test_full()
{
	local events

	make_snapshot snap disk cow 128 "4 staging $1 low_water 2"
	is "staging $1: it has the slots that fit" "$(snapshot_field snap total)" 4
	events=$(events_of snap)
	log_mark
	or_bail pattern origin write 2 0 64k
	wait_copied snap
	is "staging $1: no event yet" "$(events_of snap)" "$events"
	or_bail pattern origin write 2 64k 128k
	wait_copied snap
	is "staging $1: three of four slots are used" "$(snapshot_field snap used)" 3
	wait_until 20 has_events snap "$events" || not_ok "staging $1: there is an event"
	is "staging $1: low water is an event" "$(events_of snap)" $((events + 1))
	expect_log "staging $1: and in the log" "fewer than 2 slots|low"
	is "staging $1: which does not break it" "$(snapshot_field snap state)" active

	events=$(events_of snap)
	dmsetup wait "$PREFIX-snap" "$events" &
	waiter=$!
	gets "staging $1: a write that needs more succeeds" ok origin write 2 8M 256k
	wait_until 20 snapshot_field_is snap state broken
	is "staging $1: the snapshot is broken with ENOSPC" \
		"$(snapshot_field snap state) $(snapshot_field snap errno)" "broken 28"
	like "staging $1: the sector is one of the write's" "$(snapshot_field snap sector)" \
		"^16(384|512|640|768)$"
	wait_until 20 eval "! kill -0 $waiter" || bail "staging $1: the event wakes a waiter"
	ok "staging $1: the event wakes a waiter"
	expect_log "staging $1: the log has device, action and cause" "broken.*(full|space|slot|28)"
	gets "staging $1: no part can be read, untouched" EIO snap read 4M 4k
	gets "staging $1: no part can be read, copied" EIO snap read 0 4k
	gets "staging $1: live writes go on" ok origin write 3 0 -
	gets "staging $1: and arrive" ok origin verify 3 0 -
	is "staging $1: nothing is staged or waiting" "$(snapshot_field snap staged) $(snapshot_field snap waiting)" "0 0"
	is "staging $1: maps say what happened" "$(maps snap info | grep -E '^(state|error) ' | paste -sd' ')" \
		"state broken error 28"
	or_bail message snap release 0 512
	gets "staging $1: it never heals" EIO snap read 8M 4k
	or_bail dm_remove snap
	or_bail pattern origin write 1 0 -
}

test_full 65536
test_full 0

# Exactly enough is enough.
make_snapshot snap disk cow 128
or_bail pattern origin write 2 1M 256k
wait_copied snap
is "as many clusters as slots do not break it" "$(snapshot_field snap state) $(snapshot_field snap used)" "active 4"
or_bail pattern origin write 3 1M 256k
gets "nor does overwriting them" ok snap verify 1 0 -
finish
