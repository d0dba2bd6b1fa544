#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will serve real snapshots with fleeced: data, maps, what is not
# accessible or lost, releases, reading once, the kernel's NBD client, also while the
# server is killed and started again, vsock, a snapshot that is removed or breaks
# while it is served, and what rights the server has left. It runs in a VM.
#
#     origin (fleece)      snap (fleece-snapshot) --- fleeced --- clients
#           |              |          |
#          disk  <---------+         cow          slices of one brd
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=32768
CLUSTER=128
FLEECED=$FLEECE_TREE/userspace/fleeced/fleeced
server=

# serve OPTION...: fleeced for the snapshot.
serve()
{
	"$FLEECED" --socket "$SCRATCH/nbd" --pid-file "$SCRATCH/pid" "$@" "$(path_of snap)" \
		2> "$SCRATCH/fleeced" &
	server=$!
	# It says so when it has confined itself; the socket and the pid file come before.
	wait_until 20 grep -q "fleeced: ready" "$SCRATCH/fleeced" ||
		bail "fleeced starts" "$(cat "$SCRATCH/fleeced")"
}

# Leaves the exit status in $stopped.
stop_server()
{
	stopped=0
	kill "$server" 2> /dev/null
	wait "$server" || stopped=$?
	server=
}

# The server is a child of this shell, and of no subshell.
ends_well()
{
	stop_server
	is "$1: SIGTERM ends the server well" $stopped 0
	is "$1: and leaves no socket" "$(find "$SCRATCH" -name nbd -o -name pid)" ""
}

# shellcheck disable=SC2317 # called at the end
clean_up()
{
	[ ! -e /sys/block/nbd0/pid ] || nbd-client -d /dev/nbd0
	[ -z "$server" ] || stop_server
}
defer clean_up

# ask CASES
ask()
{
	take_tap /usr/bin/python3 "$here/served_snapshot.py" "$1" "$SCRATCH/nbd" "$PREFIX-snap" \
		"$SCRATCH/golden"
}

# copy SKIP COUNT: MiB of the snapshot into the golden image, at the same place.
copy()
{
	or_bail dd if="$(path_of snap)" of="$SCRATCH/golden" bs=64k iflag=direct conv=notrunc \
		skip="$1" seek="$1" count="$2" status=none
}

# A snapshot is never served as if it were plain data.
test_without_control()
{
	make_snapshot snap disk cow $CLUSTER
	or_bail mv /dev/fleece-control /dev/fleece-hidden
	fails "without the control device a snapshot is refused" "fleece-control: No such file" \
		timeout 60 "$FLEECED" --socket "$SCRATCH/nbd" "$(path_of snap)"
	or_bail mv /dev/fleece-hidden /dev/fleece-control
	or_bail dm_remove snap
}

test_since()
{
	or_bail message origin checkpoint_create first
	or_bail pattern origin write 2 1M 1M
	or_bail pattern origin write 2 5M 64k
	make_snapshot snap disk cow $CLUSTER "4 since first checkpoint second"
	or_bail pattern origin write 3 0 -
	wait_copied snap
	copy 16 16
	copy 80 1
	serve --allow-release
	succeeds "a checkpoint of a snapshot that is served is deleted on the origin" \
		message origin checkpoint_delete first
	is "the origin has forgotten it" \
		"$(message origin checkpoint_list | grep -c '^first ')" 0
	ask healthy
	is "the releases have reached the snapshot" "$(snapshot_field snap released)" 2
	fails "a snapshot that is served cannot be removed" "busy" dmsetup remove "$PREFIX-snap"
	ends_well "since"
	is "none of that is an error in its log" "$(grep 'error:' "$SCRATCH/fleeced")" ""
	succeeds "then it can be removed" dm_remove snap
}

# field NAME: what the kernel says of the server.
field()
{
	sed -n "s/^$1:[[:space:]]*//p" "/proc/$server/status" | tr -s '[:space:]' ' ' | sed 's/ $//'
}

# Started by root, without any option.
test_confined()
{
	local nobody

	nobody=$(id -u nobody)
	make_snapshot snap disk cow $CLUSTER
	serve
	is "the server is nobody" "$(field Uid)" "$nobody $nobody $nobody $nobody"
	is "and of no other group" "$(field Groups)" ""
	is "has no capability" "$(field CapPrm) $(field CapEff) $(field CapBnd)" \
		"0000000000000000 0000000000000000 0000000000000000"
	is "can get none, and has few system calls" "$(field NoNewPrivs) $(field Seccomp)" "1 2"
	ends_well "confined"
	or_bail dm_remove snap
}

test_read_once()
{
	make_snapshot snap disk cow $CLUSTER
	rm -f "$SCRATCH/golden"
	copy 0 256
	or_bail pattern origin write 4 0 4M
	wait_copied snap
	serve --read-once
	if command -v nbdcopy > /dev/null; then
		succeeds "nbdcopy of a snapshot that is released as it is read" timeout 120 nbdcopy \
			"nbd+unix:///?socket=$SCRATCH/nbd" "$SCRATCH/image"
		succeeds "the copy is right" cmp "$SCRATCH/golden" "$SCRATCH/image"
		is "nothing is left of the snapshot" \
			"$(snapshot_field snap used) $(snapshot_field snap accessible)" "0 0"
		ask gone
	else
		skip "nbdcopy of a snapshot that is released as it is read" "no nbdcopy here"
	fi
	ends_well "read once"
	or_bail dm_remove snap
}

