#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will overwrite a sector of the origin that cannot be read: the live
# write succeeds, and each snapshot loses that cluster and no other.
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=32768
# scsi_debug fails reads of 10 sectors from this one on.
BAD=4660
CLUSTER=$((BAD / 128))
load_fleece
make_discard_arena 56 opts=0
make_disk disk $SECTORS
make_disk cow "$(cow_sectors 128 256)"
make_disk cow-b "$(cow_sectors 128 256)"
make_origin origin disk
or_bail pattern origin write 1 0 -

bad_sectors()
{
	echo "$1" > /sys/bus/pseudo/drivers/scsi_debug/opts
}

make_snapshot snap disk cow 128
make_snapshot other disk cow-b 128
bad_sectors 2
defer bad_sectors 0
if pattern disk read $((BAD * 512)) 4k > /dev/null; then
	skip_all "scsi_debug makes no bad sectors"
fi
gets "reading it through the snapshot is an error, not one of access" EIO \
	snap read $((BAD * 512)) 4k
is "which does not break it" "$(snapshot_field snap state)" active
log_mark
gets "a live write over it succeeds" ok origin write 2 $((CLUSTER * 65536)) 64k
wait_copied snap
is "the snapshot lost one cluster" "$(snapshot_field snap state) $(snapshot_field snap lost)" "active 1"
like "and says why and where" "$(snapshot_field snap errno) $(snapshot_field snap sector)" "^[1-9][0-9]* [1-9]"
expect_log "so does the log" "lost|cannot be read"
is "it does not count as copied" "$(map snap copied)" "0 $((SECTORS * 512)) 0"
bad_sectors 0
gets "the lost cluster is an error for good" EIO snap read $((CLUSTER * 65536)) 64k
gets "its left neighbour is served" ok snap verify 1 0 $((CLUSTER * 65536))
gets "its right neighbour is served" ok snap verify 1 $(((CLUSTER + 1) * 65536)) -
gets "the origin has the new data" ok origin verify 2 $((CLUSTER * 65536)) 64k
is "the lost cluster is no longer accessible" "$(snapshot_field snap accessible)" 255
wait_copied other
is "the other snapshot lost it too" "$(snapshot_field other state) $(snapshot_field other lost)" \
	"active 1"
gets "there it is an error as well" EIO other read $((CLUSTER * 65536)) 64k
gets "its neighbours are served there" ok other verify 1 $(((CLUSTER + 1) * 65536)) -

# Among others, which are stored in a row: its slot gets nothing of what was in memory.
or_bail dm_remove other
or_bail dm_remove snap
or_bail pattern origin write 1 0 -
or_bail pattern cow write 7 0 -
make_snapshot snap disk cow 128
bad_sectors 2
gets "a live write over it and its neighbours succeeds" ok \
	origin write 2 $(((CLUSTER - 1) * 65536)) 192k
wait_copied snap
bad_sectors 0
is "it is lost, they are copied" "$(snapshot_field snap lost) $(copied_and_used)" "1 2 2"
gets "the left one is served" ok snap verify 1 $(((CLUSTER - 1) * 65536)) 64k
gets "the right one is served" ok snap verify 1 $(((CLUSTER + 1) * 65536)) 64k
gets "the slot between theirs has zeroes" ok cow verify zero $((1048576 + 65536)) 64k
finish
