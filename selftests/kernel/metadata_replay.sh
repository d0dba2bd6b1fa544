#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will record all that is written to an origin and to its metadata device, by
# dm-log-writes, while checkpoints and snapshots come and go, the origin is written to,
# suspended, and restarted; at first both have a cache, then only one of them has, so that
# the flush of one does not make up for a missing flush of the other. Then replay.c cuts
# the power at thousands of places in this record, and a real target is started from some
# of what is left.
#
#     origin (fleece)
#      |          \                              FLEECE_REPLAY_SECONDS (default 25)
#     disk        meta (at times delayed)        FLEECE_REPLAY_POINTS (default 4000, 0: all)
#        \        /                              FLEECE_REPLAY_CACHES (default all three)
#         recorded (log-writes) --> $FLEECE_DISKS
#            |
#           base
#
# Which missing flush is noticed with which choice of caches: replay_test.c.
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=524288
META_SECTORS=6144
GRANULARITY=8
WRITERS=4
# At most at a time, and at least with each choice of caches.
CHECKPOINTS=6
MADE=4
SAMPLES=8
seconds=${FLEECE_REPLAY_SECONDS:-25}
points=${FLEECE_REPLAY_POINTS:-4000}
read -ra choices <<< "${FLEECE_REPLAY_CACHES:-both origin metadata}"
seed=${FLEECE_REPLAY_SEED:-$(($(now_ms) % 30000))}
RANDOM=$seed

load_fleece
requires_tool scribble
requires_tool replay
has_module dm-log-writes || skip_all "needs the module dm-log-writes"
has_module dm-delay || skip_all "needs the module dm-delay"
record=${FLEECE_DISKS:-}
record=${record%% *}
[ -b "$record" ] || skip_all "needs a disk for the record in FLEECE_DISKS"
no_probing
set_parameter metadata_timeout_ms 300000
set_parameter metadata_settle_ms 150
make_arena 300
make_disk base $((META_SECTORS + SECTORS))
make_disk cow 16384

# meta_table MS: the metadata device, whose writes take so long.
meta_table()
{
	local recorded

	recorded=$(path_of recorded)
	if [ "$1" -eq 0 ]; then
		echo "0 $META_SECTORS linear $recorded 0"
	else
		echo "0 $META_SECTORS delay $recorded 0 0 $recorded 0 $1"
	fi
}

mark()
{
	or_bail message recorded mark "$1"
}

# The record has what was written when the next flush comes, and if the metadata device
# has no cache, its own flushes are not among them.
order_record()
{
	[ "$caches" != origin ] || mark ordering
	or_bail pattern recorded flush
}

# mark_done MARK: of what was promised, behind all that was written for it.
mark_done()
{
	[ "$caches" != origin ] || order_record
	mark "$1"
}

# set_cache NAME: whether the kernel sends flushes to a device, once it has a new table.
set_cache()
{
	local how="write back"

	case $1-$caches in
	disk-metadata | meta-origin) how="write through" ;;
	esac
	or_bail write_cache "$1" "$how"
}

write_cache()
{
	local device

	device=$(basename "$(readlink -f "$(path_of "$1")")")
	echo "$2" > "/sys/block/$device/queue/write_cache" &&
		[ "$(cat "/sys/block/$device/queue/write_cache")" = "$2" ]
}

start_writers()
{
	seed=$((seed + 1))
	mkfifo "$SCRATCH/stop.$seed"
	"$FLEECE_TEST_BIN/scribble" "$(path_of origin)" $WRITERS $seed \
		< "$SCRATCH/stop.$seed" > "$SCRATCH/writers" 2>&1 &
	writers=$!
	exec 7> "$SCRATCH/stop.$seed"
}

stop_writers()
{
	[ -n "$writers" ] || return 0
	exec 7>&-
	wait "$writers" || bail "no write fails" "$(cat "$SCRATCH/writers")"
	nr_writes=$((nr_writes + $(cut -d' ' -f1 "$SCRATCH/writers")))
	writers=
}

