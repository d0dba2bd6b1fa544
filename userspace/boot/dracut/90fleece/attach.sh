#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# dracut, initqueue/timeout and pre-mount: attaches the origins before the root file system is
# mounted, whatever has not appeared until now. A failure is said, and does not keep the
# machine from booting. It is sourced.
if [ -s /etc/fleece/fleecetab ]; then
	modprobe -q dm-fleece
	fleece attach --all > /dev/null ||
		echo "fleece: not all origins are attached, see fleecetab(5)" >&2
fi
