#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# dracut, initqueue/settled: attaches the origins whose devices have appeared, as often as
# others are waited for. The same complaint each time says nothing new. It is sourced.
if [ -s /etc/fleece/fleecetab ]; then
	modprobe -q dm-fleece
	fleece_said=$(fleece attach --all --early 2>&1 > /dev/null)
	if [ "$fleece_said" != "$(cat /run/fleece-said 2> /dev/null)" ]; then
		echo "$fleece_said" > /run/fleece-said
		echo "$fleece_said" >&2
	fi
fi