# serve_kernel TITLE: serve a snapshot whose image is $SCRATCH/golden. Fails, and the test
# of that title is skipped, where the kernel's client is missing.
serve_kernel()
{
	if ! command -v nbd-client > /dev/null || ! has_module nbd; then
		skip "$1" "nbd-client or the module nbd is missing"
		return 1
	fi
	settle_udev
	make_snapshot snap disk cow $CLUSTER
	rm -f "$SCRATCH/golden" "$SCRATCH/enough"
	copy 0 256
	serve
}

test_kernel_client()
{
	serve_kernel "the kernel's NBD client" || return
	or_bail pattern origin write 5 0 -
	succeeds "nbd-client connects the kernel" nbd-client -unix "$SCRATCH/nbd" /dev/nbd0 \
		-name "$PREFIX-snap" -readonly -C 2
	is "the disk is read-only" "$(blockdev --getro /dev/nbd0)" 1
	succeeds "it shows the snapshot" cmp "$SCRATCH/golden" /dev/nbd0
	succeeds "nbd-client disconnects" nbd-client -d /dev/nbd0
	ends_well "kernel client"
	or_bail dm_remove snap
	wait_until 10 modprobe -r nbd
}

# A reader that goes round and round: nothing may fail, nothing may be wrong.
read_on()
{
	while [ ! -e "$SCRATCH/enough" ]; do
		dd if=/dev/nbd0 bs=1M iflag=direct status=none | cmp - "$SCRATCH/golden" || return 1
	done
}

kill_and_restart()
{
	kill -9 "$server"
	wait "$server" 2> /dev/null
	wait_until 20 test ! -e "$SCRATCH/nbd" -a ! -e "$SCRATCH/pid" ||
		not_ok "restart $1: kill -9 leaves no files"
	serve
	succeeds "restart $1: the kernel has a connection again" \
		/usr/bin/python3 "$here/nbdlink.py" reconnect "$SCRATCH/nbd" "$PREFIX-snap"
	succeeds "restart $1: it shows the snapshot" cmp "$SCRATCH/golden" /dev/nbd0
}

test_restart()
{
	local reader round status=0

	serve_kernel "a kernel client that waits for the server" || return
	or_bail pattern origin write 7 0 -
	succeeds "the kernel connects, and will wait for the server" \
		/usr/bin/python3 "$here/nbdlink.py" connect "$SCRATCH/nbd" "$PREFIX-snap"
	read_on > "$SCRATCH/reader" 2>&1 &
	reader=$!
	for round in 1 2 3; do
		kill_and_restart $round
	done
	: > "$SCRATCH/enough"
	wait "$reader" || status=$?
	is "a reader has noticed nothing" "$status $(cat "$SCRATCH/reader")" "0 "
	succeeds "the kernel disconnects" nbd-client -d /dev/nbd0
	ends_well "restart"
	or_bail dm_remove snap
	wait_until 10 modprobe -r nbd
}

test_vsock()
{
	if ! has_module vsock_loopback || ! command -v nbdcopy > /dev/null; then
		skip "vsock" "nbdcopy or the module vsock_loopback is missing"
		return
	fi
	make_snapshot snap disk cow $CLUSTER
	rm -f "$SCRATCH/golden" "$SCRATCH/image"
	copy 0 256
	serve --vsock 1:10809
	or_bail pattern origin write 8 0 -
	succeeds "nbdcopy through vsock" timeout 120 nbdcopy "nbd+vsock://1:10809/$PREFIX-snap" \
		"$SCRATCH/image"
	succeeds "the copy is right" cmp "$SCRATCH/golden" "$SCRATCH/image"
	like "the log names the client" "$(cat "$SCRATCH/fleeced")" "vsock 1:[0-9]+: opened export"
	ends_well "vsock"
	or_bail dm_remove snap
}

test_lost()
{
	make_snapshot snap disk cow $CLUSTER "2 on_cbw_error break_cluster"
	rm -f "$SCRATCH/golden"
	copy 0 256
	or_bail replace_table cow "0 $(blockdev --getsz "$(path_of cow)") error"
	or_bail pattern origin write 9 1M 64k
	wait_until "$WAIT_SECONDS" snapshot_field_is snap lost 1 ||
		bail "preparation: a cluster is lost"
	or_bail replace_table cow "$(slice_table cow)"
	serve
	ask lost
	ends_well "lost"
	or_bail dm_remove snap
}

test_broken()
{
	make_snapshot snap disk small $CLUSTER
	serve --allow-release --read-once
	or_bail pattern origin write 6 0 -
	wait_until 20 snapshot_field_is snap state broken || bail "the snapshot breaks"
	ask broken
	is "nothing of it was released" "$(snapshot_field snap released)" 0
	is "the log says it once" "$(grep -c 'the snapshot is broken: No space' "$SCRATCH/fleeced")" 1
	ends_well "broken"
	or_bail dm_remove snap
}

load_fleece
requires_program /usr/bin/python3
[ -x "$FLEECED" ] || skip_all "fleeced is not built"
make_arena 64
make_disk disk $SECTORS
make_disk cow "$(cow_sectors $CLUSTER 256)"
make_disk small "$(cow_sectors $CLUSTER 4)"
make_origin origin disk
or_bail pattern origin write 1 0 -
test_without_control
test_since
test_confined
test_read_once
test_kernel_client
test_restart
test_vsock
test_lost
test_broken
finish
