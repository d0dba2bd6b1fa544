// SPDX-License-Identifier: GPL-2.0-only
/* fleecetab_dump FILE: prints what was read of it, for fleecetab.sh. */
#include <inttypes.h>
#include <stdio.h>

#include "fleecetab.h"

int main(int argc, char **argv)
{
	const struct fleecetab_entry *entry;
	struct fleecetab tab;
	enum status status;
	size_t i;

	if (argc != 2)
		return USAGE;
	status = fleecetab_read(argv[1], &tab);
	for (i = 0; i < tab.count; i++) {
		entry = &tab.entries[i];
		printf("%s %s %s %" PRIu64 " %s%s\n", entry->name, entry->device,
		       entry->metadata[0] ? entry->metadata : "-", entry->granularity,
		       entry->is_manual ? "manual" : "auto",
		       entry->needs_metadata ? " strict" : "");
	}
	fleecetab_free(&tab);
	return status;
}
