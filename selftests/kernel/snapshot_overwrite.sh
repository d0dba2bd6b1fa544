#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will overwrite an origin around cluster borders, in all sizes of
# clusters and with little, no and much staging, and read the old data.
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=81912		# 39 MiB and 61440 bytes: partial clusters of all sizes
load_fleece
make_arena 160
make_disk disk $SECTORS
make_disk cow $((2048 + 98304 + 8))
make_origin origin disk
or_bail pattern origin write 1 0 -

# Four writes: a whole cluster of 64 KiB, astride to the left and to the right
# of what was written before, and one next to the end.
test_borders()
{
	or_bail pattern origin write 2 0 64k
	or_bail pattern origin write 3 1M 64k
	make_snapshot snap disk cow 128
	or_bail pattern origin write 4 0 64k
	or_bail pattern origin write 4 $((1048576 - 32768)) 64k
	or_bail pattern origin write 4 $((33554432 + 32768)) 64k
	or_bail pattern origin write 4 $((SECTORS * 512 - 4096)) 4k
	wait_copied snap
	is "six clusters are copied" "$(copied_and_used)" "6 6"
	gets "old data, whole cluster" ok snap verify 2 0 64k
	gets "old data, left of the border" ok snap verify 1 $((1048576 - 65536)) 64k
	gets "old data, right of the border" ok snap verify 3 1M 64k
	gets "old data, two clusters" ok snap verify 1 32M 128k
	gets "old data, partial last cluster" ok snap verify 1 $((SECTORS * 512 - 65536)) -
	or_bail pattern origin write 5 0 64k
	or_bail pattern origin write 5 1M 4k
	wait_copied snap
	is "overwriting again copies nothing" "$(snapshot_field snap copied)" 6
	gets "the origin has the new data" ok origin verify 4 $((33554432 + 32768)) 64k
	gets "the origin keeps the rest" ok origin verify 3 $((1048576 + 32768)) 32k
	is "the map of copies" "$(map snap copied | tr , '\n' | grep -c '1$')" 4
	or_bail dm_remove snap
	gets "without the snapshot the origin is the same" ok origin verify 5 0 64k
	gets "to the end" ok origin verify 4 $((SECTORS * 512 - 4096)) -
	or_bail pattern origin write 1 0 64k
	or_bail pattern origin write 1 $((1048576 - 65536)) 192k
	or_bail pattern origin write 1 32M 192k
	or_bail pattern origin write 1 $((SECTORS * 512 - 4096)) -
}

# test_size CLUSTER STAGING
test_size()
{
	local clusters=$(((SECTORS + $1 - 1) / $1))

	make_snapshot snap disk cow "$1" "2 staging $2"
	is "cluster $1 staging $2: number of clusters" "$(snapshot_field snap clusters)" $clusters
	or_bail pattern origin write 6 4k 8k
	or_bail pattern origin write 6 $((3 * 1048576 - 512)) 1024
	or_bail pattern origin write 6 7M 3M
	or_bail pattern origin write 6 39M -
	gets "cluster $1 staging $2: old data across written and unwritten" ok snap verify 1 0 12M
	gets "cluster $1 staging $2: old data, odd range" ok snap verify 1 $((3 * 1048576 - 1536)) 4608
	gets "cluster $1 staging $2: old data, one sector" ok snap verify 1 $((3 * 1048576)) 512
	gets "cluster $1 staging $2: old data at the end" ok snap verify 1 38M -
	wait_copied snap
	gets "cluster $1 staging $2: old data after the copies" ok snap verify 1 0 -
	gets "cluster $1 staging $2: new data" ok origin verify 6 7M 3M
	is "cluster $1 staging $2: still active" "$(snapshot_field snap state) $(snapshot_field snap errno)" "active 0"
	or_bail dm_remove snap
	or_bail pattern origin write 1 0 12M
	or_bail pattern origin write 1 39M -
}

# direct NAME: its first MiB, as it is on the device.
direct()
{
	dd if="$(path_of "$1")" bs=1M count=1 iflag=direct status=none
}

# The superblock of a filesystem that is copied must not make the COW device look like one.
test_header()
{
	if ! command -v mkfs.ext4 > /dev/null; then
		skip "a filesystem whose superblock is copied" "mkfs.ext4 is not installed"
		return
	fi
	or_bail mkfs.ext4 -q -F "$(path_of origin)"
	or_bail pattern cow write 9 0 2M
	make_snapshot snap disk cow 128
	or_bail pattern origin write 8 0 64k
	wait_copied snap
	printf 'dm-fleece COW device\n' > "$SCRATCH/header"
	truncate -s 1M "$SCRATCH/header"
	succeeds "the COW device begins with a header, and zeroes up to 1 MiB" \
		cmp <(direct cow) "$SCRATCH/header"
	like "a filesystem is found on the snapshot" "$(blkid -p "$(path_of snap)")" 'TYPE="ext4"'
	is "and nothing on the COW device" "$(blkid -p "$(path_of cow)")" ""
	or_bail dm_remove snap
}

test_borders
test_header
or_bail pattern origin write 1 0 -
test_size 8 65536
test_size 16 0
test_size 64 64
test_size 128 128
test_size 2048 0
test_size 2048 65536
test_size 32768 0
test_size 32768 1024
finish
