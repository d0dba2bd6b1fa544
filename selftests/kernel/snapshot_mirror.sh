#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will overwrite what only one half of a mirror can read: the old data is read
# once more, from the other half, by a thread of the mirror's own, and ends there, while it
# is submitted. That thread must not become the one that lets the live write go on, which
# may have to wait for just this thread.
#
#     origin (fleece)   snap (fleece-snapshot)
#         |       +--------+        |
#       mirror (raid1)             cow
#       |          |
#     first      second
#     (error)
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=16384
BAD=8192
load_fleece
no_probing
for module in dm-raid raid1; do
	has_module $module || skip_all "needs the module $module"
done
make_arena 32
make_disk good $SECTORS
make_disk second $SECTORS
make_disk meta-first 2048
make_disk meta-second 2048
make_disk cow "$(cow_sectors 8 512)"

# With a part that cannot be read, or without.
first_table()
{
	echo "0 $BAD linear $(path_of good) 0"
	echo "$BAD 8 $1"
	echo "$((BAD + 8)) $((SECTORS - BAD - 8)) linear $(path_of good) $((BAD + 8))"
}

or_bail dm_create first "$(first_table "linear $(path_of good) $BAD")"
defer dm_remove_deferred first
# Reads go to the first one, as long as they can.
or_bail dm_create mirror "0 $SECTORS raid raid1 4 0 nosync write_mostly 1 2 \
	$(path_of meta-first) $(path_of first) $(path_of meta-second) $(path_of second)"
defer dm_remove_deferred mirror
make_origin origin mirror 8
or_bail pattern origin write 1 0 -
or_bail dmsetup load "$PREFIX-first" --table "$(first_table error)"
or_bail dmsetup resume "$PREFIX-first"
make_snapshot snap mirror cow 8
# A mirror that has had no writes for so long says so on its disks, before the next one.
sleep 1
gets "a live write over what is read from the other half" ok \
	origin write 2 $((BAD * 512)) 4k
wait_copied snap
is "nothing is lost" "$(snapshot_field snap state) $(snapshot_field snap lost)" "active 0"
gets "the snapshot has the old data" ok snap verify 1 $((BAD * 512)) 4k
gets "the origin the new" ok origin verify 2 $((BAD * 512)) 4k
finish
