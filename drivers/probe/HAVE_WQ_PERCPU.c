// SPDX-License-Identifier: GPL-2.0-only
/* alloc_workqueue() wants to be told when a queue is per CPU. */
#include <linux/workqueue.h>

unsigned int probe(void);
unsigned int probe(void)
{
	return WQ_PERCPU;
}
