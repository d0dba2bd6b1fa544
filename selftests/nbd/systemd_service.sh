#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will have a real systemd, process 1 of a namespace of its own, start fleeced for
# a real snapshot by its units: for the first client, confined as they say, drained at the
# end, and again after it was killed. It runs in a VM.
#
#     origin (fleece)    snap (fleece-snapshot) --- fleeced@snap.service --- clients
#           |              |      |                 fleeced@snap.socket
#          disk  <---------+     cow          slices of one brd
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"
# shellcheck source-path=SCRIPTDIR
. "$here/../systemd.sh"

SECTORS=32768
CLUSTER=128
FLEECED=$FLEECE_TREE/userspace/fleeced/fleeced
UNIT=fleeced@$PREFIX-snap
UNIT_OPTIONS=fleeced-$PREFIX-snap
URI="nbd+unix:///$PREFIX-snap?socket=/run/fleece/$PREFIX-snap.sock"

# What every unit needs, and none of those of this machine.
set_up_units()
{
	make_units "$FLEECED" sysinit basic sockets shutdown
	mkdir "$UNITS/fleeced@.service.d"
	printf '[Service]\nStandardError=append:%s\n' "$SCRATCH/log" \
		> "$UNITS/fleeced@.service.d/log.conf"
	echo "FLEECED_OPTIONS=--allow-release" > "/etc/default/$UNIT_OPTIONS"
	defer rm -f "/etc/default/$UNIT_OPTIONS"
}

# of NAME [socket]: a property of one of the two units.
of()
{
	property "$1" "$UNIT.${2:-service}"
}

# A client that does not stop by itself, and says why it had to.
# shellcheck disable=SC2016 # it is Python
READER='
import nbd, sys
client = nbd.NBD()
client.connect_uri(sys.argv[1])
print("reads", flush=True)
try:
    while True:
        client.pread(65536, 0)
except nbd.Error as error:
    print(error.errno)
'

test_first_client()
{
	is "there is no server without a client" "$(of ActiveState socket) $(of ActiveState)" \
		"active inactive"
	succeeds "the first client starts it" nbdcopy "$URI" "$SCRATCH/image"
	succeeds "and gets the right data" cmp "$SCRATCH/golden" "$SCRATCH/image"
	is "the service is up" "$(of ActiveState)/$(of SubState)" active/running
	is "nothing has failed" "$(of Result) $(of NRestarts)" "success 0"
	like "it tells how many clients it has" "$(of StatusText)" "^[0-9]+ clients$"
}

test_confined()
{
	local status

	like "it may ask for maps" "$(nbdinfo --map=qemu:dirty-bitmap:first "$URI" | tr -s ' ')" \
		" 1048576 65536 1 dirty"
	succeeds "it may release" /usr/bin/python3 -c 'import nbd, sys
client = nbd.NBD()
client.connect_uri(sys.argv[1])
client.trim(131072, 4194304)' "${URI/snap\?/snap%2Brelease?}"
	is "as many clusters as were asked for" "$(snapshot_field snap released)" 2
	status=$(inside grep -E '^(Uid|CapEff|CapBnd|NoNewPrivs|Seccomp):' \
		"/proc/$(of MainPID)/status" | tr -s '\t ' ' ' | paste -sd' ')
	like "it is nobody, has no rights and gets none" "$status" \
		"^Uid: 65534 65534 65534 65534 CapEff: 0+ CapBnd: 0+ NoNewPrivs: 1 Seccomp: 2$"
	is "it sees no network" "$(inside nsenter -t "$(of MainPID)" -n ip -o link |
		cut -d: -f2 | paste -sd,)" " lo"
}

test_drained()
{
	local client

	/usr/bin/python3 -c "$READER" "$URI" > "$SCRATCH/reader" 2>&1 &
	client=$!
	wait_until 60 grep -q reads "$SCRATCH/reader" || bail "the client reads"
	succeeds "the service is stopped" ctl stop "$UNIT.service"
	wait "$client"
	is "a client that reads is told so" "$(tail -n 1 "$SCRATCH/reader")" ESHUTDOWN
	is "the server has ended by itself" \
		"$(of Result) $(of ExecMainCode) $(of ExecMainStatus)" "success 1 0"
	is "the socket is still there" "$(of ActiveState socket)" active
	is "the next client starts the service again" "$(nbdinfo --size "$URI")" $((SECTORS * 512))
}

test_killed()
{
	local before

	before=$(of MainPID)
	inside kill -KILL "$before"
	wait_until 60 has_restarted || not_ok "it is started again after it was killed" \
		"$(ctl --no-pager status "$UNIT.service")"
	is "clients are served as before" "$(nbdinfo --size "$URI")" $((SECTORS * 512))
	is "it has been started again once" "$(of NRestarts)" 1
}

has_restarted()
{
	[ "$(of NRestarts)" = 1 ] && [ "$(of ActiveState)" = active ]
}

test_stopped()
{
	succeeds "both units are stopped" ctl stop "$UNIT.socket" "$UNIT.service"
	is "the socket's file is gone" "$(find /run/fleece -name '*.sock')" ""
	is "and both have ended well" "$(of Result socket) $(of Result)" "success success"
	is "nothing in the log is an error" \
		"$(grep -vE 'listening|ready|opened|closed|ending|the client left' "$SCRATCH/log")" ""
}

load_fleece
[ -x "$FLEECED" ] || skip_all "fleeced is not built"
requires_program "$SYSTEMD" /usr/bin/python3 make nbdinfo nbdcopy nsenter unshare
make_arena 64
make_disk disk $SECTORS
make_disk cow "$(cow_sectors $CLUSTER 256)"
make_origin origin disk
or_bail pattern origin write 1 0 -
or_bail message origin checkpoint_create first
or_bail pattern origin write 2 1M 64k
make_snapshot snap disk cow $CLUSTER
or_bail dd if="$(path_of snap)" of="$SCRATCH/golden" bs=1M iflag=direct status=none
set_up_units
start_systemd basic
succeeds "the socket unit is started" ctl start "$UNIT.socket"
test_first_client
test_confined
test_drained
test_killed
test_stopped
stop_systemd
or_bail dm_remove snap
finish
