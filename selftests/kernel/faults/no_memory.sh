#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will have allocations of the kernel fail while the oracle judges every
# sector: at first those that may not sleep, as on the way of reads and writes; then
# those of work items that may; then those of loading a table; and then those of a
# growing origin. Needs a kernel with
# fault injection, which stock kernels lack.
here=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source-path=SCRIPTDIR/..
. "$here/../lib.sh"

SECTORS=24568
ALL_FAULTS="failslab fail_page_alloc"
# More than there will be.
MANY=1000000000
debugfs=/sys/kernel/debug
seconds=${FLEECE_ORACLE_SECONDS:-30}
seed=${FLEECE_ORACLE_SEED:-$(($(now_ms) % 1000000))}

load_fleece
requires_tool oracle
mountpoint -q $debugfs || mount -t debugfs debugfs $debugfs || :
[ -e $debugfs/failslab/probability ] || skip_all "the kernel has no fault injection"
make_arena 96
for name in a b; do
	make_disk disk-$name $SECTORS
	make_disk cow-$name $((SECTORS + 8192))
	# The RAM disk has all its pages from now on: what fails then is ours.
	for disk in disk-$name cow-$name; do
		or_bail dd if=/dev/zero "of=$(path_of "$disk")" bs=4k oflag=direct status=none \
			count=$(($(blockdev --getsz "$(path_of "$disk")") / 8))
	done
done

set_fault()
{
	echo "$3" > "$debugfs/$1/$2" || bail "$1: cannot set $2 to $3"
}

no_faults()
{
	local fault

	for fault in $ALL_FAULTS; do
		echo 0 > "$debugfs/$fault/probability"
	done
}

# begin_faults FAULTS PERCENT TIMES ONLY_NOWAIT ONLY_TASKS
begin_faults()
{
	local fault

	no_faults
	set_fault fail_page_alloc min-order 0
	for fault in $1; do
		set_fault "$fault" interval 1
		set_fault "$fault" times "$3"
		set_fault "$fault" space 0
		set_fault "$fault" verbose 0
		set_fault "$fault" ignore-gfp-wait "$4"
		set_fault "$fault" task-filter "$5"
		set_fault "$fault" probability "$2"
	done
}

# nr_faults TIMES: how many there were since begin_faults.
nr_faults()
{
	local fault sum=0

	for fault in $ALL_FAULTS; do
		sum=$((sum + $1 - $(cat "$debugfs/$fault/times")))
	done
	echo $sum
}

# shellcheck disable=SC2317 # called by the cleanup
remove_snapshots()
{
	local name

	no_faults
	for name in a-snap b-snap a-slice b-slice; do
		dm_remove_deferred "$name"
	done
}

# For ever: each worker of the kernel may fail, new ones as well.
mark_workers()
{
	while :; do
		for pid in $(pgrep -x 'kworker/.*'); do
			echo 1 > "/proc/$pid/make-it-fail"
		done 2> /dev/null
		sleep 0.5
	done
}

# run_oracle WHAT
run_oracle()
{
	succeeds "$1: no violation" "$FLEECE_TEST_BIN/oracle" --seconds "$seconds" --seed "$seed" \
		--granularity 128 --faults "$PREFIX-a:$(path_of disk-a):$(path_of cow-a)" \
		"$PREFIX-b:$(path_of disk-b):$(path_of cow-b)"
	at_least "$1: allocations have failed" "$(nr_faults $MANY)" 20
	no_faults
}

test_writers()
{
	begin_faults "$ALL_FAULTS" 30 $MANY Y N
	run_oracle "allocations that may not sleep"
}

test_workers()
{
	mark_workers &
	defer kill $!
	begin_faults "$ALL_FAULTS" 30 $MANY N Y
	run_oracle "allocations of work items"
}

# attempt PERCENT COMMAND...: one allocation of the command's fails, or none. No pages
# of its own: that is the end of most programs.
attempt()
{
	local percent=$1

	shift
	begin_faults failslab "$percent" 1 N Y
	{ (echo 1 > /proc/self/make-it-fail; exec "$@") > /dev/null 2>&1; } 2> /dev/null
}

