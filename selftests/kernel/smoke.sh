#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will load the module, take a snapshot, overwrite the origin, read
# the old data from the snapshot and over NBD, release, and take all of it down.
# It is what must work on every kernel.
#
#     origin (fleece)      snap (fleece-snapshot)
#           |              |          |
#          disk  <---------+         cow          slices of one brd
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=32760		# the last cluster of 64 KiB is partial
CLUSTER=128

load_fleece
make_arena 64
make_disk disk $SECTORS
make_disk cow "$(cow_sectors $CLUSTER 256)"
make_origin origin disk
is "a new origin's status" "$(status_of origin)" "128 256 0 none 0 0 -"

or_bail pattern origin write 1 0 -
or_bail message origin checkpoint_create first
or_bail pattern origin write 2 1M 1M
is "the origin counts changes since the checkpoint" "$(status_of origin)" \
	"128 256 16 none 0 1 first"

make_snapshot snap disk cow $CLUSTER "2 checkpoint second"
is "a new snapshot's status" "$(status_of snap)" "active 0/256 128 256/256 0 0 0 0 0 0 0"
is "the origin knows its snapshot" "$(status_of origin)" "128 256 0 none 1 2 second"

or_bail pattern origin write 3 0 -
gets "the origin has the new data" ok origin verify 3 0 -
gets "the snapshot has the old data, first part" ok snap verify 1 0 1M
gets "the snapshot has the old data, changed part" ok snap verify 2 1M 1M
gets "the snapshot has the old data, the rest" ok snap verify 1 2M -
wait_copied snap
is "all clusters are copied" "$(status_of snap)" "active 256/256 128 256/256 256 0 0 0 0 0 0"
is "the change map of the snapshot" "$(map snap changed first)" \
	"0 1048576 0,1048576 1048576 1,2097152 14675968 0"

test_nbd()
{
	local fleeced=$FLEECE_TREE/userspace/fleeced/fleeced

	if [ ! -x "$fleeced" ]; then
		skip "the snapshot over NBD" "fleeced is not built"
		return
	elif ! command -v nbdcopy > /dev/null; then
		skip "the snapshot over NBD" "nbdcopy is not installed"
		return
	fi
	"$fleeced" --socket "$SCRATCH/nbd" "$(path_of snap)" 2> "$SCRATCH/fleeced" &
	server=$!
	defer stop_server
	wait_until 20 test -S "$SCRATCH/nbd" || bail "fleeced listens" "$(cat "$SCRATCH/fleeced")"
	dd if="$(path_of snap)" of="$SCRATCH/golden" bs=1M iflag=direct status=none
	succeeds "nbdcopy copies the snapshot" timeout 120 \
		nbdcopy "nbd+unix:///?socket=$SCRATCH/nbd" "$SCRATCH/image"
	succeeds "the image over NBD is that of the snapshot" \
		cmp "$SCRATCH/golden" "$SCRATCH/image"
	stop_server
	rm -f "$SCRATCH/golden" "$SCRATCH/image"
}

stop_server()
{
	[ -n "${server:-}" ] || return 0
	kill "$server" 2>/dev/null
	wait "$server"
	server=
}
test_nbd

or_bail message snap release 0 256
is "a release gives the slots back" "$(snapshot_field snap used) $(snapshot_field snap released)" \
	"254 2"
gets "released clusters cannot be read" ENODATA snap read 0 4k
gets "the others can" ok snap verify 1 128k 4k

succeeds "the snapshot can be removed" dm_remove snap
is "the origin has lost its snapshot" "$(origin_field origin snapshots)" 0
or_bail pattern origin write 4 0 1M
succeeds "the origin can be removed" dm_remove origin
gets "what was written is on the disk" ok disk verify 4 0 1M
gets "all of it" ok disk verify 3 1M -
finish
