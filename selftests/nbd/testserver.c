// SPDX-License-Identifier: GPL-2.0-only
/*
 * nbd tests: fleeced with backends in memory, so that the whole program runs
 * under sanitizers without a kernel module. SIGUSR1 breaks the snapshots.
 */
#include <signal.h>

#include "backend_memory.h"
#include "daemon.h"

static void break_all(int signal_number)
{
	(void)signal_number;
	backend_memory_break();
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = break_all, .sa_flags = SA_RESTART };

	sigaction(SIGUSR1, &action, NULL);
	return daemon_main(argc, argv, backend_memory_open);
}
