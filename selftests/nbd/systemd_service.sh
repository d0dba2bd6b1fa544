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

SECTORS=32768
CLUSTER=128
FLEECED=$FLEECE_TREE/userspace/fleeced/fleeced
SYSTEMD=/usr/lib/systemd/systemd
UNITS=$SCRATCH/units
CGROUP=/sys/fs/cgroup
UNIT=fleeced@$PREFIX-snap
UNIT_OPTIONS=fleeced-$PREFIX-snap
URI="nbd+unix:///$PREFIX-snap?socket=/run/fleece/$PREFIX-snap.sock"
manager=
mounted=

# What every unit needs, and none of those of this machine.
make_units()
{
	local target

	or_bail make -s -C "$FLEECE_TREE/userspace" install-units DESTDIR= UNITDIR="$UNITS" \
		SBINDIR="$(dirname "$FLEECED")"
	# Of Debian's own, only the names are needed.
	for target in sysinit basic sockets shutdown; do
		printf '[Unit]\nDefaultDependencies=no\n' > "$UNITS/$target.target"
	done
	mkdir "$UNITS/fleeced@.service.d" "$SCRATCH/none"
	printf '[Service]\nStandardError=append:%s\n' "$SCRATCH/log" \
		> "$UNITS/fleeced@.service.d/log.conf"
	echo "FLEECED_OPTIONS=--allow-release" > "/etc/default/$UNIT_OPTIONS"
}

# rmdir_tree DIRECTORY: a control group and those in it, once all processes are gone.
rmdir_tree()
{
	[ ! -d "$1" ] || find "$1" -depth -type d -exec rmdir {} +
}

stop_systemd()
{
	[ -n "$manager" ] || return 0
	kill -KILL "$manager"
	wait "$manager" 2> /dev/null
	manager=
	rm -f "/etc/default/$UNIT_OPTIONS"
	wait_until 20 rmdir_tree "$CGROUP/fleece" || note "$CGROUP/fleece is left"
	[ -z "$mounted" ] || umount "$CGROUP"
}

# boot GROUP: become systemd, process 1 of new namespaces, in a control group of its own. What
# it keeps in /run/systemd would make others believe that it runs this machine.
boot()
{
	echo $BASHPID > "$1/cgroup.procs"
	exec env -i PATH="$PATH" container=fleece SYSTEMD_UNIT_PATH="$UNITS" \
		SYSTEMD_GENERATOR_PATH="$SCRATCH/none" \
		unshare --pid --fork --kill-child --mount --mount-proc --cgroup -- sh -c "
			umount $CGROUP
			mount -t cgroup2 cgroup2 $CGROUP && mount -t tmpfs tmpfs /run/systemd &&
			exec $SYSTEMD --system --unit=basic.target --log-target=console --show-status=no"
}

start_systemd()
{
	if ! grep -q " $CGROUP cgroup2 " /proc/mounts; then
		or_bail mount -t cgroup2 cgroup2 "$CGROUP"
		mounted=yes
	fi
	mkdir "$CGROUP/fleece"
	mkdir -p /run/systemd
	defer stop_systemd
	boot "$CGROUP/fleece" < /dev/null > "$SCRATCH/systemd" 2>&1 &
	manager=$!
	wait_until 60 is_started || bail "systemd starts" "$(tail -n 20 "$SCRATCH/systemd")"
}

is_started()
{
	[ "$(ctl is-active basic.target 2> /dev/null)" = active ]
}

# inside COMMAND...: among the processes of the new systemd.
inside()
{
	local first

	first=$(pgrep -P "$manager") && timeout 60 nsenter -t "$first" -a "$@"
}

ctl()
{
	inside systemctl "$@"
}

# property NAME [socket]: of one of the two units.
property()
{
	ctl show --value -p "$1" "$UNIT.${2:-service}"
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
	is "there is no server without a client" "$(property ActiveState socket) $(property ActiveState)" \
		"active inactive"
	succeeds "the first client starts it" nbdcopy "$URI" "$SCRATCH/image"
	succeeds "and gets the right data" cmp "$SCRATCH/golden" "$SCRATCH/image"
	is "the service is up" "$(property ActiveState)/$(property SubState)" active/running
	is "nothing has failed" "$(property Result) $(property NRestarts)" "success 0"
	like "it tells how many clients it has" "$(property StatusText)" "^[0-9]+ clients$"
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
		"/proc/$(property MainPID)/status" | tr -s '\t ' ' ' | paste -sd' ')
	like "it is nobody, has no rights and gets none" "$status" \
		"^Uid: 65534 65534 65534 65534 CapEff: 0+ CapBnd: 0+ NoNewPrivs: 1 Seccomp: 2$"
	is "it sees no network" "$(inside nsenter -t "$(property MainPID)" -n ip -o link |
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
		"$(property Result) $(property ExecMainCode) $(property ExecMainStatus)" "success 1 0"
	is "the socket is still there" "$(property ActiveState socket)" active
	is "the next client starts the service again" "$(nbdinfo --size "$URI")" $((SECTORS * 512))
}

test_killed()
{
	local before

	before=$(property MainPID)
	inside kill -KILL "$before"
	wait_until 60 has_restarted || not_ok "it is started again after it was killed" \
		"$(ctl --no-pager status "$UNIT.service")"
	is "clients are served as before" "$(nbdinfo --size "$URI")" $((SECTORS * 512))
	is "it has been started again once" "$(property NRestarts)" 1
}

has_restarted()
{
	[ "$(property NRestarts)" = 1 ] && [ "$(property ActiveState)" = active ]
}

test_stopped()
{
	succeeds "both units are stopped" ctl stop "$UNIT.socket" "$UNIT.service"
	is "the socket's file is gone" "$(find /run/fleece -name '*.sock')" ""
	is "and both have ended well" "$(property Result socket) $(property Result)" "success success"
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
make_units
start_systemd
succeeds "the socket unit is started" ctl start "$UNIT.socket"
test_first_client
test_confined
test_drained
test_killed
test_stopped
stop_systemd
or_bail dm_remove snap
finish
