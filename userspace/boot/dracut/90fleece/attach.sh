#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# dracut, pre-mount: attaches the origins before the root file system is mounted, whatever has
# not appeared until now. dracut stops waiting when the device of the root file system is
# there; its metadata device gets a moment more. A failure is said, and does not keep the
# machine from booting. This is sourced.
if [ -s /etc/fleece/fleecetab ]; then
	modprobe -q dm-fleece || modprobe -q dm-mod
	# shellcheck disable=SC2154 # dracut's
	fleece attach --all --wait 5 ${root:+--root "${root#block:}"} > /dev/null ||
		echo "fleece: not all origins are attached, see fleecetab(5)" >&2
fi