test_tables()
{
	local attempt made=0 refused=0 table

	table="$(snapshot_table disk-a cow-a 128 "2 checkpoint one")"
	for ((attempt = 0; attempt < 25 || (attempt < 300 && (made < 3 || refused < 3)); attempt++)); do
		# Nothing of ours is to be left of an attempt that has failed. Its event for udev
		# may be what there is no memory for: do not wait for that.
		if attempt $((1 + attempt % 4)) dmsetup create --noudevsync "$PREFIX-snap" \
			--table "$table"; then
			made=$((made + 1))
			no_faults
			or_bail dm_remove snap
			or_bail message a checkpoint_delete one
		else
			refused=$((refused + 1))
			no_faults
			! dmsetup info "$PREFIX-snap" > /dev/null 2>&1 || or_bail dm_remove snap
			message a checkpoint_delete one > /dev/null 2>&1
		fi
	done
	at_least "snapshots: some were made" $made 3
	at_least "snapshots: some had no memory" $refused 3
	for ((attempt = 0; attempt < 25; attempt++)); do
		attempt $((1 + attempt % 4)) dmsetup message "$PREFIX-a" 0 checkpoint_create point
		attempt $((1 + attempt % 4)) dmsetup message "$PREFIX-a" 0 checkpoint_list
		attempt 2 dmsetup message "$PREFIX-a" 0 checkpoint_delete point
	done
	no_faults
	message a checkpoint_delete point > /dev/null 2>&1
	is "checkpoints: none of these is left" \
		"$(message a checkpoint_list | grep -E '^(one|point) ')" ""
	make_snapshot snap disk-a cow-a 128
	or_bail pattern a write 1 0 -
	wait_copied snap
	is "what is made afterwards works" "$(snapshot_field snap state)" active
	or_bail dm_remove snap
}

has_new_size()
{
	[ "$(blockdev --getsz "$(path_of a)")" = "$SECTORS" ] && [ "$(dmsetup info -c --noheadings \
		-o suspended "$PREFIX-a")" = Active ]
}

# A write holds up the resume until all that it allocates from then on fails.
test_growth()
{
	local resume write

	or_bail dm_remove a
	or_bail dm_create a "0 $((SECTORS - 128)) fleece $(path_of disk-a) - 128"
	or_bail message a checkpoint_create one
	or_bail message a checkpoint_create two
	or_bail dmsetup load "$PREFIX-a" --table "0 $SECTORS fleece $(path_of disk-a) - 128"
	stall disk-a
	pattern a write 1 0 4k > "$SCRATCH/write" 2>&1 &
	write=$!
	wait_until "$WAIT_SECONDS" has_flying a 1 || bail "preparation: a write under way"
	dmsetup resume --noudevsync "$PREFIX-a" > /dev/null 2>&1 &
	resume=$!
	wait_until "$WAIT_SECONDS" has_called $resume dm_suspend || bail "preparation: a resume"
	begin_faults failslab 100 $MANY N Y
	echo 1 > "/proc/$resume/make-it-fail"
	log_mark
	unstall disk-a
	succeeds "growth: the resume does not fail" wait_until "$WAIT_SECONDS" has_new_size
	no_faults
	wait $resume
	wait $write
	is "growth: nor does the write" "$(cat "$SCRATCH/write")" ok
	expect_log "growth: the log says what it costs" "all checkpoints are dropped"
	is "growth: there is no checkpoint" "$(message a checkpoint_list)" ""
	or_bail message a checkpoint_create three
	or_bail pattern a write 2 $(((SECTORS - 128) * 512)) 64k
	# Half of it is in the granule that was the last one.
	is "growth: a new one has what was gained" "$(origin_field a changed)" 2
}

make_origin a disk-a 128
make_origin b disk-b 128
defer remove_snapshots
test_writers
test_workers
test_tables
test_growth
finish
