// SPDX-License-Identifier: GPL-2.0-only
/*
 * unit: see unit.h. Also what the sources under test need of the kernel at run
 * time and cannot be had from a header: the clock and new identities.
 */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <linux/timekeeping.h>
#include <linux/uuid.h>

#include "../random.h"
#include "memory.h"
#include "unit.h"

#define SEED	0x5eedULL

u64 unit_now;

static uint64_t state;
static jmp_buf failed;

uint64_t unit_random(uint64_t below)
{
	return random_below(&state, below);
}

void uuid_gen(uuid_t *uuid)
{
	static uint64_t number;

	memset(uuid, 0xee, sizeof(*uuid));
	number++;
	memcpy(uuid, &number, sizeof(number));
}

void unit_fail(const char *file, int line, const char *format, ...)
{
	va_list values;

	printf("# %s:%d: ", file, line);
	va_start(values, format);
	vprintf(format, values);
	va_end(values);
	printf("\n");
	longjmp(failed, 1);
}

static bool run_case(const struct unit_case *which)
{
	/* After a failure memory is left behind; that is no further failure. */
	long before = unit_pieces();

	if (setjmp(failed))
		return false;
	unit_fail_allocation(0);
	which->run();
	require(unit_pieces() == before, "%ld pieces of memory are left", unit_pieces() - before);
	return true;
}

int unit_main(const struct unit_case *cases)
{
	const char *text = getenv("FLEECE_SEED");
	uint64_t seed = text ? strtoull(text, NULL, 0) : SEED;
	bool is_good = true;
	int number;

	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("TAP version 13\n");
	for (number = 0; cases[number].text; number++) {
		state = seed;
		printf("# seed %#" PRIx64 "\n", seed);
		if (run_case(&cases[number])) {
			printf("ok %d - %s\n", number + 1, cases[number].text);
		} else {
			printf("not ok %d - %s\n", number + 1, cases[number].text);
			is_good = false;
		}
	}
	printf("1..%d\n", number);
	return is_good ? 0 : 1;
}
