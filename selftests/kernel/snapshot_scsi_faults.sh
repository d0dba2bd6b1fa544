#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will let a SCSI disk refuse writes, not answer, be offline, have bad sectors,
# and be removed, as the COW device and as the origin, under each policy: live writes go
# on unless they are what the policy gives up, the snapshot reads as it was or fails, and
# the status keeps the first cause and its place.
#
# shellcheck disable=SC2317 # the faults are called by name
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

CLUSTER=128
DISK_MIB=6
RAM_SECTORS=8192
# scsi_debug fails reads of 10 sectors from this one on.
BAD=4660
# The cluster of the origin that they are in, and that of the slot that they are in.
BAD_CLUSTER=$((BAD / CLUSTER))
BAD_SLOT=$(((BAD - 2048) / CLUSTER))
# Bits of scsi_debug's opts: bad sectors, and reads and writes without an answer.
MEDIUM=2
NO_ANSWER=128
FAULTS=/sys/bus/pseudo/drivers/scsi_debug
PARAMETERS=/sys/module/scsi_debug/parameters
# What reads of bad sectors end with, and what all I/O to a disk that is not there.
MEDIUM_ERROR="^E(IO|NODATA)$"
GONE="EIO|ENODEV|ENXIO"
GONE_ERRNOS="5|19|6"
POLICIES="break_snapshot break_cluster break_write"
# A command that was not answered is repeated after this time, five times at the most;
# the policies know less patience.
REPEAT_SECONDS=8
TIMEOUT_MS=5000

no_probing
load_fleece
make_arena 16
make_disk ram $RAM_SECTORS
make_disk ram-cow $((2048 + DISK_MIB * 2048))
make_discard_arena $DISK_MIB opts=0

#
# Faults: each has a function that begins it. end_faults ends all but a removal.
#
set_repeat_seconds()
{
	echo "$1" > "/sys/block/${SCSI##*/}/device/timeout"
}

# find_scsi: sets SCSI to the disk, which is looked for if it has been removed.
find_scsi()
{
	if ! find_scsi_debug > /dev/null; then
		echo "- - -" | tee "$FAULTS"/adapter0/host*/scsi_host/host*/scan > /dev/null
		wait_until 20 find_scsi_debug || bail "preparation: the disk is found again"
	fi
	SCSI=$(find_scsi_debug)
	or_bail set_repeat_seconds "$REPEAT_SECONDS"
}

inject()
{
	echo "$1" > "$FAULTS/opts" && echo 1 > "$FAULTS/every_nth"
}

bad_sectors()
{
	echo "$MEDIUM" > "$FAULTS/opts"
}

protected()
{
	echo 1 > "$PARAMETERS/wp"
}

offline()
{
	echo offline > "/sys/block/${SCSI##*/}/device/state"
}

no_answer()
{
	inject "$NO_ANSWER"
}

# It is to the disk's driver to give up.
no_answer_at_all()
{
	set_repeat_seconds 1 && inject "$NO_ANSWER"
}

end_faults()
{
	inject 0 && echo 0 > "$FAULTS/every_nth" && echo 0 > "$PARAMETERS/wp" || return
	if [ -e "/sys/block/${SCSI##*/}/device/state" ]; then
		set_repeat_seconds "$REPEAT_SECONDS"
		grep -q running "/sys/block/${SCSI##*/}/device/state" ||
			echo running > "/sys/block/${SCSI##*/}/device/state"
	fi
}

#
# Devices: the disk itself, not a slice of it, so that its removal is seen as it is.
#

# start_origin DEVICE: its data is of seed 1.
start_origin()
{
	LOWER=$1
	or_bail dm_create origin "0 $(blockdev --getsz "$LOWER") fleece $LOWER - $CLUSTER"
	or_bail pattern origin write 1 0 -
}

# take COW POLICY TIMEOUT_MS [STAGING]
take()
{
	local features="6 on_cbw_error $2 cbw_timeout $3 staging ${4:-0}"

	or_bail dm_create snap \
		"0 $(blockdev --getsz "$LOWER") fleece-snapshot $LOWER $1 $CLUSTER $features"
}

state_of()
{
	echo "$(snapshot_field snap state) $(snapshot_field snap lost)"
}

error_of()
{
	echo "$(snapshot_field snap errno) $(snapshot_field snap sector)"
}

# is_untouched WHAT: the fault has cost the snapshot nothing.
is_untouched()
{
	is "$1: the snapshot is as it was" "$(state_of) $(error_of)" "active 0 0 0"
}

# are_right WHAT COUNT: so many clusters read as they were, and all others fail.
are_right()
{
	is "$1: $2 clusters are right, the others fail" "$(pattern snap survey 1 0 -)" \
		"$2 right, $(($(snapshot_field snap clusters) - $2)) failed, 0 different"
}

