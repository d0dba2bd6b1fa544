#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will make checkpoints together with snapshots and take snapshots
# since them, as an incremental backup does: each change is in exactly one.
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=32768
CLUSTER=128
load_fleece
make_arena 64
make_disk disk $SECTORS
make_disk cow "$(cow_sectors $CLUSTER 256)"
make_origin origin disk 8

# A granule may go far beyond the end of the origin, where there are no clusters.
test_short_granule()
{
	local sectors=8200

	make_disk odd $sectors
	make_disk odd-cow "$(cow_sectors 8 16)"
	make_origin odd-origin odd 32768
	or_bail message odd-origin checkpoint_create one
	or_bail pattern odd-origin write 1 0 -
	make_snapshot odd-snap odd odd-cow 8 "2 since one"
	is "a granule larger than the origin: all clusters are accessible, and no more" \
		"$(snapshot_field odd-snap accessible)/$(snapshot_field odd-snap clusters)" \
		"$((sectors / 8))/$((sectors / 8))"
	gets "a granule larger than the origin: they can be read" ok odd-snap verify 1 0 -
	or_bail dm_remove odd-snap
	or_bail dm_remove odd-origin
}

or_bail pattern origin write 1 0 -
make_snapshot snap disk cow $CLUSTER "2 checkpoint monday"
is "the origin has the checkpoint" "$(message origin checkpoint_list | cut -d' ' -f1)" monday
is "the snapshot has it too, marked as its own" \
	"$(maps snap checkpoints | cut -d' ' -f1,4)" "monday 1"
is "with the same uuid" "$(maps snap checkpoints | cut -d' ' -f2)" \
	"$(message origin checkpoint_list | cut -d' ' -f2)"
is "nothing had changed since" "$(map snap changed monday)" "0 16777216 0"

or_bail pattern origin write 2 1M 4k
or_bail pattern origin write 2 $((2 * 1048576 + 61440)) 8k
is "the origin's map has what changed" "$(map origin changed monday | tr , '\n' | grep '1$' | paste -sd,)" \
	"1048576 4096 1,2158592 8192 1"
is "the snapshot's has not moved" "$(map snap changed monday)" "0 16777216 0"
or_bail dm_remove snap

make_snapshot snap disk cow $CLUSTER "4 since monday checkpoint tuesday"
is "the snapshot since it serves the clusters concerned" "$(map snap accessible | tr , '\n' | grep '1$' | paste -sd,)" \
	"1048576 65536 1,2097152 131072 1"
is "and counts them" "$(status_of snap)" "active 0/256 128 3/256 0 0 0 0 0 0 0"
is "and says since when" "$(maps snap info | grep since)" "since monday"
is "its change map is finer than its clusters" "$(map snap changed monday | tr , '\n' | grep '1$' | paste -sd,)" \
	"1048576 4096 1,2158592 8192 1"
is "the next one begins empty" "$(origin_field origin changed)" 0
gets "changed data is served" ok snap verify 2 1M 4k
gets "with the rest of its cluster" ok snap verify 1 $((1048576 + 4096)) 60k
gets "other clusters are not" ENODATA snap read 0 4k
gets "nor a range that touches one" ENODATA snap read $((1048576 - 4096)) 8k

or_bail pattern origin write 3 0 1M
or_bail pattern origin write 3 1M 64k
wait_copied snap
is "only accessible clusters are copied" "$(snapshot_field snap used) $(snapshot_field snap copied)" "1 1"
gets "the copied cluster is served" ok snap verify 2 1M 4k
gets "clean clusters stay refused" ENODATA snap read 0 4k
is "the copies are in the map" "$(map snap copied | tr , '\n' | grep '1$' | paste -sd,)" "1048576 65536 1"
for name in monday tuesday; do
	is "the change map since $name keeps the rules" "$(maps snap rules changed $name)" ok
done
is "the access map keeps the rules" "$(maps snap rules accessible)" ok
is "the map of copies keeps the rules" "$(maps snap rules copied)" ok
is "the new checkpoint has later writes only" "$(map origin changed tuesday)" \
	"0 1114112 1,1114112 15663104 0"
test_short_granule
finish
