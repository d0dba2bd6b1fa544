#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will cut the power, in effect: while somebody writes, it stops the metadata
# device and then the disk, and copies both. An origin that is started from the copies
# must say "changed" for all that differs from what each checkpoint was made of, and for
# nothing in a part of the disk that was not written.
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=32768
META_SECTORS=16384
GRANULES=256
# Only these are written: a multiple of the region.
WRITTEN=64
ROUNDS=10
load_fleece
requires_program cmp
no_probing
make_arena 128
make_disk disk $SECTORS
make_disk meta $META_SECTORS
make_disk disk-copy $SECTORS
make_disk meta-copy $META_SECTORS
or_bail pattern disk write 1 0 -
format_metadata meta $SECTORS --region 128K
# It is silent for as long as copying takes here, which is not what is tested.
set_parameter metadata_timeout_ms 300000
set_parameter metadata_settle_ms 700
make_durable_origin origin disk meta

# image_of NAME FILE
image_of()
{
	dd if="$(path_of "$1")" of="$SCRATCH/$2" bs=1M iflag=direct 2> /dev/null
}

# write_on ROUND: until it is told to stop.
write_on()
{
	local seed=$(($1 * 1000))

	while [ ! -e "$SCRATCH/stop" ]; do
		seed=$((seed + 1))
		pattern origin write $seed $((RANDOM % WRITTEN * 65536 + 4096)) 512
	done > "$SCRATCH/writes"
}

# copy NAME SECTORS: past the device, which is suspended.
copy()
{
	dd if="$ARENA" of="$(path_of "$1-copy")" bs=64k skip=$((DISK_START[$1] / 128)) \
		count=$(($2 / 128)) iflag=direct oflag=direct conv=fsync 2> /dev/null
}

# cut: nothing arrives any more, first on the metadata device: whatever reaches the disk
# before that is stopped, too, must not have needed an intent that has not arrived.
cut()
{
	stall meta
	sleep 0.3
	stall disk
	or_bail copy meta $META_SECTORS
	unstall meta
	or_bail copy disk $SECTORS
	unstall disk
}

# missed ROUND: how many granules differ from the checkpoint and are not changed since;
# and how many are changed that nobody writes to.
missed()
{
	cmp -l "$SCRATCH/image.$1" "$SCRATCH/image" |
		awk '{ print "differs", int(($1 - 1) / 65536) }' | uniq > "$SCRATCH/differs"
	maps restarted bitmap changed "r$1" | tail -n 1 | grep -o . |
		awk '{ print "changed", NR - 1, $1 }' | cat - "$SCRATCH/differs" |
		awk -v written=$WRITTEN '$1 == "changed" { changed[$2] = $3 }
			$1 == "changed" && $3 == 1 && $2 >= written { excess++ }
			$1 == "differs" && changed[$2] != 1 { missed++ }
			END { print missed + 0, excess + 0, length(changed) }'
}

judge()
{
	local round

	or_bail dm_create restarted "$(durable_table disk-copy meta-copy)"
	image_of disk-copy image
	is "round $1: all checkpoints are there and valid" \
		"$(message restarted checkpoint_list | awk '{ print $1 $5 }' | paste -sd' ')" "$expected"
	for round in $alive; do
		is "round $1: nothing is missed or invented since r$round" "$(missed "$round")" "0 0 $GRANULES"
	done
	at_least "round $1: something differs since r$1" "$(wc -l < "$SCRATCH/differs")" 1
	or_bail dm_remove restarted
}

defer dm_remove_deferred restarted
alive=
for ((i = 1; i <= ROUNDS; i++)); do
	or_bail image_of origin "image.$i"
	or_bail message origin checkpoint_create "r$i"
	alive="$alive $i"
	if [ $((i % 3)) -eq 0 ]; then
		or_bail message origin checkpoint_delete "r$((i - 1))"
		alive=$(tr ' ' '\n' <<< "$alive" | grep -vx $((i - 1)) | paste -sd' ')
	fi
	expected=$(for round in $alive; do echo "r${round}valid"; done | paste -sd' ')
	rm -f "$SCRATCH/stop" "$SCRATCH/writes"
	write_on $i &
	writer=$!
	wait_until "$WAIT_SECONDS" test -s "$SCRATCH/writes" || bail "preparation: somebody writes"
	# Cuts come before, in, and after settling; and when the first writes to most
	# regions are still to come.
	[ $((i % 2)) -eq 0 ] || sleep "$((RANDOM % 2)).$((RANDOM % 10))"
	cut
	touch "$SCRATCH/stop"
	wait $writer
	is "round $i: no write has failed" "$(grep -cv '^ok$' "$SCRATCH/writes")" 0
	judge $i
done
finish