# settle_down: all that was written is in the record, and the worker of the metadata,
# for which a deletion waits, is not in the middle of anything.
settle_down()
{
	order_record
	! message origin checkpoint_delete none > /dev/null 2>&1 ||
		bail "preparation: there is no checkpoint of this name"
}

# hush: nothing is on its way to the origin, until it is resumed.
hush()
{
	or_bail dmsetup suspend --nolockfs "$PREFIX-origin"
	settle_down
}

wake()
{
	or_bail dmsetup resume "$PREFIX-origin"
}

is_listed_or_over()
{
	message origin checkpoint_list | grep -q "^$1 " || ! kill -0 "$2" 2> /dev/null
}

# create NAME COMMAND...: makes a checkpoint while writes go on, or, every other time,
# at a moment when none is on its way; then they go on as soon as it is past, while the
# checkpoint becomes durable.
create()
{
	if [ $((RANDOM % 2)) -eq 0 ]; then
		mark "create:$1"
		or_bail "${@:2}"
	else
		hush
		mark "moment:$1"
		"${@:2}" > "$SCRATCH/create" 2>&1 &
		wait_until "$WAIT_SECONDS" is_listed_or_over "$1" $! || bail "preparation: $1"
		wake
		wait $! || bail "preparation: $1" "$(cat "$SCRATCH/create")"
	fi
	mark_done "created:$1"
	alive="$alive $1"
}

create_checkpoint()
{
	number=$((number + 1))
	create c$number message origin checkpoint_create c$number
}

create_snapshot()
{
	number=$((number + 1))
	create c$number dm_create snap "$(snapshot_table disk cow 128 "2 checkpoint c$number")"
	or_bail dm_remove snap
}

delete_one()
{
	local names name

	read -ra names <<< "$alive"
	[ ${#names[@]} -gt 0 ] || return 0
	name=${names[RANDOM % ${#names[@]}]}
	mark "deleting:$name"
	or_bail message origin checkpoint_delete "$name"
	mark_done "deleted:$name"
	alive=$(tr ' ' '\n' <<< "$alive" | grep -vx "$name" | paste -sd' ')
}

is_clean()
{
	[ "$(origin_field origin metadata)" = clean ]
}

come_to_rest()
{
	stop_writers
	wait_until "$WAIT_SECONDS" is_clean || bail "all intents are taken back"
	settle_down
	mark settled
}

restart()
{
	stop_writers
	or_bail dm_remove origin
	order_record
	mark settled
	or_bail replace_table meta "$(meta_table $((RANDOM % 3 * 4)))"
	set_cache meta
	or_bail dm_create origin "$(durable_table disk meta $GRANULARITY)"
}

step()
{
	[ -n "$writers" ] || start_writers
	sleep 0.$((RANDOM % 4))
	[ "$(wc -w <<< "$alive")" -lt $CHECKPOINTS ] || delete_one
	case $((RANDOM % 10)) in
	0 | 1 | 2) create_checkpoint ;;
	3 | 4) create_snapshot ;;
	5) delete_one ;;
	6)
		hush
		mark quiet
		wake
		;;
	7) come_to_rest ;;
	8) restart ;;
	esac
}

# has_room PERCENT: is the disk of the record used to less than that?
has_room()
{
	[ "$(status_of recorded | cut -d' ' -f2)" -lt $(($(blockdev --getsz "$record") * $1 / 100)) ]
}

