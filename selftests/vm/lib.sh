# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
#
# What the VM runner's commands share: where things are kept, how a missing
# package is reported, which files belong to the tree, and the promise that
# nothing outlives the command. It knows nothing of suites or of QEMU.

FLEECE_CACHE=${FLEECE_CACHE:-/var/cache/dm-fleece}
FLEECE_TREE=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
FLEECE_BUILD=${FLEECE_BUILD:-$FLEECE_TREE/build}
# shellcheck disable=SC2034 # for the commands that read this file
FLEECE_SUITES="bullseye bookworm trixie trixie-backports"
# The same userspace as bookworm, with a kernel of our own.
# shellcheck disable=SC2034 # likewise
FLEECE_DEBUG_SUITES="debug kcsan"
# Bookworm, with dracut instead of initramfs-tools.
# shellcheck disable=SC2034 # likewise
FLEECE_BOOT_SUITES="dracut"

say()
{
	printf '%s: %s\n' "${0##*/}" "$*" >&2
}

die()
{
	say "$@"
	exit 1
}

# need COMMAND PACKAGE [COMMAND PACKAGE]...: all missing ones in one message.
need()
{
	local missing=""

	while [ $# -gt 1 ]; do
		command -v "$1" >/dev/null || missing="$missing $2"
		shift 2
	done
	[ -z "$missing" ] || die "not installed:$missing (apt-get install$missing)"
}

need_root()
{
	[ "$(id -u)" -eq 0 ] || die "must run as root: it mounts and changes root"
}

# scratch_dir PARENT: makes $SCRATCH, which disappears with this process whatever
# ends it. Processes listed in $CHILDREN are killed first.
scratch_dir()
{
	CHILDREN=""
	SCRATCH=$(mktemp -d "$1/fleece-${0##*/}.XXXXXX") || exit 1
	trap scratch_cleanup EXIT
	trap 'exit 129' HUP
	trap 'exit 130' INT
	trap 'exit 143' TERM
}

scratch_cleanup()
{
	local child

	trap '' HUP INT TERM
	set +e
	for child in $CHILDREN; do
		kill -KILL "$child" 2>/dev/null && wait "$child" 2>/dev/null
	done
	rm -rf --one-file-system "$SCRATCH"
}

# in_namespace COMMAND...: runs it where its mounts and its processes are
# private; both end with it, and it ends with this process. In a plain chroot,
# where / is no mount point, propagation cannot be turned off: COMMAND has to
# unmount what it mounts.
in_namespace()
{
	local propagation=private

	unshare --mount --propagation private true 2>/dev/null || propagation=unchanged
	setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child \
		--propagation $propagation -- "$@"
}

# mount_root ro|rw|over: the beginning of a shell script for in_namespace, with the arguments
# ROOT MOUNTPOINT: ROOT, read-only if others use it as well, or below what keeps all changes
# in memory, with a /proc and its own few devices: unmounting a copy of /dev could reach the original. The mounts are seen by that
# shell alone.
mount_root()
{
	cat <<'END'
set -eu
root=$1 mnt=$2
END
	# shellcheck disable=SC2016 # for that shell
	case $1 in
	rw) echo 'mount --bind "$root" "$mnt"' ;;
	ro) echo 'mount --bind "$root" "$mnt" && mount -o remount,bind,ro "$mnt"' ;;
	over)
		echo 'mount -t tmpfs tmpfs "$mnt"'
		echo 'mkdir "$mnt/upper" "$mnt/work"'
		echo 'mount -t overlay -o "lowerdir=$root,upperdir=$mnt/upper,workdir=$mnt/work" overlay "$mnt"'
		;;
	esac
	cat <<'END'
mount -t proc proc "$mnt/proc"
mount -t tmpfs -o mode=755 tmpfs "$mnt/dev"
for device in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 fuse:10:229; do
	numbers=${device#*:}
	mknod -m 666 "$mnt/dev/${device%%:*}" c "${numbers%:*}" "${numbers#*:}"
done
ln -s /proc/self/fd "$mnt/dev/fd"
END
}

# enter_root ro|rw|over: a shell script for in_namespace, with the arguments ROOT MOUNTPOINT
# WORK WORD. It runs WORK/steps in ROOT as `sh /fleece/steps WORD`; /fleece is WORK.
enter_root()
{
	mount_root "$1"
	cat <<'END'
work=$3 word=$4
mount -t tmpfs tmpfs "$mnt/tmp"
mount --bind "$work" "$mnt/fleece"
status=0
chroot "$mnt" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp LC_ALL=C.UTF-8 \
	sh -c 'cd /fleece && exec sh ./steps "$1"' sh "$word" || status=$?
# What was left running for a moment, as the pause between two dots of DKMS.
[ $$ -ne 1 ] || kill -KILL -1 2> /dev/null || :
umount --recursive "$mnt" || { sleep 1 && umount --recursive "$mnt"; }
exit $status
END
}

# interruptible COMMAND...: a trap runs only between commands, so that a long
# one has to be waited for in the background for the trap to run at once.
interruptible()
{
	local status=0

	"$@" &
	CHILDREN="$CHILDREN $!"
	wait $! || status=$?
	CHILDREN=${CHILDREN% *}
	return $status
}

# tree_files: the source files, as names below $FLEECE_TREE: what git tracks or
# would track, or without git everything but the usual build products.
tree_files()
{
	(
		cd "$FLEECE_TREE" || exit 1
		# The tree may belong to someone else than root, who runs this.
		if git -c safe.directory="$FLEECE_TREE" rev-parse --git-dir >/dev/null 2>&1; then
			git -c safe.directory="$FLEECE_TREE" ls-files -co --exclude-standard
		else
			find . -name .git -prune -o -path ./build -prune -o \
				! -name '*.o' ! -name '*.ko' ! -name '*.mod*' ! -name '.*.cmd' \
				\( -type f -o -type l \) -print | cut -c3-
		fi | LC_ALL=C sort | while IFS= read -r file; do
			[ ! -e "$file" ] || printf '%s\n' "$file"
		done
	)
}
