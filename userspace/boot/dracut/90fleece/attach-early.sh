#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# dracut, initqueue/settled: attaches the origins whose devices have appeared, as often as
# others are waited for, and after half a minute also what has to do without its metadata.
# dracut counts the half seconds in main_loop, but not while it asks for a passphrase. The
# same complaint each time says nothing new. This is sourced.
if [ -s /etc/fleece/fleecetab ]; then
	modprobe -q dm-fleece || modprobe -q dm-mod
	fleece_early=--early
	[ "${main_loop:-0}" -lt 60 ] || fleece_early=
	# shellcheck disable=SC2086,SC2154 # one word or none, and dracut's
	fleece_said=$(fleece attach --all $fleece_early ${root:+--root "${root#block:}"} 2>&1 > /dev/null)
	if [ "$fleece_said" != "$(cat /run/fleece-said 2> /dev/null)" ]; then
		echo "$fleece_said" > /run/fleece-said
		echo "$fleece_said" >&2
	fi
fi
