#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will write to an origin as a whole or not at all (RWF_ATOMIC), as databases do:
# where its device can do that, the origin can, also while such a write has to wait for
# copies of old data.
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=32768

# The most that can be written as a whole.
atomic_bytes()
{
	local node

	node=$(readlink -f "$1")
	cat "/sys/block/${node##*/}/queue/atomic_write_max_bytes" 2> /dev/null || echo 0
}

requires_module scsi_debug
modinfo -F parm scsi_debug | grep -q '^atomic_wr:' ||
	skip_all "scsi_debug of this kernel has no atomic writes"
no_probing
load_fleece
make_discard_arena 48 atomic_wr=1
make_disk disk $SECTORS
make_disk cow "$(cow_sectors 128 256)"
limit=$(atomic_bytes "$(path_of disk)")
[ "$limit" -gt 0 ] || skip_all "device-mapper of this kernel has no atomic writes"
make_origin origin disk
or_bail pattern origin write 1 0 -

is "the origin can do as much at once as dm-linear" "$(atomic_bytes "$(path_of origin)")" "$limit"
gets "without a snapshot it is written" ok origin atomic 2 0 256k
gets "and can be read" ok origin verify 2 0 256k

make_snapshot snap disk cow 128
gets "what has to wait for a copy is written" ok origin atomic 3 0 1M
gets "and can be read from then on" ok origin verify 3 0 1M
gets "the snapshot has what was there before: changed" ok snap verify 2 0 256k
gets "and never changed" ok snap verify 1 256k -
gets "what has been copied is written" ok origin atomic 4 0 1M
gets "and can be read, too" ok origin verify 4 0 1M
is "what waited was copied" "$(snapshot_field snap copied)" 16
finish
