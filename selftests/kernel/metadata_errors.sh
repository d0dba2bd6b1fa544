#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will let parts of the metadata device fail in each phase: one of the
# superblocks or both, the intents, the change bits, all of it, or flushes only; in the
# start, in a grant, while change bits are written, while a checkpoint is made, with and
# without a snapshot, or deleted, and in the end. Whatever happens, live writes go on, and
# at the next start, with the device in order, each checkpoint is there exactly if it
# was promised, and is invalid or says "changed" for all that was written since. Then the
# origin's own device cannot be flushed. At last nothing can be read.
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=32768
META_SECTORS=6144
# Granules that are written before anything is bad.
FIRST=3
# First sector and length.
declare -A AREAS=(
	[superblock0]="0 72" [superblock1]="2048 72" [superblocks]="0 4096" [intents]="4096 8"
	[bits]="4104 2032" [all]="0 $META_SECTORS"
	# Nothing is there. A flakey target fails writes, and gets each flush; one of errors
	# gets none.
	[flushes]="6136 8"
)
load_fleece
has_module dm-flakey || skip_all "needs the module dm-flakey"
no_probing
set_parameter metadata_settle_ms 200
make_arena 64
make_disk disk $SECTORS
make_disk cow "$(cow_sectors 128 64)"
# A RAM disk has no cache, and no flush arrives there.
cached=${FLEECE_DISKS:-}
cached=${cached%% *}
[ -b "$cached" ] || skip_all "needs a disk with a cache in FLEECE_DISKS"
ARENA=$cached
ARENA_USED=0
make_disk meta $META_SECTORS
make_disk lower $((SECTORS + 8))
good=$(slice_table meta)

# piece FIRST LENGTH TARGET [ARGUMENTS]: of a table, leads to the slice.
piece()
{
	[ "$2" -eq 0 ] || echo "$1 $2 $3 $ARENA $((DISK_START[meta] + $1)) ${4:-}"
}

# spoil AREA: it fails from now on.
spoil()
{
	local first length

	read -r first length <<< "${AREAS[$1]}"
	{
		piece 0 "$first" linear
		if [ "$1" = flushes ]; then
			piece "$first" "$length" flakey "0 3600 1 error_writes"
		else
			echo "$first $length error"
		fi
		piece $((first + length)) $((META_SECTORS - first - length)) linear
	} > "$SCRATCH/table"
	or_bail replace_lines meta < "$SCRATCH/table"
}

mend()
{
	or_bail replace_table meta "$good"
}

# write_at GRANULE...: a live write never fails.
write_at()
{
	local granule

	for granule; do
		written="$written $granule"
		[ "$(pattern origin write "$granule" $((granule * 65536)) 64k 2>&1)" = ok ] ||
			failures="$failures write to $granule;"
	done
}

is_settled()
{
	[ "$(origin_field origin metadata)" != dirty ]
}

# What each phase does. The table is loaded when it can still be read: test_reading().
phase_start()
{
	or_bail dm_remove origin
	or_bail dmsetup create "$PREFIX-origin" --notable
	or_bail dmsetup load "$PREFIX-origin" --table "$(durable_table disk meta)"
	spoil "$1"
	or_bail dmsetup resume "$PREFIX-origin"
	make_nodes
}

phase_grant()
{
	spoil "$1"
	write_at 40 60 80
}

phase_settle()
{
	write_at 40 60 80
	spoil "$1"
	wait_until "$WAIT_SECONDS" is_settled || failures="$failures it is never settled;"
}

phase_create()
{
	spoil "$1"
	! message origin checkpoint_create three 2> /dev/null || promised="$promised three"
}

phase_snapshot()
{
	spoil "$1"
	! dm_create snap "$(snapshot_table disk cow 128 "2 checkpoint three")" 2> /dev/null ||
		promised="$promised three"
	dm_remove_deferred snap
}

phase_delete()
{
	spoil "$1"
	! message origin checkpoint_delete two 2> /dev/null || promised="one"
}

phase_end()
{
	write_at 40 60 80
	spoil "$1"
}

# missing NAME: granules of $written that the map of a checkpoint does not have. What
# the test wrote at first is older than the checkpoint that a phase makes.
missing()
{
	local since=0

	[ "$1" != three ] || since=$FIRST
	maps origin bitmap changed "$1" | tail -n 1 | awk -v written="$written" -v since=$since '{
		n = split(written, granules, " ")
		for (i = since + 1; i <= n; i++)
			if (substr($0, granules[i] + 1, 1) != 1) printf " %s", granules[i]
	}'
}

