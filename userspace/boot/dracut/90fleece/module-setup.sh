#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# dracut: takes the lines of fleecetab with the option initramfs, and what is needed to
# attach them, into the initial RAM disk.

fleece_lines()
{
	[ -r /etc/fleece/fleecetab ] || return 0
	awk '{ sub(/(^|[ \t])#.*/, "") } $4 ~ /(^|,)initramfs(,|$)/' /etc/fleece/fleecetab
}

# Called by dracut: is this module wanted?
check()
{
	[ -n "$(fleece_lines)" ]
}

# Called by dracut: what else is needed?
depends()
{
	echo dm
}

# Called by dracut. In host-only mode it takes modules that are in use alone; nothing may be
# attached yet. A kernel without it boots without the target, which should be known before.
installkernel()
{
	# shellcheck disable=SC2154
	modinfo -k "$kernel" dm-fleece > /dev/null 2>&1 ||
		dwarn "fleece: there is no module dm-fleece for the kernel $kernel: it will attach nothing, and what is written then is not seen"
	hostonly='' instmods dm-fleece
}

# Called by dracut; $moddir and $initdir are its variables. Without need-initqueue systemd skips
# the loop in which devices are waited for, if nothing else needs it.
install()
{
	# shellcheck disable=SC2154
	mkdir -p "$initdir/etc/fleece"
	fleece_lines > "$initdir/etc/fleece/fleecetab"
	inst "@SBINDIR@/fleece" /sbin/fleece
	inst_rules 12-dm-fleece.rules
	# shellcheck disable=SC2154
	inst_hook initqueue/settled 50 "$moddir/attach-early.sh"
	inst_hook pre-mount 10 "$moddir/attach.sh"
	dracut_need_initqueue
}
