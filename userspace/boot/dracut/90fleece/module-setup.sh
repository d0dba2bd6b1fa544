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
# attached yet.
installkernel()
{
	hostonly='' instmods dm-fleece
}

# Called by dracut; $moddir and $initdir are its variables.
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
}
