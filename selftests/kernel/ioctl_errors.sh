#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will give /dev/fleece-control every kind of bad argument, from 64-bit
# and from 32-bit callers, and look at the node's rights.
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

# More clusters of 4 KiB than can be released in part.
SECTORS=40952
load_fleece
requires_tool ioctl_errors
make_arena 64
make_disk disk $SECTORS
make_disk cow "$(cow_sectors 128 256)"
make_origin origin disk
for name in one two three; do
	or_bail message origin checkpoint_create $name
done
make_snapshot snap disk cow 8

is "only root may open the control device" \
	"$(stat -c '%a %u %g %F' /dev/fleece-control)" "600 0 0 character special file"

# answers [OPTION]: what calls get; of the snapshot nothing is left that can be tried again.
answers()
{
	"$FLEECE_TEST_BIN/ioctl_errors" "$@" "$(path_of origin)" "$(path_of snap)" \
		"$(path_of disk)" one > "$SCRATCH/answers" 2>&1
	set -- $? "$@"
	sed "s/ - / - ${2:+32-bit: }/" "$SCRATCH/answers"
	return "$1"
}

take_tap answers
fails "as a message: a part that cannot be remembered" "No space" \
	message snap release $((SECTORS - 100)) 1
if "$FLEECE_TEST_BIN/ioctl_errors" --has-compat; then
	or_bail dm_remove snap
	make_snapshot snap disk cow 8
	take_tap answers --compat
else
	skip "32-bit callers" "this kernel has no 32-bit calls"
fi
before=$(cat /sys/module/dm_fleece/refcnt)
exec 9< /dev/fleece-control
is "an open control device holds the module" "$(cat /sys/module/dm_fleece/refcnt)" $((before + 1))
exec 9<&-
is "and lets it go" "$(cat /sys/module/dm_fleece/refcnt)" "$before"
finish
