#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will give the target metadata devices that it must refuse, each with a
# reason: of another size, of nobody, used by others, and used twice.
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=32768
load_fleece
# What needs an intent is not to be settled while this looks at it.
set_parameter metadata_settle_ms 600000
make_arena 160
make_disk disk $SECTORS
make_disk other $SECTORS
make_disk cow "$(cow_sectors 128 256)"
make_disk meta 16384
make_disk blank 16384
make_disk small 4608
make_disk tiny 2048
for name in blank small tiny; do
	or_bail dd if=/dev/zero of="$(path_of $name)" bs=64k oflag=direct \
		count=$(($(blockdev --getsz "$(path_of $name)") / 128)) conv=fsync
done
format_metadata meta $SECTORS --capacity $((SECTORS * 512))
disk=$(path_of disk)
other=$(path_of other)
meta=$(path_of meta)
INVALID="Invalid argument"
BUSY="busy"

test_unfit()
{
	refuses "no metadata" "No data|$INVALID" "metadata device .* cannot be used" \
		"0 $SECTORS fleece $disk $(path_of blank) 128"
	refuses "too small a device" "No space" "too small" "0 $SECTORS fleece $disk $(path_of tiny) 128"
	refuses "no such device" "No such|$INVALID|not found" "metadata device" \
		"0 $SECTORS fleece $disk /dev/none 128"
	refuses "another granularity" "$INVALID" "granularity" "0 $SECTORS fleece $disk $meta 256"
	refuses "a smaller origin" "$INVALID" "larger origin" "0 $((SECTORS - 8)) fleece $disk $meta 128"
	or_bail dd if="$meta" of="$(path_of small)" bs=64k count=36 iflag=direct oflag=direct conv=fsync
	refuses "a device cut off" "No space" "smaller than its metadata" \
		"0 $SECTORS fleece $disk $(path_of small) 128"
	make_disk large $((SECTORS + 8))
	refuses "a larger origin" "$INVALID" "smaller origin: load a table of the old length" \
		"0 $((SECTORS + 8)) fleece $(path_of large) $meta 128"
	refuses "the origin itself" "$INVALID" "is the origin device" "0 $SECTORS fleece $disk $disk 128"
}

# damage SECTOR...: of the metadata, so that a checksum is wrong.
damage()
{
	local sector

	for sector; do
		printf x | or_bail dd of="$meta" bs=1 seek=$((sector * 512 + 100)) \
			conv=notrunc,fsync
	done
}

# make_newer: both superblocks are what a later version may write.
make_newer()
{
	python3 - "$meta" <<-END
	import os, struct, sys
	with open(sys.argv[1], "r+b", buffering=0) as file:
	    for sector in (0, 2048):
	        file.seek(sector * 512)
	        data = bytearray(file.read(512))
	        data[16] += 1
	        crc = 0xffffffff
	        for byte in data[48:64] + struct.pack("<Q", sector) + data[4:]:
	            crc ^= byte
	            for _ in range(8):
	                crc = crc >> 1 ^ (crc & 1) * 0x82f63b78
	        data[:4] = struct.pack("<I", crc ^ 0xffffffff)
	        file.seek(sector * 512)
	        file.write(data)
	    os.fsync(file.fileno())
	END
}

test_damaged()
{
	local sector

	for sector in 0 2048; do
		format_metadata meta $SECTORS
		or_bail dm_create origin "$(durable_table disk meta)"
		or_bail message origin checkpoint_create one
		or_bail dm_remove origin
		damage $sector
		succeeds "one superblock is enough, without sector $sector" \
			dm_create origin "$(durable_table disk meta)"
		is "its checkpoint is valid, without sector $sector" \
			"$(message origin checkpoint_list | awk '{ print $1, $5 }')" "one valid"
		or_bail dm_remove origin
	done
	damage 0 2048
	refuses "both superblocks damaged" "needs cleaning" "checksum of the superblock is wrong" \
		"$(durable_table disk meta)"
	if ! command -v python3 > /dev/null; then
		skip "a later version" "python3 is not installed"
		return
	fi
	format_metadata meta $SECTORS
	or_bail make_newer
	refuses "a later version" "not supported" "its version is not known" \
		"$(durable_table disk meta)"
}

