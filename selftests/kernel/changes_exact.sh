#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will hold the change maps of an origin and its snapshots, since many
# checkpoints, against a log of all writes, zeroes and discards: exactly while
# no write is under way, otherwise between what is sure and what is possible.
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/../lib.sh"

SECTORS=32760
seconds=${FLEECE_CHANGES_SECONDS:-8}
seed=${FLEECE_CHANGES_SEED:-$(($(now_ms) % 1000000))}

load_fleece
requires_tool changes
make_discard_arena 48
make_disk disk $SECTORS
make_disk cow "$(cow_sectors 128 256)"

# run_changes GRANULARITY SEED
run_changes()
{
	make_origin origin disk "$1"
	defer dm_remove_deferred origin-snap
	if "$FLEECE_TEST_BIN/changes" --seconds "$seconds" --seed "$2" --discard \
		"$PREFIX-origin" "$(path_of disk)" "$(path_of cow)" > "$SCRATCH/changes" 2>&1; then
		ok "maps are right with granularity $1"
		cat "$SCRATCH/changes"
	else
		not_ok "maps are right with granularity $1" "$(cat "$SCRATCH/changes")"
		finish
	fi
	succeeds "the origin can be removed" dm_remove origin
}

run_changes 8 "$seed"
run_changes 128 $((seed + 1))
run_changes 2048 $((seed + 2))
finish
