#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will release parts of a snapshot by message and by discard: slots
# come back, reads get ENODATA, later overwrites copy nothing, parts add up.
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=32760		# the last cluster of 64 KiB has 120 sectors
load_fleece
make_arena 64
make_disk disk $SECTORS
make_disk cow "$(cow_sectors 128 256)"
make_disk small "$(cow_sectors 128 8)"
make_origin origin disk
or_bail pattern origin write 1 0 -

# release WAY OFFSET LENGTH, in bytes
release()
{
	if [ "$1" = message ]; then
		message snap release $(($2 / 512)) $(($3 / 512)) > /dev/null && echo ok
	else
		pattern snap discard "$2" "$3"
	fi
}

denied()
{
	map snap accessible | tr , '\n' | grep '0$' | paste -sd,
}

# test_release WAY
test_release()
{
	local cluster=65536

	make_snapshot snap disk cow 128 "1 release_on_discard"
	or_bail pattern origin write 2 1M 1M
	wait_copied snap
	is "$1: a copied range is released" "$(release "$1" 1048576 $((4 * cluster)))" ok
	is "$1: its slots come back" "$(status_of snap)" "active 12/256 128 252/256 16 4 0 0 0 0 0"
	gets "$1: it cannot be read" ENODATA snap read 1M 4k
	gets "$1: nor a range that touches it" ENODATA snap read $((1048576 - 4096)) 8k
	gets "$1: the rest can" ok snap verify 1 $((1048576 + 4 * cluster)) 2M
	is "$1: once more is a success" "$(release "$1" 1048576 $((4 * cluster)))" ok
	is "$1: that changes nothing" "$(snapshot_field snap released) $(snapshot_field snap used)" "4 12"

	is "$1: an uncopied range is released" "$(release "$1" 4194304 $cluster)" ok
	or_bail pattern origin write 2 4M 64k
	wait_copied snap
	is "$1: overwriting it copies nothing" "$(snapshot_field snap used)" 12
	gets "$1: it cannot be read either" ENODATA snap read 4M 64k

	is "$1: half a cluster is accepted" "$(release "$1" 5242880 $((cluster / 2)))" ok
	gets "$1: and the cluster stays" ok snap verify 1 5M 64k
	is "$1: its other half" "$(release "$1" $((5242880 + cluster / 2)) $((cluster / 2)))" ok
	gets "$1: and it is gone" ENODATA snap read 5M 4k
	is "$1: inwards from both sides" "$(release "$1" $((6291456 + 32768)) $((2 * cluster)))" ok
	gets "$1: left neighbour stays" ok snap verify 1 6M 64k
	gets "$1: right neighbour stays" ok snap verify 1 $((6291456 + 2 * cluster)) 64k
	gets "$1: the middle is gone" ENODATA snap read $((6291456 + cluster)) 64k
	is "$1: one sector short of a cluster" "$(release "$1" 7340032 $((cluster - 512)))" ok
	gets "$1: is not enough" ok snap verify 1 7M 64k
	is "$1: the last sector" "$(release "$1" $((7340032 + cluster - 512)) 512)" ok
	gets "$1: is" ENODATA snap read 7M 4k
	is "$1: the partial last cluster" "$(release "$1" $((255 * cluster)) $((120 * 512)))" ok
	gets "$1: is gone too" ENODATA snap read $((255 * cluster)) 4k
	is "$1: the map says what is gone" "$(denied)" \
		"1048576 262144 0,4194304 65536 0,5242880 65536 0,6356992 65536 0,7340032 65536 0,16711680 61440 0"
	is "$1: and keeps the rules" "$(maps snap rules accessible)" ok
	is "$1: everything" "$(release "$1" 0 $((SECTORS * 512)))" ok
	is "$1: nothing is left" "$(status_of snap | cut -d' ' -f2,4)" "0/256 0/256"
	or_bail pattern origin write 3 0 -
	is "$1: overwriting it all copies nothing" "$(status_of snap | cut -d' ' -f2,4)" "0/256 0/256"
	or_bail dm_remove snap
	or_bail pattern origin write 1 0 -
}

# More than the COW device has room for, released as it goes.
test_reuse()
{
	local i

	make_snapshot snap disk small 128
	for ((i = 0; i < 40; i += 8)); do
		or_bail pattern origin write 2 $((i * 65536)) 512k
		wait_copied snap
		gets "slots are used again: clusters from $i" ok snap verify 1 $((i * 65536)) 512k
		or_bail message snap release $((i * 128)) 1024
	done
	is "the snapshot is whole" "$(status_of snap)" "active 0/8 128 216/256 40 40 0 0 0 0 0"
	gets "what was not released is old" ok snap verify 1 $((40 * 65536)) -
	or_bail dm_remove snap
	or_bail pattern origin write 1 0 3M
}

# test_in_flight STAGING SECTOR SECTORS: a release while a copy is under way in its range
# wins, and nobody waits for that copy any more.
test_in_flight()
{
	local what="staging $1, $3 sectors"

	make_snapshot snap disk cow 128 "4 staging $1 cbw_timeout 0"
	defer dmsetup resume "$PREFIX-cow"
	stall cow
	in_background write pattern origin write 2 1M 64k
	wait_until 20 copy_is_under_way || bail "$what: the copy is under way"
	succeeds "$what: its cluster can be released" message snap release "$2" "$3"
	gets "$what: and cannot be read" ENODATA snap read 1M 64k
	wait_until 30 test -s "$SCRATCH/write"
	is "$what: the write succeeds, and does not wait for the copy" "$(cat "$SCRATCH/write")" ok
	unstall cow
	wait $background
	wait_copied snap
	wait_until 20 snapshot_field_is snap used 0
	is "$what: the slot comes back" \
		"$(snapshot_field snap state) $(snapshot_field snap used)" "active 0"
	gets "$what: it stays released" ENODATA snap read 1M 64k
	gets "$what: the next one is served" ok snap verify 1 $((($2 + $3) * 512)) 64k
	or_bail dm_remove snap
	or_bail pattern origin write 1 0 2M
}

# shellcheck disable=SC2317 # called by wait_until
copy_is_under_way()
{
	[ "$(($(snapshot_field snap waiting) + $(snapshot_field snap staged)))" -gt 0 ]
}

test_release message
test_release discard
test_reuse
# One cluster, and all that have their bits in one word.
for staging in 0 65536; do
	test_in_flight $staging 2048 128
	test_in_flight $staging 0 8192
done
finish