# record_with CACHES PERCENT: who has one: both, origin or metadata; and how much of the
# record may be in use then.
record_with()
{
	local end=$(($(now_ms) + seconds * 1000 / ${#choices[@]})) made=$number

	caches=$1
	mark "cache:$caches"
	set_cache disk
	set_cache meta
	or_bail dm_create origin "$(durable_table disk meta $GRANULARITY)"
	# However slow the machine is, something shall have happened.
	while { [ "$(now_ms)" -lt $end ] || [ $number -lt $((made + MADE)) ]; } && has_room "$2"; do
		step
	done
	[ $number -gt $made ] || bail "preparation: no room for a record with cache $caches"
	stop_writers
	or_bail dm_remove origin
	order_record
	mark settled
}

record_all()
{
	local i

	or_bail dm_create recorded "0 $((META_SECTORS + SECTORS)) log-writes $(path_of base) $record"
	defer dm_remove_deferred recorded
	or_bail dm_create disk "0 $SECTORS linear $(path_of recorded) $META_SECTORS"
	defer dm_remove_deferred disk
	or_bail dm_create meta "$(meta_table 0)"
	defer dm_remove_deferred meta
	defer dm_remove_deferred origin
	defer stop_writers
	for ((i = 0; i < ${#choices[@]}; i++)); do
		record_with "${choices[i]}" $((90 * (i + 1) / ${#choices[@]}))
	done
	or_bail dm_remove meta
	or_bail dm_remove disk
	mark end
	or_bail dm_remove recorded
	or_bail blockdev --flushbufs "$record"
}

# start_from NUMBER: a real target on what was kept of a power cut.
start_from()
{
	local name bits expected="" found=""

	or_bail dd if="$SCRATCH/$1.meta" of="$(path_of base)" bs=64k oflag=direct conv=notrunc
	or_bail dd if="$SCRATCH/$1.head" of="$(path_of base)" bs=4k oflag=direct conv=notrunc \
		seek=$((META_SECTORS / 8))
	or_bail dm_create origin "$(durable_table disk meta $GRANULARITY)"
	while read -r name bits; do
		expected="$expected $name:$(md5sum <<< "$bits" | cut -c1-32)"
		found="$found $name:$(maps origin bitmap changed "$name" | tail -n 1 | md5sum | cut -c1-32)"
	done < "$SCRATCH/$1.maps"
	is "start $1: the target finds the same" \
		"$(message origin checkpoint_list | awk '{ printf " %s", $1 }')$found" \
		"$(cut -d' ' -f1 "$SCRATCH/$1.maps" | awk '{ printf " %s", $1 }')$expected"
	or_bail dm_remove origin
}

start_samples()
{
	local number

	or_bail dm_create meta "0 $META_SECTORS linear $(path_of base) 0"
	or_bail dm_create disk "0 $SECTORS linear $(path_of base) $META_SECTORS"
	for ((number = 1; number <= SAMPLES; number++)); do
		[ -e "$SCRATCH/$number.maps" ] || break
		start_from $number
	done
	at_least "some were started" $((number - 1)) $((SAMPLES / 2))
}

note "seed $seed"
or_bail "$FLEECE_TREE/userspace/fleece/fleece" metadata create "$(path_of base)" --force \
	--origin-size $((SECTORS * 512)) --capacity $((SECTORS * 512)) --granularity 4K \
	--region 64K --checkpoints $((CHECKPOINTS + 1))
or_bail dd if="$(path_of base)" of="$SCRATCH/meta" bs=64k count=$((META_SECTORS / 128)) iflag=direct
or_bail dd if="$(path_of base)" of="$SCRATCH/head" bs=4k skip=$((META_SECTORS / 8)) count=32 iflag=direct
caches=both
writers=
nr_writes=0
number=0
alive=
record_all
note "$nr_writes writes, $number checkpoints"
if "$FLEECE_TEST_BIN/replay" --log "$record" --meta-image "$SCRATCH/meta" \
	--head-image "$SCRATCH/head" --meta-sectors $META_SECTORS --origin-sectors $SECTORS \
	--granule $GRANULARITY --writers $WRITERS --points "$points" --seed "$seed" \
	--keep "$SCRATCH" --kept $SAMPLES > "$SCRATCH/replay" 2>&1; then
	ok "wherever the power is cut, nothing is missed and nothing invented"
	cat "$SCRATCH/replay"
else
	not_ok "wherever the power is cut, nothing is missed and nothing invented" \
		"$(tail -n 20 "$SCRATCH/replay")"
fi
start_samples
finish
