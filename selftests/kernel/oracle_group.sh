#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will write stamped sectors to two origins, take group snapshots under
# load, and judge every sector read from them by the histories of the writers,
# for FLEECE_ORACLE_SECONDS (default 20), half of it with each granularity.
# FLEECE_ORACLE_SEED repeats a run as far as threads can be repeated.
#
#     a (fleece)   a-snap (fleece-snapshot)      b, b-snap: the same
#         |         |         |
#       disk-a  <---+      a-slice -> cow-a
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=24568		# not a multiple of the larger clusters
seconds=${FLEECE_ORACLE_SECONDS:-20}
seed=${FLEECE_ORACLE_SEED:-$(($(now_ms) % 1000000))}

load_fleece
requires_tool oracle
make_arena 96
make_disk disk-a $SECTORS
make_disk disk-b $SECTORS
make_disk cow-a $((SECTORS + 8192))
make_disk cow-b $((SECTORS + 8192))

# What the program leaves behind when it finds a violation.
# shellcheck disable=SC2317 # called by the cleanup
remove_snapshots()
{
	local name

	for name in a-snap b-snap a-slice b-slice; do
		dm_remove_deferred "$name"
	done
}

# run_oracle GRANULARITY SEED
run_oracle()
{
	or_bail dm_create a "0 $SECTORS fleece $(path_of disk-a) - $1"
	defer dm_remove_deferred a
	or_bail dm_create b "0 $SECTORS fleece $(path_of disk-b) - $1"
	defer dm_remove_deferred b
	defer remove_snapshots
	if "$FLEECE_TEST_BIN/oracle" --seconds $((seconds / 2)) --seed "$2" --granularity "$1" \
		"$PREFIX-a:$(path_of disk-a):$(path_of cow-a)" \
		"$PREFIX-b:$(path_of disk-b):$(path_of cow-b)" > "$SCRATCH/oracle" 2>&1; then
		ok "no violation with granularity $1"
		cat "$SCRATCH/oracle"
	else
		not_ok "no violation with granularity $1" "$(cat "$SCRATCH/oracle")"
		finish
	fi
	succeeds "the origins can be removed" eval "dm_remove a && dm_remove b"
}

run_oracle 128 "$seed"
run_oracle 8 $((seed + 1))
finish
