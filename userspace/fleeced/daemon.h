/* SPDX-License-Identifier: GPL-2.0-only */
/* fleeced, daemon: the program, apart from how a device is opened. */
#ifndef FLEECED_DAEMON_H
#define FLEECED_DAEMON_H

#include "backend.h"

/**
 * daemon_main() - the whole program
 * @argc: of main().
 * @argv: of main().
 * @open_backend: how a device is opened: backend_open(), or a test's own.
 *
 * Return: the exit status.
 */
int daemon_main(int argc, char **argv,
		int (*open_backend)(const char *path, struct backend **backend));

#endif
