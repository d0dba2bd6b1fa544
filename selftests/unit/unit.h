/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * unit: what every unit test program has in common: cases, verdicts in TAP, and
 * random numbers that are the same in each run.
 */
#ifndef UNIT_H
#define UNIT_H

#include <stdbool.h>
#include <stdint.h>

/**
 * struct unit_case - one case
 * @text: what is tested; the case's name.
 * @run: fails by require(). Must leave no memory of the sources under test.
 */
struct unit_case {
	const char *text;
	void (*run)(void);
};

/**
 * unit_main() - run all cases and print their verdicts
 * @cases: ended by one without a text.
 *
 * Return: the exit status of the program.
 */
int unit_main(const struct unit_case *cases);

/**
 * unit_fail() - end the case
 * @file: where.
 * @line: where.
 * @format: why.
 */
void unit_fail(const char *file, int line, const char *format, ...)
	__attribute__((noreturn, format(printf, 3, 4)));

/* The case fails here unless the condition is true; format and values say why. */
#define require(condition, ...)						\
	do {								\
		if (!(condition))					\
			unit_fail(__FILE__, __LINE__, __VA_ARGS__);	\
	} while (0)

/**
 * unit_random() - a random number
 * @below: above 0.
 *
 * The sequence begins anew in each case. FLEECE_SEED in the environment chooses
 * another one.
 *
 * Return: a number from 0 to @below - 1.
 */
uint64_t unit_random(uint64_t below);

/**
 * unit_chance() - true once in so many times
 * @times: how many.
 */
static inline bool unit_chance(uint64_t times)
{
	return !unit_random(times);
}

#endif