test_in_use()
{
	make_durable_origin origin disk meta
	refuses "metadata of another origin" "$BUSY" "already belongs" "0 $SECTORS fleece $other $meta 128"
	refuses "an origin as metadata device" "$BUSY" "is itself an origin" \
		"0 $SECTORS fleece $other $disk 128"
	refuses "a fleece device as metadata device" "$BUSY" "is itself an origin" \
		"0 $SECTORS fleece $other $(path_of origin) 128"
	refuses "a metadata device as origin" "$BUSY" "is the metadata device" "0 16384 fleece $meta - 128"
	refuses "a metadata device as COW device" "$BUSY" "is the metadata device" \
		"0 $SECTORS fleece-snapshot $disk $meta 128"
	make_snapshot snap disk cow 128
	refuses "a COW device as metadata device" "$BUSY" "is the COW device" \
		"0 $SECTORS fleece $other $(path_of cow) 128"
	or_bail dm_remove snap
}

# refuses_reload WHAT LOG TABLE
refuses_reload()
{
	log_mark
	fails "$1: refused" "failed" dmsetup load "$PREFIX-origin" --table "$3"
	expect_log "$1: the log says why" "$2"
}

test_reload()
{
	refuses_reload "reload without metadata" "cannot be changed" "0 $SECTORS fleece $disk - 128"
	refuses_reload "reload with another device" "cannot be changed" \
		"0 $SECTORS fleece $disk $(path_of blank) 128"
	or_bail message origin checkpoint_create one
	gets "the origin works on" ok origin write 1 0 64k
	is "its state is kept" "$(status_of origin)" "128 256 1 dirty 0 1 one"
	or_bail dm_remove origin
	or_bail dm_create origin "0 $SECTORS fleece $disk - 128"
	refuses_reload "reload with metadata" "cannot be changed" "0 $SECTORS fleece $disk $meta 128"
	or_bail dm_remove origin
}

test_capacity()
{
	make_disk longer $((SECTORS + 128))
	format_metadata meta $SECTORS --capacity $((SECTORS * 512))
	or_bail dm_create origin "0 $SECTORS fleece $(path_of longer) $meta 128"
	refuses_reload "growth above the capacity" "no room" \
		"0 $((SECTORS + 128)) fleece $(path_of longer) $meta 128"
	or_bail dm_remove origin
}

# An origin that has grown while it had no target: the way that the log tells.
test_grown()
{
	local long=$((SECTORS + 128))

	format_metadata meta $SECTORS --capacity $((long * 512))
	or_bail dm_create origin "0 $SECTORS fleece $(path_of longer) $meta 128"
	or_bail message origin checkpoint_create one
	or_bail pattern origin write 1 0 64k
	or_bail dm_remove origin
	refuses "grown meanwhile" "$INVALID" "smaller origin: load a table of the old length" \
		"0 $long fleece $(path_of longer) $meta 128"
	or_bail dm_create origin "0 $SECTORS fleece $(path_of longer) $meta 128"
	is "grown meanwhile: with the old length it is as it was" "$(map origin changed one)" \
		"0 65536 1,65536 16711680 0"
	log_mark
	or_bail replace_table origin "0 $long fleece $(path_of longer) $meta 128"
	expect_log "grown meanwhile: the log says what it costs" \
		"grown from $SECTORS to $long sectors: what it gained counts as changed"
	is "grown meanwhile: what it gained counts as changed" "$(map origin changed one)" \
		"0 65536 1,65536 16711680 0,16777216 65536 1"
	is "grown meanwhile: the checkpoint is valid" \
		"$(message origin checkpoint_list | awk '{ print $1, $5 }')" "one valid"
	or_bail dm_remove origin
}

test_full()
{
	format_metadata meta $SECTORS --checkpoints 2
	or_bail dm_create origin "0 $SECTORS fleece $disk $meta 128"
	or_bail message origin checkpoint_create one
	or_bail message origin checkpoint_create two
	fails "a checkpoint too many" "No space" message origin checkpoint_create three
	fails "a name in use" "File exists" message origin checkpoint_create two
	or_bail message origin checkpoint_delete one
	succeeds "there is room again" message origin checkpoint_create three
}

# A table that was never resumed writes nothing.
test_untouched()
{
	local before

	before=$(sha256sum < "$meta")
	or_bail dmsetup create "$PREFIX-origin" --notable
	or_bail dmsetup load "$PREFIX-origin" --table "0 $SECTORS fleece $disk $meta 128"
	or_bail dm_remove origin
	is "loading alone changes nothing" "$(sha256sum < "$meta")" "$before"
}

test_unfit
test_untouched
test_in_use
test_reload
test_capacity
test_grown
test_full
or_bail dm_remove origin
test_damaged
finish
