// SPDX-License-Identifier: GPL-2.0-only
/* fleeced, main: the program with real devices. */
#include "daemon.h"

int main(int argc, char **argv)
{
	return daemon_main(argc, argv, backend_open);
}
