# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=sh
#
# What scripts share that print TAP and need no test kernel, see lib.sh for the others.
# Sourced, never run. It counts in $count and $failed.
count=0
failed=0

# result "ok"|"not ok" TEXT: one case.
result()
{
	count=$((count + 1))
	[ "$1" = ok ] || failed=$((failed + 1))
	echo "$1 $count - $2"
}

# end_tap: the plan. Its status is what the script's has to be.
end_tap()
{
	echo "1..$count"
	[ "$failed" -eq 0 ]
}