# judge WHAT POLICY FOUND ERRORS ERRNOS: what became of a live write to the 64 KiB at
# 1 MiB, whose copy has failed. FOUND is its result; ERRORS and ERRNOS are patterns.
judge()
{
	if [ "$2" = break_write ]; then
		like "$1: the live write fails" "$3" "^($4)$"
		is_untouched "$1"
		gets "$1: so is the origin" ok origin verify 1 1M 64k
		return
	fi
	is "$1: the live write succeeds" "$3" ok
	if [ "$2" = break_snapshot ]; then
		wait_until 30 snapshot_field_is snap state broken
		is "$1: the snapshot is broken" "$(snapshot_field snap state)" broken
	else
		wait_until 30 snapshot_field_is snap lost 1
		is "$1: one cluster is lost" "$(state_of)" "active 1"
	fi
	like "$1: errno and sector" "$(error_of)" "^($5) 2048$"
	gets "$1: the origin has the new data" ok origin verify 2 1M 64k
}

# judge_reads WHAT POLICY: of the snapshot, when the disk is well again.
judge_reads()
{
	gets "$1: later writes succeed" ok origin write 3 3M 128k
	case $2 in
	break_snapshot)
		gets "$1: nothing can be read" EIO snap read 2M 4k
		gets "$1: nor what was written to" EIO snap read 1M 4k
		;;
	break_cluster)
		gets "$1: the lost cluster is an error" EIO snap read 1M 64k
		gets "$1: what is before it is right" ok snap verify 1 0 1M
		gets "$1: what is after it is right" ok snap verify 1 1088k -
		;;
	break_write)
		gets "$1: all is right" ok snap verify 1 0 -
		;;
	esac
}

end_snapshot()
{
	or_bail dm_remove snap
	or_bail pattern origin write 1 0 -
}

#
# The disk is the COW device.
#

# Of the 64 clusters, when the disk has the copy of one and is gone: those on the origin,
# but the one whose copy has failed; later two more are lost.
declare -A RIGHT=([break_snapshot]=0 [break_cluster]=62 [break_write]=63)
declare -A RIGHT_LATER=([break_snapshot]=0 [break_cluster]=60 [break_write]=63)

# test_cow WHAT FAULT ERRORS ERRNOS TIMEOUT_MS [STAGING]
test_cow()
{
	local policy what

	for policy in $POLICIES; do
		# The write is not waiting for what fails.
		[ "$policy" != break_write ] || [ "${6:-0}" = 0 ] || continue
		what="COW device, $1, $policy"
		take "$SCSI" "$policy" "$5" "${6:-0}"
		or_bail pattern origin write 2 0 64k
		wait_copied snap
		or_bail "$2"
		judge "$what" "$policy" "$(pattern origin write 2 1M 64k)" "$3" "$4"
		[ "$2" != offline ] || are_right "$what" "${RIGHT[$policy]}"
		or_bail end_faults
		judge_reads "$what" "$policy"
		end_snapshot
	done
}

# A copy that is in the bad sectors cannot be read.
test_cow_reads()
{
	local policy what found clusters=$((RAM_SECTORS / CLUSTER))

	for policy in $POLICIES; do
		what="COW device, bad sectors, $policy"
		take "$SCSI" "$policy" 0
		or_bail pattern origin write 2 0 -
		wait_copied snap
		or_bail bad_sectors
		is "$what: one copy is an error, all others are right" \
			"$(pattern snap survey 1 0 -)" \
			"$((clusters - 1)) right, 1 failed, 0 different"
		found=$(pattern snap read $((BAD_SLOT * 64))k 64k)
		like "$what: that one" "$found" "$MEDIUM_ERROR"
		gets "$what: live writes go on" ok origin write 3 0 -
		or_bail end_faults
		is_untouched "$what"
		gets "$what: all is right when it can be read" ok snap verify 1 0 -
		end_snapshot
	done
}

# The disk goes away for good while it owes an answer.
remove_scsi()
{
	or_bail no_answer_at_all
	in_background background pattern origin write 2 1M 64k
	wait_until 30 snapshot_field_reaches snap waiting 1 ||
		bail "preparation: the live write waits for its copy"
	echo 1 > "/sys/block/${SCSI##*/}/device/delete"
	wait $background
	or_bail end_faults
}

test_cow_gone()
{
	local policy what found

	for policy in $POLICIES; do
		what="COW device, gone, $policy"
		take "$SCSI" "$policy" 0
		or_bail pattern origin write 2 0 64k
		remove_scsi
		judge "$what" "$policy" "$(cat "$SCRATCH/background")" "$GONE" "$GONE_ERRNOS"
		are_right "$what" "${RIGHT[$policy]}"
		if [ "$policy" = break_write ]; then
			found=$(pattern origin write 3 3M 128k)
			like "$what: later ones fail as well" "$found" "^($GONE)$"
			gets "$what: where a copy was made they succeed" ok origin write 3 0 64k
		else
			gets "$what: later ones succeed" ok origin write 3 3M 128k
		fi
		are_right "$what, later" "${RIGHT_LATER[$policy]}"
		or_bail dm_remove snap
		or_bail pattern origin write 1 0 -
		find_scsi
	done
}

