#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will have systemd's own checker look at the units of fleeced: each
# line must mean something, and little be left to a server that was taken over.
# It prints TAP and starts nothing.
set -u
cd "$(dirname "$0")" || exit 1
tree=$(cd ../.. && pwd)
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
count=0
failed=0

# Of 10: that of a service that is not confined at all is 9.6.
EXPOSURE=2.0

# passes TEXT COMMAND...: it succeeds and says nothing.
passes()
{
	local text=$1 said status=0

	shift
	count=$((count + 1))
	said=$("$@" 2>&1) || status=$?
	if [ $status -eq 0 ] && [ -z "$said" ]; then
		echo "ok $count - $text"
	else
		failed=1
		echo "not ok $count - $text"
		printf '%s\n' "$said" "exit status $status" | sed 's/^/#   /'
	fi
}

verify()
{
	SYSTEMD_UNIT_PATH=$units: systemd-analyze verify --man=no "fleeced@some-snap.$1"
}

confined()
{
	local table

	table=$(SYSTEMD_UNIT_PATH=$units: systemd-analyze security --no-pager --offline=true \
		--threshold="${EXPOSURE/./}" "fleeced@some-snap.service" 2>&1) || echo "$table"
}

units=$scratch/units
passes "the units are installed" make -s --no-print-directory -C "$tree/userspace" \
	install-units DESTDIR= UNITDIR="$units" SBINDIR="$tree/userspace/fleeced"
if command -v systemd-analyze > /dev/null; then
	passes "systemd takes the service as it is" verify service
	passes "systemd takes the socket as it is" verify socket
	passes "an exposure of $EXPOSURE at most" confined
else
	for text in "the service" "the socket" "the exposure"; do
		count=$((count + 1))
		echo "ok $count - $text # SKIP no systemd-analyze here"
	done
fi
echo "1..$count"
exit $failed
