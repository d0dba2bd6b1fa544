#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will let the COW device fail in writing and in reading: the snapshot
# breaks or its reads fail, and no live write does.
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=32768
load_fleece
make_arena 64
make_disk disk $SECTORS
make_disk cow "$(cow_sectors 128 256)"
make_origin origin disk
or_bail pattern origin write 1 0 -
cow_size=$(blockdev --getsz "$(path_of cow)")
good_cow=$(slice_table cow)

# test_write_error NAME STAGING TABLE
test_write_error()
{
	or_bail replace_table cow "$good_cow"
	make_snapshot snap disk cow 128 "2 staging $2"
	or_bail pattern origin write 2 0 64k
	wait_copied snap
	or_bail replace_table cow "$3"
	log_mark
	gets "$1, staging $2: the live write succeeds" ok origin write 2 1M 64k
	wait_until 30 snapshot_field_is snap state broken
	is "$1, staging $2: the snapshot is broken with EIO" \
		"$(snapshot_field snap state) $(snapshot_field snap errno) $(snapshot_field snap sector)" \
		"broken 5 2048"
	expect_log "$1, staging $2: the log says so" "broken"
	gets "$1, staging $2: it cannot be read" EIO snap read 1M 64k
	or_bail replace_table cow "$good_cow"
	or_bail pattern origin write 2 2M 64k
	gets "$1, staging $2: not when the device is good again either" EIO snap read 1M 64k
	gets "$1, staging $2: nor where it was copied" EIO snap read 0 64k
	is "$1, staging $2: the first cause stays" \
		"$(snapshot_field snap errno) $(snapshot_field snap sector)" "5 2048"
	gets "$1, staging $2: the origin has all writes" ok origin verify 2 2M 64k
	or_bail dm_remove snap
	or_bail pattern origin write 1 0 4M
}

# The copy is there and cannot be read: an error, never the new data.
test_read_error()
{
	or_bail replace_table cow "$good_cow"
	make_snapshot snap disk cow 128 "2 staging 0"
	or_bail pattern origin write 2 0 128k
	wait_copied snap
	or_bail replace_table cow "0 $cow_size error"
	gets "a copy that cannot be read is an error" EIO snap read 0 64k
	gets "what is not copied can be read" ok snap verify 1 1M 1M
	gets "the live write of a copied cluster succeeds" ok origin write 3 0 64k
	or_bail replace_table cow "$good_cow"
	gets "afterwards it is the old data" ok snap verify 1 0 64k
	or_bail dm_remove snap
	or_bail pattern origin write 1 0 1M
}

for staging in 0 65536; do
	test_write_error "error target" $staging "0 $cow_size error"
	if has_module dm-flakey; then
		test_write_error "flakey writes" $staging \
			"0 $cow_size flakey $ARENA ${DISK_START[cow]} 0 600 1 error_writes"
	else
		skip "flakey writes, staging $staging" "there is no dm-flakey"
	fi
done
test_read_error
finish
