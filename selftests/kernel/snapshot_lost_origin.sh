#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will remove the origin below a snapshot, and replace its table by
# another target: the snapshot breaks, because writes can no longer be seen.
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=32768
load_fleece
make_arena 64
make_disk disk $SECTORS
make_disk cow "$(cow_sectors 128 256)"

# expect_broken WHAT
expect_broken()
{
	wait_until 20 snapshot_field_is snap state broken
	is "$1: the snapshot is broken" "$(snapshot_field snap state)" broken
	is "$1: with ENODEV" "$(snapshot_field snap errno)" 19
	expect_log "$1: the log says why" "broken"
	gets "$1: nothing can be read, untouched" EIO snap read 4M 4k
	gets "$1: nothing can be read, copied" EIO snap read 0 4k
	is "$1: its maps still answer" "$(map snap changed start)" "0 16777216 0"
}

make_origin origin disk
or_bail pattern origin write 1 0 -
make_snapshot snap disk cow 128 "2 checkpoint start"
or_bail pattern origin write 2 0 64k
log_mark
succeeds "the origin can be removed" dm_remove origin
expect_broken "origin removed"
make_origin origin disk
gets "the device can be attached again" ok origin verify 2 0 64k
gets "which does not heal the snapshot" EIO snap read 0 4k
succeeds "the snapshot can be removed" dm_remove snap
is "the new origin has no snapshot" "$(status_of origin)" "128 256 0 none 0 0 -"

or_bail pattern origin write 1 0 -
make_snapshot snap disk cow 128 "2 checkpoint start"
or_bail pattern origin write 2 0 64k
log_mark
succeeds "the origin's table can be replaced" \
	replace_table origin "0 $SECTORS linear $(path_of disk) 0"
expect_broken "table replaced"
gets "the origin is what it was" ok origin verify 2 0 64k
succeeds "the snapshot can be removed again" dm_remove snap
succeeds "fleece can be put back" replace_table origin "0 $SECTORS fleece $(path_of disk) - 128"
make_snapshot snap disk cow 128
gets "and a new snapshot works" ok snap verify 2 0 64k
or_bail pattern origin write 3 0 1M
gets "as usual" ok snap verify 2 0 64k
finish
