#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will have files with all kinds of mistakes read as fleecetab, by the real
# functions: `fleecetab.sh PROGRAM`. PROGRAM prints what it has read, see fleecetab_dump.c.
set -u
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/../tap.sh"

program=$(realpath "$1")
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT

# gets TEXT STATUS OUTPUT ERROR FILE: the file's lines are given with \n; ERROR is a pattern,
# or nothing when there is to be no message.
gets()
{
	local status=0 out err

	printf '%b' "$5" > "$scratch/tab"
	(cd "$scratch" && "$program" tab) > "$scratch/out" 2> "$scratch/err" || status=$?
	out=$(paste -sd';' "$scratch/out")
	err=$(cat "$scratch/err")
	if [ $status -eq "$2" ] && [ "$out" = "$3" ] && [[ $err =~ $4 ]] &&
		{ [ -n "$4" ] || [ -z "$err" ]; }; then
		result ok "fleecetab: $1"
	else
		result "not ok" "fleecetab: $1"
		printf '# %s\n' "status $status" "$out" "$err"
	fi
}

gets "an empty file" 0 "" "" ""
gets "comments and empty lines" 0 "" "" "# a\n\n \t \n  # b c d\n"
gets "three fields" 0 "a /dev/sdb - 0 auto" "" "a /dev/sdb -\n"
gets "tabs, and no line feed at the end" 0 "a /dev/sdb /dev/sdc 0 auto" "" \
	"a\t/dev/sdb\t\t/dev/sdc"
gets "options" 0 "a /dev/sdb - 131072 manual" "" "a /dev/sdb - granularity=128K,noauto\n"
gets "one that needs its metadata" 0 "a /dev/sdb /dev/sdc 0 auto strict" "" \
	"a /dev/sdb /dev/sdc initramfs,needs-metadata\n"
gets "no options" 0 "a /dev/sdb - 0 auto" "" "a /dev/sdb - -\n"
gets "a comment behind" 0 "a /dev/sdb - 0 auto" "" "a /dev/sdb - # - noauto\n"
gets "names with a # in them" 0 "a /dev/disk/by-partlabel/a#1 /dev/b#2 0 manual" "" \
	"a PARTLABEL=a#1 /dev/b#2 noauto\t#noauto\n"
gets "one for the initial RAM disk" 0 "a /dev/sdb - 0 auto" "" "a /dev/sdb - initramfs\n"
gets "names of udev" 0 \
	"a /dev/disk/by-uuid/1-2 /dev/disk/by-partlabel/meta 0 auto;b /dev/disk/by-id/x - 0 auto" "" \
	"a UUID=1-2 PARTLABEL=meta\nb ID=x -\n"
gets "two fields" 1 "" "^fleece: tab:1: .* after 'a'" "a /dev/sdb\n"
gets "five fields" 1 "" "tab:1: there are more.*'x'" "a /dev/sdb - - x\n"
gets "a bad line costs no other" 1 "a /dev/sda - 0 auto;c /dev/sdc - 0 auto" "tab:2: " \
	"a /dev/sda -\nb\nc /dev/sdc -\n"
gets "the same name twice" 1 "a /dev/sda - 0 auto" "tab:3: .*'a'" "a /dev/sda -\n\na /dev/sdb -\n"
gets "a name with a slash" 1 "" "tab:1: no name.*'b/a'" "b/a /dev/sda -\n"
gets "a name that is too long" 1 "" "tab:1: no name" "$(printf '%0128d' 0) /dev/sda -\n"
gets "a relative path" 1 "" "tab:1: neither.*'sda'" "a sda -\n"
gets "a tag without a value" 1 "" "tab:1: neither.*'UUID='" "a UUID= -\n"
gets "a tag that leads elsewhere" 1 "" "tab:1: neither" "a UUID=../../sda -\n"
gets "no metadata, wrongly" 1 "" "tab:1: neither -, .*'none'" "a /dev/sda none\n"
gets "an unknown option" 1 "" "tab:1: there is no option 'auto'" "a /dev/sda - auto\n"
gets "an empty option" 1 "" "tab:1: there is no option ''" "a /dev/sda - noauto,\n"
gets "a bad granularity" 1 "" "tab:1: .*'granularity=5K'" "a /dev/sda - granularity=5K\n"
gets "no granularity" 1 "" "tab:1: .*'granularity='" "a /dev/sda - granularity=\n"

# refuses TEXT ERROR: to read what stands there instead of the file.
refuses()
{
	if ! (cd "$scratch" && "$program" tab) 2> "$scratch/err" && grep -q "tab: $2" "$scratch/err"; then
		result ok "fleecetab: $1"
	else
		result "not ok" "fleecetab: $1"
		sed 's/^/# /' "$scratch/err"
	fi
}

rm "$scratch/tab"
refuses "none" "there is no such file; .* fleecetab(5)"
mkdir "$scratch/tab"
refuses "a directory" "cannot read"
end_tap
