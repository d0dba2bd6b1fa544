#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will make, list and delete checkpoints by the rules: names, errors,
# uuids, more than 64 of them, and maps that keep their meaning when others go.
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=32760
WHOLE=$((SECTORS * 512))
UUID='[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}'
load_fleece
make_arena 64
make_disk disk $SECTORS
make_disk cow "$(cow_sectors 128 256)"
make_origin origin disk

uuid_of()
{
	message origin checkpoint_list | awk -v name="$1" '$1 == name { print $2 }'
}

# write_at GRANULE: changes exactly one.
write_at()
{
	or_bail pattern origin write "$1" $(($1 * 65536 + 4096)) 8k
}

# changed_at NAME CHECKPOINT: numbers of the granules that are changed.
changed_at()
{
	maps "$1" bitmap changed "$2" | tail -n 1 | grep -o . | grep -n 1 |
		awk -F: '{ printf "%s%d", sep, $1 - 1; sep = " " }'
}

test_names()
{
	local name long before begin created

	long=$(printf '%063d' 7)
	# The kernel's second is that of its last tick.
	begin=$(($(date +%s) - 1))
	for name in a Z.-_9 "$long"; do
		succeeds "a checkpoint may be named $name" message origin checkpoint_create "$name"
	done
	like "the list has name, uuid, time, changes, state" \
		"$(message origin checkpoint_list | head -n 1)" "^a $UUID [0-9]{10} 0 valid$"
	is "the list is ordered by age" \
		"$(message origin checkpoint_list | cut -d' ' -f1 | paste -sd' ')" "a Z.-_9 $long"
	created=$(message origin checkpoint_list | cut -d' ' -f3 | sort -u | paste -sd' ')
	at_least "the times are not of before" "${created%% *}" "$begin"
	at_most "nor of afterwards" "${created##* }" "$(date +%s)"
	fails "a name in use" "File exists" message origin checkpoint_create a
	before=$(uuid_of a)
	succeeds "it can be deleted" message origin checkpoint_delete a
	fails "but not twice" "No such" message origin checkpoint_delete a
	succeeds "then the name is free" message origin checkpoint_create a
	is "the new one's uuid is another" "$([ "$(uuid_of a)" != "$before" ] && echo another)" another
	is "now it is the youngest" "$(message origin checkpoint_list | tail -n 1 | cut -d' ' -f1)" a
	for name in a Z.-_9 "$long"; do
		or_bail message origin checkpoint_delete "$name"
	done
	is "none is left" "$(message origin checkpoint_list)" ""
	fails "no map without a checkpoint" "ENOENT" maps origin extents changed a
}

test_maps()
{
	or_bail message origin checkpoint_create one
	is "nothing is changed at first" "$(map origin changed one)" "0 $WHOLE 0"
	write_at 1
	or_bail message origin checkpoint_create two
	write_at 2
	or_bail message origin checkpoint_create three
	write_at 3
	write_at 255
	is "changed since the first" "$(changed_at origin one)" "1 2 3 255"
	is "changed since the second" "$(changed_at origin two)" "2 3 255"
	is "changed since the third" "$(changed_at origin three)" "3 255"
	is "the map ends where the device does" "$(map origin changed three | tr , '\n' | tail -n 1)" \
		"16711680 $((WHOLE - 16711680)) 1"
	is "the list counts them" "$(message origin checkpoint_list | cut -d' ' -f4 | paste -sd' ')" "4 3 2"
	is "the status counts for the youngest" "$(status_of origin)" "128 256 2 none 0 3 three"
	for name in one two three; do
		is "the map since $name keeps the rules" "$(maps origin rules changed $name)" ok
	done
}

