#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will record four minutes of life of an origin with a metadata device, and
# cut the power at all places; see ../metadata_replay.sh.
here=$(cd "$(dirname "$0")" && pwd)
export FLEECE_REPLAY_SECONDS=${FLEECE_REPLAY_SECONDS:-240} FLEECE_REPLAY_POINTS=${FLEECE_REPLAY_POINTS:-0}
exec "$here/../metadata_replay.sh"