# judge STATE: what is there after the start, when the state was STATE before.
judge()
{
	local name state list

	list=$(message origin checkpoint_list | awk '{ print $1, $5 }')
	# A deletion that failed may have arrived; nothing else may be missing.
	for name in $promised; do
		grep -q "^$name " <<< "$list" || [ "$phase$name$1" = deletetwofailed ] ||
			failures="$failures $name is not there;"
	done
	while read -r name state; do
		if [ "$state" = valid ]; then
			[ "$1" != failed ] || failures="$failures $name is valid;"
			[[ " $promised " == *" $name "* ]] || failures="$failures $name is there;"
			[ -z "$(missing "$name")" ] || failures="$failures $name misses$(missing "$name");"
		elif [ "$1" != failed ]; then
			failures="$failures $name is invalid;"
		fi
	done <<< "$list"
}

test_phase()
{
	local area=$1 phase=$2
	local failures="" written="" promised="one two" state

	mend
	format_metadata meta $SECTORS --region 64K
	or_bail dm_create origin "$(durable_table disk meta)"
	or_bail message origin checkpoint_create one
	or_bail message origin checkpoint_create two
	write_at 1 2 3
	log_mark
	"phase_$phase" "$area"
	write_at 10 41 42
	state=$(origin_field origin metadata)
	or_bail dm_remove origin
	# In the end there is nobody but the log to ask.
	! log_has "the metadata has failed" || state=failed
	mend
	or_bail dm_create origin "$(durable_table disk meta)"
	judge "$state"
	is "$phase, $area: nothing is lost or wrong ($state)" "$failures" ""
	succeeds "$phase, $area: then a checkpoint can be made" message origin checkpoint_create four
	or_bail dm_remove origin
}

# The origin ends before the sectors that fail, but flushes go there, too. The writes before the
# moment may be lost then, so there is no checkpoint.
test_lower_flushes()
{
	local start=${DISK_START[lower]}

	mend
	format_metadata meta $SECTORS --region 64K
	or_bail dm_create origin "0 $SECTORS fleece $(path_of lower) $(path_of meta) 128"
	or_bail message origin checkpoint_create zero
	{
		echo "0 $SECTORS linear $ARENA $start"
		echo "$SECTORS 8 flakey $ARENA $((start + SECTORS)) 0 3600 1 error_writes"
	} > "$SCRATCH/table"
	or_bail replace_lines lower < "$SCRATCH/table"
	fails "the origin cannot be flushed: no checkpoint is promised" "Input/output" \
		message origin checkpoint_create one
	is "the origin cannot be flushed: there is none" \
		"$(message origin checkpoint_list | awk '{ print $1, $5 }')" "zero valid"
	gets "the origin cannot be flushed: writes go on" ok origin write 1 1M 64k
	succeeds "the origin cannot be flushed: change bits are written on" \
		wait_until "$WAIT_SECONDS" settled origin
	or_bail replace_table lower "$(slice_table lower)"
	succeeds "the origin cannot be flushed: later there is a checkpoint" \
		message origin checkpoint_create one
	is "the origin cannot be flushed: nothing is lost" "$(map origin changed zero)" \
		"0 1048576 0,1048576 65536 1,1114112 15663104 0"
	or_bail dm_remove origin
}

# Nothing can be read: neither guessed, nor written to.
test_reading()
{
	mend
	format_metadata meta $SECTORS --region 64K
	or_bail replace_table meta "0 $META_SECTORS error"
	refuses "nothing can be read" "Input/output|I/O" "cannot be" \
		"$(durable_table disk meta)"
	mend
	make_durable_origin origin disk meta
	or_bail message origin checkpoint_create one
	or_bail dm_remove origin
	spoil intents
	log_mark
	or_bail dm_create origin "$(durable_table disk meta)"
	expect_log "intents that cannot be read: the log says so" "sectors of the metadata are bad"
	# Nor can they be written, and it is not known since when.
	fails "intents that cannot be read or written: the checkpoint is refused" ESTALE \
		maps origin extents changed one
}

defer dm_remove_deferred origin
for phase in grant settle; do
	for area in intents bits all flushes; do
		test_phase $area $phase
	done
done
for phase in start create snapshot delete end; do
	for area in superblock0 superblock1 superblocks intents bits all flushes; do
		test_phase $area $phase
	done
done
test_lower_flushes
test_reading
finish
