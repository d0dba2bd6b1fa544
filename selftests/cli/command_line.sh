#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will try bad command lines, and good ones without the module, on the
# real program: `command_line.sh PROGRAM`. Checked are the exit status, that
# errors go to standard error and begin with "fleece: ", and nothing hangs.
set -u
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/../tap.sh"

program=$1
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT

# expect STATUS TEXT ARGUMENT...: one case
expect()
{
	wanted=$1
	text=$2
	shift 2
	timeout 20 "$program" "$@" > "$scratch/out" 2> "$scratch/err" < /dev/null
	got=$?
	if [ "$wanted" -ne 0 ] && ! grep -q '^fleece: ' "$scratch/err"; then
		got="$got without a message"
	fi
	if [ "$wanted" = "$got" ]; then
		result ok "$text: exit status $wanted"
	else
		result "not ok" "$text: exit status $got, not $wanted"
		sed 's/^/# /' "$scratch/out" "$scratch/err"
	fi
}

# skip TEXT REASON: a case that cannot be tried here
skip()
{
	result ok "$1 # SKIP $2"
}

expect 0 'help' --help
expect 0 'version' --version
expect 0 'help of a verb' snapshot --help
expect 2 'no verb'
expect 2 'unknown verb' fly
expect 2 'unknown option' list --flat
expect 2 'ambiguous option' snapshot a --c 1
expect 2 'option without its value' attach a --name
expect 2 'value for an option without one' list --json=yes
expect 2 'attach without a device' attach
expect 2 'attach of two devices' attach a b
expect 2 'granularity no power of two' attach a --granularity 5K
expect 2 'granularity too small' attach a --granularity 512
expect 2 'granularity too large' attach a --granularity 32M
expect 2 'granularity no size' attach a --granularity much
expect 2 'freeze timeout no number' attach a --freeze-timeout soon
expect 2 'freeze timeout of 0' snapshot a --freeze-timeout 0
expect 2 'attach of all and one' attach a --all
expect 2 'attach of all with a name' attach --all --name a
expect 2 'attach of one that waits for devices' attach a --wait 3
expect 2 'wait for no time' attach --all --wait 0
expect 2 'a last attach of one' attach a --final
expect 2 'an early attach of one' attach a --early
expect 2 'an early attach that is the last one' attach --all --early --final
expect 2 'an early attach that waits' attach --all --early --wait 3
expect 2 'detach of all and one' detach a --all
expect 2 'detach without a name' detach
expect 2 'checkpoint without an action' checkpoint
expect 2 'checkpoint with an unknown action' checkpoint move a b
expect 2 'checkpoint create without a checkpoint' checkpoint create a
expect 2 'checkpoint list with too much' checkpoint list a b
expect 2 'checkpoint name with a blank' checkpoint create a 'b c'
expect 2 'checkpoint name with a leading dot' checkpoint create a .b
expect 2 'checkpoint name of 64 characters' checkpoint create a \
	"$(printf '%064d' 0)"
expect 2 'snapshot name of 64 characters' snapshot a --name "$(printf '%064d' 0)"
expect 2 'checkpoint delete with --json' checkpoint delete a b --json
expect 2 'snapshot without a name' snapshot
expect 2 'cluster no power of two' snapshot a --cluster 3000
expect 2 'cluster out of range' snapshot a --cluster 32M
expect 2 'COW size no size' snapshot a --cow-size big
expect 2 'COW size of 0' snapshot a --cow-size 0
expect 2 'COW size of 101%' snapshot a --cow-size 101%
expect 2 'unknown kind of COW space' snapshot a --cow-kind tape
expect 2 'COW device and size' snapshot a --cow /dev/x --cow-size 1G
expect 2 'force for COW space that is made' snapshot a --force --cow-size 1G
expect 2 'fewer COW devices than origins' snapshot a b --cow /dev/x
expect 2 'directory for zram' snapshot a --cow-kind zram --cow-dir /tmp
expect 2 'timeout no number' snapshot a --cbw-timeout -1
expect 2 'timeout too large' snapshot a --cbw-timeout 4294967296
expect 2 'low water no number' snapshot a --low-water few
expect 2 'low water too large' snapshot a --low-water 4294967296
expect 2 'staging not in sectors' snapshot a --staging 100
expect 2 'staging too large' snapshot a --staging 2T
expect 2 'since a malformed name' snapshot a --since -x
expect 2 'unknown policy' snapshot a --on-cbw-error ignore
expect 2 'unknown policy of a full device' snapshot a --on-cow-full ignore
expect 2 'remove without a snapshot' remove
expect 2 'grow of nothing' grow
expect 2 'grow to two sizes' grow a 1M 2M
expect 2 'grow to no size' grow a much
expect 2 'grow to a size of no sectors' grow a 1000
expect 2 'release without a range' release a
expect 2 'release of no range' release a 12
expect 2 'list with an argument' list a
expect 2 'status of two' status a b
expect 2 'wait without a condition' wait a
expect 2 'wait for something else' wait a --for rain
expect 2 'wait for 200%' wait a --for full=200%
expect 2 'wait with a malformed timeout' wait a --for broken --timeout x
expect 2 'wait with a timeout that is too long' wait a --for broken --timeout 18446744073709552
expect 2 'map of two' map a b
expect 2 'map since a malformed name' map a --since a/b
expect 2 'serve without a snapshot' serve
expect 2 'serve with a log file in the foreground' serve a --log-file /tmp/log
expect 2 'serve with too long a socket path' serve a --socket "/$(printf '%0200d' 0)"
expect 0 'help of pull' pull --help
expect 2 'pull without a target' pull nbd://localhost
expect 2 'pull since a malformed name' pull nbd://localhost x --since a/b
expect 2 'pull that replaces and updates' pull nbd://localhost x --since a --replace
expect 2 'pull with no connection' pull nbd://localhost x --connections 0
expect 2 'pull with a number that is none' pull nbd://localhost x --connections 4x
expect 1 'pull from what is no URI' pull localhost /nowhere/x

status=8
if [ "$(id -u)" -ne 0 ]; then
	status=9
elif [ -e /dev/fleece-control ]; then
	status=
fi
while read -r line; do
	if [ -z "$status" ]; then
		skip "$line without the module" 'the module is loaded'
	else
		# shellcheck disable=SC2086
		expect "$status" "$line without module or privilege" $line
	fi
done << LINES
attach /dev/null
detach a
checkpoint list a
checkpoint create a b
snapshot a
remove a
release a all
list
list --json
status
status a
wait a --for broken
wait a --for broken --json
map a
serve a
serve a --json
check
LINES

if "$program" --help > /dev/full 2> "$scratch/err"; then
	result "not ok" "output that cannot be written is a failure"
else
	result ok "output that cannot be written is a failure"
fi

end_tap
