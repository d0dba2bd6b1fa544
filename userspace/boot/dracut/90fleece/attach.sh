#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# dracut, initqueue and pre-mount: attaches the origins before the root file system is
# mounted. A failure is said, and does not keep the machine from booting. It is sourced.
if [ -s /etc/fleece/fleecetab ]; then
	modprobe -q dm-fleece
	fleece attach --all || echo "fleece: not all origins are attached, see fleecetab(5)" >&2
fi
