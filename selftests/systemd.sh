# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
#
# What the tests of systemd units share: a real systemd, process 1 of namespaces of its own,
# that knows no unit but those in $UNITS. Sourced after lib.sh, never run.

SYSTEMD=/usr/lib/systemd/systemd
UNITS=$SCRATCH/units
CGROUP=/sys/fs/cgroup
manager=
mounted=

# make_units PROGRAM NAME...: ours, for this one, and of Debian's own the named targets, of
# which only the names are needed.
make_units()
{
	local target

	or_bail make -s -C "$FLEECE_TREE/userspace" install-units DESTDIR= UNITDIR="$UNITS" \
		SBINDIR="$(dirname "$1")"
	mkdir -p "$SCRATCH/none"
	for target in "${@:2}"; do
		printf '[Unit]\nDefaultDependencies=no\n' > "$UNITS/$target.target"
	done
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
	wait_until 20 rmdir_tree "$CGROUP/fleece" || note "$CGROUP/fleece is left"
	[ -z "$mounted" ] || umount "$CGROUP"
	mounted=
}

# boot GROUP TARGET: become systemd, process 1 of new namespaces, in a control group of its
# own. What it keeps in /run/systemd would make others believe that it runs this machine.
boot()
{
	echo $BASHPID > "$1/cgroup.procs"
	exec env -i PATH="$PATH" container=fleece SYSTEMD_UNIT_PATH="$UNITS" \
		SYSTEMD_GENERATOR_PATH="$SCRATCH/none" \
		unshare --pid --fork --kill-child --mount --mount-proc --cgroup -- sh -c "
			umount $CGROUP
			mount -t cgroup2 cgroup2 $CGROUP && mount -t tmpfs tmpfs /run/systemd &&
			exec $SYSTEMD --system --unit=$2.target --log-target=console --show-status=no"
}

# start_systemd TARGET: until that is reached.
start_systemd()
{
	if ! grep -q " $CGROUP cgroup2 " /proc/mounts; then
		or_bail mount -t cgroup2 cgroup2 "$CGROUP"
		mounted=yes
	fi
	mkdir "$CGROUP/fleece"
	mkdir -p /run/systemd
	defer stop_systemd
	boot "$CGROUP/fleece" "$1" < /dev/null > "$SCRATCH/systemd" 2>&1 &
	manager=$!
	wait_until 60 is_started "$1" || bail "systemd starts" "$(tail -n 20 "$SCRATCH/systemd")"
}

is_started()
{
	[ "$(ctl is-active "$1.target" 2> /dev/null)" = active ]
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

# property NAME UNIT
property()
{
	ctl show --value -p "$1" "$2"
}
