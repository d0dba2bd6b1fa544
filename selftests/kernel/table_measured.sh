#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will have the integrity measurement architecture (IMA) of the kernel measure
# device-mapper tables: what it records of an origin and of a snapshot must say which devices
# and arguments they have.
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=8192
IMA=/sys/kernel/security/ima

if ! mountpoint -q /sys/kernel/security; then
	mount -t securityfs none /sys/kernel/security 2> /dev/null || skip_all "no securityfs"
	defer umount /sys/kernel/security
fi
[ -e $IMA/policy ] || skip_all "this kernel has no IMA"
load_fleece
make_arena 16
make_disk disk $SECTORS
make_disk cow "$(cow_sectors 8 64)"
# A policy can be set once. Later ones would be added, if the kernel was built for that.
echo "measure func=CRITICAL_DATA label=device-mapper" > $IMA/policy 2> /dev/null ||
	grep -q device-mapper $IMA/policy 2> /dev/null ||
	skip_all "no policy can be set"
make_origin origin disk
make_snapshot snap disk cow 8 "2 checkpoint one"

# records: what was measured of loaded tables, as text.
records()
{
	awk '/dm_table_load/ { print $NF }' $IMA/ascii_runtime_measurements |
		while read -r hex; do
			perl -e 'print pack("H*", shift), "\n"' "$hex"
		done
}

devno_of()
{
	dmsetup info -c --noheadings -o major,minor --separator : "$PREFIX-$1"
}

disk=$(devno_of disk)
cow=$(devno_of cow)
like "an origin is measured" "$(records)" \
	"target_name=fleece,target_version=[0-9.]+,device_name=$disk,metadata_device_name=-,granularity=[0-9]+,discard_copy=n;"
like "and a snapshot" "$(records)" \
	"target_name=fleece-snapshot,target_version=[0-9.]+,device_name=$disk,cow_device_name=$cow,cluster=8,features= 2 checkpoint one;"
finish
