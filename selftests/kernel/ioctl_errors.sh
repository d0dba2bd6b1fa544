#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will give /dev/fleece-control every kind of bad argument, from 64-bit
# and from 32-bit callers, and look at the node's rights.
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=32760
load_fleece
requires_tool ioctl_errors
make_arena 64
make_disk disk $SECTORS
make_disk cow "$(cow_sectors 128 256)"
make_origin origin disk
for name in one two three; do
	or_bail message origin checkpoint_create $name
done
make_snapshot snap disk cow 128

is "only root may open the control device" \
	"$(stat -c '%a %u %g %F' /dev/fleece-control)" "600 0 0 character special file"
take_tap "$FLEECE_TEST_BIN/ioctl_errors" "$(path_of origin)" "$(path_of snap)" \
	"$(path_of disk)" one

# What a 32-bit program's calls get; says nothing where the kernel knows none.
compat_answers()
{
	"$FLEECE_TEST_BIN/ioctl_errors" --compat "$(path_of origin)" "$(path_of snap)" \
		"$(path_of disk)" one > "$SCRATCH/compat" 2>&1
	set -- $?
	sed 's/ - / - 32-bit: /' "$SCRATCH/compat"
	return "$1"
}

# It released all of the snapshot.
or_bail dm_remove snap
make_snapshot snap disk cow 128
if [ "$(uname -m)" = x86_64 ] && [ "$(compat_answers 2>/dev/null | head -c 2)" = ok ]; then
	take_tap compat_answers
else
	skip "32-bit callers" "this kernel has no 32-bit calls"
fi
before=$(cat /sys/module/dm_fleece/refcnt)
exec 9< /dev/fleece-control
is "an open control device holds the module" "$(cat /sys/module/dm_fleece/refcnt)" $((before + 1))
exec 9<&-
is "and lets it go" "$(cat /sys/module/dm_fleece/refcnt)" "$before"
finish
