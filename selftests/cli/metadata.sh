#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will make, damage, check and dump metadata in files, with the real program
# and without the module: `metadata.sh PROGRAM MAKER`. MAKER writes metadata with three
# checkpoints into a file.
set -u
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/../tap.sh"

program=$1
maker=$2
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
file=$scratch/md

# verdict TEXT COMMAND...
verdict()
{
	local text=$1

	shift
	if "$@"; then
		result ok "metadata: $text"
	else
		result "not ok" "metadata: $text"
		sed 's/^/# /' "$scratch/out" "$scratch/err"
	fi
}

# run STATUS ARGUMENT...: with this exit status, and a message unless it is 0
run()
{
	local wanted=$1 got=0

	shift
	timeout 60 "$program" metadata "$@" > "$scratch/out" 2> "$scratch/err" < /dev/null || got=$?
	[ $got -eq "$wanted" ] || echo "exit status $got, not $wanted" >> "$scratch/err"
	[ $got -eq "$wanted" ] && { [ $got -eq 0 ] || grep -q '^fleece: metadata: ' "$scratch/err"; }
}

# says STATUS PATTERN ARGUMENT...: and one of the outputs has a line like PATTERN
says()
{
	run "$1" "${@:3}" && cat "$scratch/out" "$scratch/err" | grep -qE "$2"
}

# field KEY VALUE: dump --json has it
field()
{
	run 0 dump --json "$file" && grep -qE "^ *\"$1\": $2,?$" "$scratch/out"
}

# anew: a file with three checkpoints, see the maker
anew()
{
	rm -f "$file"
	"$maker" "$file"
}

# damage SECTOR...: one byte of each
damage()
{
	local sector

	for sector; do
		printf 'X' | dd of="$file" bs=1 seek=$((sector * 512 + 100)) conv=notrunc status=none
	done
}

truncate -s 150M "$file"
verdict 'create' run 0 create "$file" --origin-size 1T --capacity 1T
verdict 'what was created is in order' says 0 'in order, generation 1, 0 checkpoints' check "$file"
verdict 'nothing is said to be wrong with it' test ! -s "$scratch/err"
verdict 'its size is that of the document' field size_needed_bytes 138711040
verdict 'room to grow up to twice the size, if there is' field capacity_bytes 1099511627776
verdict 'it is not made again over what is there' says 5 'holds something' create "$file" --origin-size 1T
verdict 'unless that is forced' run 0 create "$file" --origin-size 1G --force --checkpoints 9
verdict 'then there is room to grow' field capacity_bytes 2147483648
verdict 'and for so many checkpoints' field checkpoints_max 9
truncate -s 100M "$scratch/small"
verdict 'too small a device' says 1 'too small: 138711040 bytes.*larger --granularity' create "$scratch/small" \
	--origin-size 1T
head -c 8M /dev/zero > "$scratch/used"
printf 'x' | dd of="$scratch/used" bs=1 seek=8388600 conv=notrunc status=none
verdict 'a signature at the end' says 5 'holds something' create "$scratch/used" --origin-size 1G
truncate -s 1G "$scratch/origin"
verdict 'for an origin' run 0 create "$file" --force --origin "$scratch/origin"
verdict 'it is checked with its origin' run 0 check "$file" --origin "$scratch/origin"
ln -s origin "$scratch/link"
verdict 'not on the origin itself' says 2 'is the origin itself' create "$scratch/link" --force \
	--origin "$scratch/origin"
truncate -s 2G "$scratch/origin"
verdict 'an origin that has grown is no error' says 0 'larger than recorded' check "$file" \
	--origin "$scratch/origin"
truncate -s 1M "$scratch/origin"
verdict 'a smaller origin is' says 7 'larger origin' check "$file" --origin "$scratch/origin"

anew
verdict 'after a crash it is in order' says 0 '^.*in order, generation 12, 3 checkpoints' check "$file"
verdict 'and it says what that costs' says 0 'note: .* 26 regions count as changed' check "$file"
verdict 'checkpoints stand in the dump' says 0 '^  two  .* valid$' dump "$file"
verdict 'and in that for programs' field name '"three"'
verdict 'all sizes of which are in bytes, and say so' \
	test "$(grep -oE '"[a-z_]*(size|capacity|granularity|region|changed)[a-z_]*"' "$scratch/out" |
		grep -vc '_bytes"')" -eq 0
damage 0
verdict 'one copy of the superblock' says 1 'copy 0 of the superblock does not count' check "$file"
verdict 'the other one counts' field generation 11
damage 2048
verdict 'both copies' says 7 'both superblocks are lost.*full' check "$file"
verdict 'cannot be dumped' run 7 dump "$file"
anew
damage 4097
verdict 'a sector of intents' says 1 '1 sectors of the intents are damaged' check "$file"
anew
damage 4120
verdict 'a sector of fine bits' says 1 '1 sectors of checkpoint one are damaged' check "$file"
verdict 'counts as changed' field damaged_sectors 1
anew
truncate -s 2M "$file"
verdict 'a device that was cut off' says 7 'shorter than its metadata' check "$file"
truncate -s 10K "$file"
verdict 'or is very small' run 7 check "$file"
: > "$file"
verdict 'or empty' run 7 check "$file"
"$maker" "$file" newer
verdict 'of a newer version' says 8 'newer version of dm-fleece' check "$file"
"$maker" "$file" featured
verdict 'with features that are not known' says 8 'features that are not known' check "$file"
verdict 'which can be dumped' run 0 dump "$file"
"$maker" "$file" invalid
verdict 'that missed changes' says 7 '3 of 3 checkpoints are invalid' check "$file"
verdict 'and says so for each' field valid false
head -c 3M /dev/urandom > "$file"
verdict 'garbage' run 7 check "$file"
verdict 'no such device' run 4 check "$scratch/none"
verdict 'no device at all' run 4 check /dev/null

verdict 'no action' run 2
verdict 'an unknown action' run 2 repair "$file"
verdict 'check of two' run 2 check "$file" "$file"
verdict 'create without an origin' run 2 create "$file"
verdict 'create with both' run 2 create "$file" --origin "$file" --origin-size 1G
verdict 'option of create for check' run 2 check "$file" --force
verdict 'option of dump for check' run 2 check "$file" --json
verdict 'no checkpoints' run 2 create "$file" --origin-size 1G --checkpoints 0
verdict 'too many checkpoints' run 2 create "$file" --origin-size 1G --checkpoints 257
verdict 'granularity no power of two' run 2 create "$file" --origin-size 1G --granularity 5K
verdict 'region below the granularity' run 2 create "$file" --origin-size 1G --region 4K
verdict 'capacity below the size' run 2 create "$file" --origin-size 1G --capacity 1M
verdict 'size not in sectors' run 2 create "$file" --origin-size 1000
verdict 'above 64 TiB' run 2 create "$file" --origin-size 65T

end_tap