#
# The disk is the origin. What is written to it fails as long as the fault lasts.
#

# A bad sector of the origin costs its cluster, or the write.
test_origin_reads()
{
	local policy what found sector=$((BAD_CLUSTER * CLUSTER))
	local start=$((sector * 512)) end=$(((sector + CLUSTER) * 512))

	for policy in $POLICIES; do
		what="origin, bad sectors, $policy"
		take "$(path_of ram-cow)" "$policy" 0
		or_bail bad_sectors
		found=$(pattern origin write 2 $((start - 65536)) 192k)
		or_bail end_faults
		if [ "$policy" = break_write ]; then
			like "$what: the live write fails" "$found" "$MEDIUM_ERROR"
			is_untouched "$what"
			gets "$what: later it succeeds" ok origin write 2 $((start - 65536)) 192k
			gets "$what: all is right" ok snap verify 1 0 -
		else
			is "$what: the live write succeeds" "$found" ok
			is "$what: one cluster is lost" "$(state_of)" "active 1"
			like "$what: errno and sector" "$(error_of)" "^(5|61) $sector$"
			gets "$what: it is an error" EIO snap read $start 64k
			gets "$what: what is before it is right" ok snap verify 1 0 $start
			gets "$what: what is after it is right" ok snap verify 1 $end -
		fi
		gets "$what: the origin has the new data" ok origin verify 2 $((start - 65536)) 192k
		end_snapshot
	done
}

# The old data is not read in time; the disk answers when it is asked again.
test_origin_no_answer()
{
	local policy what

	for policy in $POLICIES; do
		what="origin, no answer, $policy"
		take "$(path_of ram-cow)" "$policy" $TIMEOUT_MS
		or_bail no_answer
		in_background background pattern origin write 2 1M 64k
		case $policy in
		break_snapshot) wait_until 30 snapshot_field_is snap state broken ;;
		break_cluster) wait_until 30 snapshot_field_is snap lost 1 ;;
		break_write) wait $background ;;
		esac
		or_bail end_faults
		wait $background
		judge "$what" "$policy" "$(cat "$SCRATCH/background")" ETIMEDOUT 110
		judge_reads "$what" "$policy"
		end_snapshot
	done
}

# Neither the copy nor the write has a chance: the write fails, under each policy.
test_origin_offline()
{
	local policy what found

	for policy in $POLICIES; do
		what="origin, offline, $policy"
		take "$(path_of ram-cow)" "$policy" 0
		or_bail pattern origin write 2 0 64k
		wait_copied snap
		or_bail offline
		found=$(pattern origin write 2 1M 64k)
		like "$what: the live write fails" "$found" "^($GONE)$"
		gets "$what: what was copied is read" ok snap verify 1 0 64k
		are_right "$what" 1
		or_bail end_faults
		if [ "$policy" = break_write ]; then
			is_untouched "$what"
		else
			is "$what: one cluster is lost" "$(state_of)" "active 1"
			like "$what: errno and sector" "$(error_of)" "^($GONE_ERRNOS) 2048$"
		fi
		[ "$policy" = break_write ] || judge_reads "$what" break_cluster
		[ "$policy" != break_write ] || judge_reads "$what" break_write
		end_snapshot
	done
}

test_origin_gone()
{
	local policy what found

	for policy in $POLICIES; do
		what="origin, gone, $policy"
		start_origin "$SCSI"
		take "$(path_of ram-cow)" "$policy" 0
		or_bail pattern origin write 2 0 64k
		wait_copied snap
		remove_scsi
		found=$(cat "$SCRATCH/background")
		like "$what: the live write fails" "$found" "^($GONE)$"
		gets "$what: what was copied is read" ok snap verify 1 0 64k
		are_right "$what" 1
		is "$what: the snapshot is active" "$(snapshot_field snap state)" active
		if [ "$policy" = break_write ]; then
			is "$what: nothing is lost" "$(snapshot_field snap lost)" 0
		else
			is "$what: one cluster is lost" "$(snapshot_field snap lost)" 1
			like "$what: errno and sector" "$(error_of)" "^($GONE_ERRNOS) 2048$"
		fi
		succeeds "$what: the snapshot can be removed" dm_remove snap
		succeeds "$what: so can the origin" dm_remove origin
		find_scsi
	done
}

find_scsi
defer dm_remove_deferred origin
defer dm_remove_deferred snap
defer end_faults
start_origin "$(path_of ram)"
test_cow "writes refused" protected EREMOTEIO 121 0
test_cow "writes refused, staged" protected EREMOTEIO 121 0 65536
test_cow "offline" offline "$GONE" "$GONE_ERRNOS" 0
test_cow "no answer" no_answer ETIMEDOUT 110 $TIMEOUT_MS
test_cow "no answer at all" no_answer_at_all "EIO|ETIMEDOUT" "5|110" 0
test_cow_reads
test_cow_gone
or_bail dm_remove origin
start_origin "$SCSI"
test_origin_reads
test_origin_no_answer
test_origin_offline
or_bail dm_remove origin
test_origin_gone
finish