test_delete()
{
	make_snapshot snap disk cow 128
	write_at 4
	succeeds "one in the middle can be deleted" message origin checkpoint_delete two
	is "the first keeps its meaning" "$(changed_at origin one)" "1 2 3 4 255"
	is "the last keeps its meaning" "$(changed_at origin three)" "3 4 255"
	succeeds "the youngest can be deleted" message origin checkpoint_delete three
	is "the first keeps its meaning again" "$(changed_at origin one)" "1 2 3 4 255"
	is "the snapshot answers for those that are deleted" \
		"$(changed_at snap one)/$(changed_at snap two)/$(changed_at snap three)" \
		"1 2 3 255/2 3 255/3 255"
	is "and lists them" "$(maps snap checkpoints | cut -d' ' -f1 | paste -sd' ')" "one two three"
	or_bail message origin checkpoint_create three
	is "a new one of the same name is not the old one" "$(changed_at origin three)" ""
	is "and does not disturb the snapshot" "$(changed_at snap three)" "3 255"
	succeeds "the oldest can be deleted" message origin checkpoint_delete one
	is "the snapshot still answers for it" "$(changed_at snap one)" "1 2 3 255"
	or_bail message origin checkpoint_delete three
	write_at 5
	or_bail message origin checkpoint_create four
	fails "the snapshot does not know later ones" ENOENT maps snap extents changed four
	or_bail dm_remove snap
	or_bail message origin checkpoint_delete four
}

# More extents than the ioctl finds at a time.
test_many_extents()
{
	local i

	or_bail message origin checkpoint_create striped
	for ((i = 0; i < 256; i += 2)); do
		write_at $i
	done
	is "a map may have 256 extents" "$(map origin changed striped | tr , '\n' | wc -l)" 256
	is "they keep the rules" "$(maps origin rules changed striped)" ok
	or_bail message origin checkpoint_delete striped
}

test_many()
{
	local i count=70 failed=0

	for ((i = 0; i < count; i++)); do
		message origin checkpoint_create "c$i" || failed=$((failed + 1))
		write_at $((i + 10))
	done
	is "there can be $count" "$failed/$(origin_field origin checkpoints)" "0/$count"
	is "all have uuids of their own" \
		"$(message origin checkpoint_list | cut -d' ' -f2 | sort -u | wc -l)" "$count"
	is "the oldest has all changes" "$(changed_at origin c0 | wc -w)" "$count"
	is "one in the middle has its own" "$(changed_at origin c65)" "75 76 77 78 79"
	is "the ioctl lists them too" "$(maps origin checkpoints | cut -d' ' -f1,2)" \
		"$(message origin checkpoint_list | cut -d' ' -f1,2)"
	for ((i = 1; i < count; i += 2)); do
		message origin checkpoint_delete "c$i" || failed=$((failed + 1))
	done
	is "half of them can be deleted" "$failed/$(origin_field origin checkpoints)" "0/$((count / 2))"
	is "the others keep their meaning" "$(changed_at origin c64)" "74 75 76 77 78 79"
}

# fill COUNT: creates checkpoints until there are so many.
fill()
{
	local i

	for ((i = $(origin_field origin checkpoints); i < $1; i++)); do
		message origin checkpoint_create "f$i" || return
	done
}

# test_limit WHAT COUNT: so many checkpoints there can be, and no more.
test_limit()
{
	succeeds "$1: there can be $2 checkpoints" fill "$2"
	fails "$1: but not one more" "No space" message origin checkpoint_create more
	is "$1: all that were are there" "$(message origin checkpoint_list | wc -l)" "$2"
	or_bail message origin checkpoint_delete "f$(($2 - 1))"
	succeeds "$1: for one that is deleted another one" message origin checkpoint_create more
}

test_suspended()
{
	or_bail dmsetup suspend "$PREFIX-origin"
	succeeds "suspended: a checkpoint can be made" message origin checkpoint_create held
	succeeds "suspended: and deleted" message origin checkpoint_delete held
	or_bail dmsetup resume "$PREFIX-origin"
}

test_names
test_suspended
test_maps
test_delete
test_many_extents
test_many
test_limit "in RAM" 256
or_bail dm_remove origin
make_disk meta 16384
format_metadata meta $SECTORS
make_durable_origin origin disk meta
test_limit "on a metadata device" 64
finish
