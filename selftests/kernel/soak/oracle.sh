#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# This test will run the oracle for ten minutes; see ../oracle_group.sh.
here=$(cd "$(dirname "$0")" && pwd)
FLEECE_ORACLE_SECONDS=${FLEECE_ORACLE_SECONDS:-600} exec "$here/../oracle_group.sh"
