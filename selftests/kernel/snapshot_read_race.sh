#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will let the data move while a snapshot read is under way: its
# cluster is released and the slot used again, the snapshot breaks, the origin
# goes away. The read gets the old data or an error, never other data.
#
#     origin (fleece)   snap (fleece-snapshot)
#         |       +--------+        |
#     slow-disk (delay)         slow-cow (delay)     reads wait, writes do not
#         |                         |
#       disk                       cow
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=16384
# So long a read is under way: until set_delay sends it on.
DELAY_MS=600000
load_fleece
no_probing
has_module dm-delay || skip_all "needs the module dm-delay"
make_arena 48
make_disk disk $SECTORS
make_disk cow "$(cow_sectors 128 2)"

# make_slow NAME DISK: a device that can be made slow.
make_slow()
{
	or_bail dm_create "$1" "0 $(blockdev --getsz "$(path_of "$2")") linear $(path_of "$2") 0"
	defer dm_remove_deferred "$1"
	defer set_delay "$1" "$2" 0
}

# set_delay NAME DISK MS: from now on, reads take that long. Those under way are sent on.
# shellcheck disable=SC2317 # called by or_bail
set_delay()
{
	local disk

	disk=$(path_of "$2")
	dmsetup suspend --nolockfs "$PREFIX-$1" &&
		dmsetup load "$PREFIX-$1" --table "0 $(blockdev --getsz "$disk") delay $disk 0 $3 $disk 0 0" &&
		dmsetup resume "$PREFIX-$1"
}

read_in_background()
{
	pattern snap verify 1 "$1" "$2" > "$SCRATCH/read" 2>&1 &
	reader=$!
	wait_until 10 snapshot_is_busy || bail "$3: the read is under way"
}

# A bio counts as in flight from when the target has sent it on.
# shellcheck disable=SC2317 # called by wait_until
snapshot_is_busy()
{
	local node

	node=$(readlink -f "$(path_of snap)")
	awk '$1 > 0 { busy = 1 } END { exit !busy }' "/sys/block/${node##*/}/inflight"
}

prepare()
{
	make_origin origin "$1"
	or_bail pattern origin write 1 0 -
	make_snapshot snap "$1" slow-cow 128 "1 release_on_discard"
	or_bail pattern origin write 2 0 64k
	wait_copied snap
}

# overtake_read LENGTH WHAT: what is being read has been released, and this gets its slots.
overtake_read()
{
	or_bail pattern origin write 2 1M "$1"
	wait_copied snap
	is "$2 was used again while the read was under way" \
		"$(snapshot_field snap used) $(kill -0 $reader && echo running)" "2 running"
	or_bail set_delay slow-cow cow 0
	wait $reader
}

# The slot of a released cluster gets another cluster's data.
test_reused_slot()
{
	prepare disk
	is "one slot is used" "$(snapshot_field snap used)" 1
	or_bail set_delay slow-cow cow $DELAY_MS
	read_in_background 0 64k "slot"
	or_bail message snap release 0 128
	# Two copies for two slots: one of them is that of the read.
	overtake_read 128k "the slot"
	like "a read from a slot that was used again" "$(cat "$SCRATCH/read")" "^(ok|ENODATA)$"
	gets "afterwards the cluster is refused" ENODATA snap read 0 64k
	or_bail dm_remove snap
	or_bail dm_remove origin
}

# Of two slots that are read at once the second one gets another cluster's data.
test_reused_second_slot()
{
	prepare disk
	or_bail pattern origin write 2 64k 64k
	wait_copied snap
	or_bail set_delay slow-cow cow $DELAY_MS
	read_in_background 0 128k "second slot"
	or_bail message snap release 128 128
	# There is no other slot for it.
	overtake_read 64k "the second slot of two"
	is "a read from two slots, the second of which was used again" \
		"$(cat "$SCRATCH/read")" ENODATA
	gets "afterwards the first one is read" ok snap verify 1 0 64k
	or_bail dm_remove snap
	or_bail dm_remove origin
}

test_broken()
{
	prepare disk
	or_bail set_delay slow-cow cow $DELAY_MS
	read_in_background 0 64k "break"
	or_bail pattern origin write 2 1M 512k
	is "the snapshot broke while the read was under way" \
		"$(snapshot_field snap state) $(kill -0 $reader && echo running)" "broken running"
	or_bail set_delay slow-cow cow 0
	wait $reader
	is "a read of a snapshot that broke meanwhile" "$(cat "$SCRATCH/read")" EIO
	or_bail dm_remove snap
	or_bail dm_remove origin
}

# Nobody sees the writes any more: what the read finds may be newer.
test_lost_origin()
{
	prepare slow-disk
	or_bail set_delay slow-disk disk $DELAY_MS
	read_in_background 1M 64k "origin"
	or_bail dm_remove origin
	or_bail pattern disk write 3 1M 64k
	is "the origin changed while the read was under way" "$(kill -0 $reader && echo running)" running
	or_bail set_delay slow-disk disk 0
	wait $reader
	is "a read of a snapshot whose origin has gone" "$(cat "$SCRATCH/read")" EIO
	or_bail dm_remove snap
}

# fio_on NAME OPTION...
fio_on()
{
	fio --name=job --filename="$(path_of "$1")" --size=$((SECTORS * 512)) --bs=4k --direct=1 \
		--ioengine=libaio --iodepth=32 --output="$SCRATCH/fio-$1" "${@:2}"
}

# The disk's queue merges what a reader asks for at once, if nothing of device-mapper lies
# between it and the snapshot's target; and of such a request some reads must be repeated.
test_merged()
{
	local round queue

	if ! command -v fio > /dev/null || ! make_plain queue $SECTORS irqmode=2 completion_nsec=4000000; then
		skip "reads that were merged" "there is no fio, or no null_blk with memory"
		return
	fi
	make_origin origin queue 8
	or_bail fio_on origin --rw=write --verify=pattern --verify_pattern=%o --do_verify=0
	queue=$(path_of queue)
	make_disk wide "$(cow_sectors 8 $((SECTORS / 8)))"
	for round in 1 2 3; do
		make_snapshot snap queue wide 8
		fio_on origin --rw=randwrite --zero_buffers &
		fio_on snap --rw=read --loops=3 --verify=pattern --verify_pattern=%o --verify_fatal=1 \
			--iodepth_batch_submit=16 --iodepth_batch_complete_min=16
		is "$round: reads that were merged, while what they read was copied" $? 0
		wait
		or_bail dm_remove snap
		or_bail fio_on origin --rw=write --verify=pattern --verify_pattern=%o --do_verify=0
	done
	at_least "they were merged" "$(awk '{ print $2 }' "/sys/block/${queue##*/}/stat")" 1000
	or_bail dm_remove origin
}

make_slow slow-cow cow
make_slow slow-disk disk
test_reused_slot
test_reused_second_slot
test_broken
test_lost_origin
test_merged
finish
