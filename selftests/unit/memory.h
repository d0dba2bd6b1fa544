/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * memory: where the memory of the sources under test comes from. It is counted,
 * what is not asked to be zero is garbage, each piece must be given back in the
 * way it was taken, and one allocation can be made to fail. Not for the memory of
 * the tests themselves.
 */
#ifndef UNIT_MEMORY_H
#define UNIT_MEMORY_H

#include <stdbool.h>
#include <stddef.h>

enum memory_kind {
	MEMORY_PAGE,
	MEMORY_SLAB,
	MEMORY_VIRTUAL,
	MEMORY_SLAB_OR_VIRTUAL,
};

/**
 * unit_alloc() - take memory
 * @kind: how it will be given back.
 * @bytes: how much.
 * @is_zero: filled with zeros rather than garbage.
 * @gfp: must not be 0, otherwise of no consequence.
 *
 * Return: the memory, or NULL if unit_fail_allocation() wants it.
 */
void *unit_alloc(enum memory_kind kind, size_t bytes, bool is_zero, unsigned int gfp);

/**
 * unit_alloc_array() - take memory of the kind MEMORY_SLAB_OR_VIRTUAL
 * @count: number of elements.
 * @bytes: size of each.
 * @is_zero: see unit_alloc().
 * @gfp: see unit_alloc().
 *
 * Return: see unit_alloc(); also NULL if there is too much of it.
 */
void *unit_alloc_array(size_t count, size_t bytes, bool is_zero, unsigned int gfp);

/**
 * unit_free() - give memory back
 * @kind: what it was taken as; anything else ends the program.
 * @memory: may be NULL.
 */
void unit_free(enum memory_kind kind, const void *memory);

/**
 * unit_fail_allocation() - let one allocation fail
 * @nth: which one, counted from now on; 0: none.
 */
void unit_fail_allocation(unsigned long nth);

/**
 * unit_allocations() - how often memory was asked for since the program began
 */
unsigned long unit_allocations(void);

/**
 * unit_pieces() - how many pieces of memory are taken now
 */
long unit_pieces(void);

#endif
