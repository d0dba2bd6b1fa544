#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will install the programs below an empty directory, and remove them again: nothing
# may be left but what others, or an administrator, have put there.
set -u
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/../tap.sh"

userspace=$(cd "$(dirname "$0")/../../userspace" && pwd)
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT

# case_of TEXT COMMAND...
case_of()
{
	text=$1
	shift
	if "$@" > "$scratch/said" 2>&1; then
		result ok "$text"
	else
		result "not ok" "$text"
		sed 's/^/# /' "$scratch/said"
	fi
}

run_make()
{
	make -s -C "$userspace" DESTDIR="$scratch/root" "$@"
}

# has_all NAME...
has_all()
{
	for name; do
		[ -e "$scratch/root/$name" ] || { echo "$name is missing"; return 1; }
	done
}

# is_left NAME...: these files, in this order, and no others
is_left()
{
	(cd "$scratch/root" && find . ! -type d | LC_ALL=C sort | cut -c3-) > "$scratch/left"
	printf '%s\n' "$@" | diff "$scratch/left" -
}

case_of "everything can be installed" run_make install
case_of "programs, rules, units and what boots are in their places" has_all \
	usr/local/sbin/fleece usr/local/sbin/fleeced usr/local/share/man/man8/fleece.8 \
	lib/udev/rules.d/12-dm-fleece.rules lib/systemd/system/fleece-attach.service \
	usr/share/initramfs-tools/hooks/fleece usr/lib/dracut/modules.d/90fleece/module-setup.sh \
	etc/kernel/header_postinst.d/zz-fleece \
	etc/fleece
case_of "no place in them is left to be filled in" \
	sh -c "! grep -rIE '@(SBINDIR|UDEVDIR)@' '$scratch/root'"
case_of "all of it can be removed" run_make uninstall
case_of "nothing is left" sh -c "[ -z \"\$(find '$scratch/root' ! -type d -o -name '*fleece*')\" ]"

mkdir -p "$scratch/root/etc/fleece" "$scratch/root/usr/local/sbin"
chmod 2750 "$scratch/root/etc/fleece"
chmod 2775 "$scratch/root/usr/local/sbin"
run_make install > /dev/null 2>&1
case_of "directories that were there keep their modes" sh -c "[ \
	\"\$(stat -c %a '$scratch/root/etc/fleece' '$scratch/root/usr/local/sbin' | paste -sd' ')\" = '2750 2775' ]"
echo "data /dev/sdb -" > "$scratch/root/etc/fleece/fleecetab"
touch "$scratch/root/lib/udev/rules.d/99-other.rules"
case_of "it can be removed when it has been set up" run_make uninstall
case_of "what others have put there is left" is_left etc/fleece/fleecetab \
	lib/udev/rules.d/99-other.rules
case_of "removing it twice is no error" run_make uninstall

# As where there is no libnbd.h: a compiler that has no headers to find.
printf '#!/bin/sh\ncase "$*" in *libnbd.h*) exit 1 ;; esac\nexec cc "$@"\n' > "$scratch/cc"
chmod +x "$scratch/cc"
case_of "without libnbd, all but fleece-pull can be installed" run_make CC="$scratch/cc" install
cp "$scratch/said" "$scratch/built"
case_of "fleece-pull is missing then" sh -c "[ ! -e '$scratch/root/usr/local/sbin/fleece-pull' ]"
case_of "which is said" grep -q "NOT built" "$scratch/built"
end_tap
