#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will take an origin and its snapshots through ten thousand random cycles;
# see ../lifecycle_cycles.sh.
here=$(cd "$(dirname "$0")" && pwd)
FLEECE_CYCLES=${FLEECE_CYCLES:-10000} exec "$here/../lifecycle_cycles.sh"
