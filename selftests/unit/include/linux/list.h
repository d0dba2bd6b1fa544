/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * list: circular doubly linked lists. A removed node points nowhere, so that its
 * use is a fault.
 */
#ifndef UNIT_LINUX_LIST_H
#define UNIT_LINUX_LIST_H

#include <linux/kernel.h>

struct list_head {
	struct list_head *next;
	struct list_head *prev;
};

/* A walk through a list; offset_bytes: of the node in its entry. */
struct unit_walk {
	struct list_head *head;
	struct list_head *node;
	struct list_head *next;
	size_t offset_bytes;
	bool is_reverse;
	bool is_safe;
};

static inline void *unit_entry(const struct unit_walk *walk)
{
	return walk->node == walk->head ? NULL : (char *)walk->node - walk->offset_bytes;
}

static inline struct list_head *unit_beside(const struct unit_walk *walk)
{
	return walk->is_reverse ? walk->node->prev : walk->node->next;
}

/* The next entry, or NULL. Where to go on is looked up before the node goes, if safe. */
static inline void *unit_step(struct unit_walk *walk)
{
	walk->node = walk->next ? walk->next : unit_beside(walk);
	walk->next = walk->is_safe && walk->node != walk->head ? unit_beside(walk) : NULL;
	return unit_entry(walk);
}

static inline struct unit_walk unit_begin(struct list_head *head, size_t offset_bytes)
{
	return (struct unit_walk){ .head = head, .node = head, .offset_bytes = offset_bytes };
}

static inline struct unit_walk unit_begin_reverse(struct list_head *head, size_t offset_bytes)
{
	return (struct unit_walk){
		.head = head, .node = head, .offset_bytes = offset_bytes, .is_reverse = true,
	};
}

static inline struct unit_walk unit_begin_safe(struct list_head *head, size_t offset_bytes,
					       void *unused)
{
	(void)unused;
	return (struct unit_walk){
		.head = head, .node = head, .offset_bytes = offset_bytes, .is_safe = true,
	};
}

static inline void *unit_previous(void *entry, size_t offset_bytes)
{
	struct list_head *node = (struct list_head *)((char *)entry + offset_bytes);

	return (char *)node->prev - offset_bytes;
}

#define list_prev_entry(entry, member) \
	((typeof(entry))unit_previous(entry, __builtin_offsetof(typeof(entry[0]), member)))

/* Unlike the real ones these leave no entry behind when they come to their end. */
#define list_for_each_entry(entry, head, member)					\
	for (struct unit_walk walk =							\
		     unit_begin(head, __builtin_offsetof(typeof(entry[0]), member));	\
	     (entry = unit_step(&walk)); (void)walk)

#define list_for_each_entry_reverse(entry, head, member)				\
	for (struct unit_walk walk =							\
		     unit_begin_reverse(head, __builtin_offsetof(typeof(entry[0]), member));	\
	     (entry = unit_step(&walk)); (void)walk)

#define list_for_each_entry_safe(entry, following, head, member)			\
	for (struct unit_walk walk =							\
		     unit_begin_safe(head, __builtin_offsetof(typeof(entry[0]), member),	\
				     &(following));					\
	     (entry = unit_step(&walk)); (void)walk)

static inline void INIT_LIST_HEAD(struct list_head *head)
{
	head->next = head;
	head->prev = head;
}

static inline void unit_link(struct list_head *node, struct list_head *prev,
			     struct list_head *next)
{
	node->prev = prev;
	node->next = next;
	prev->next = node;
	next->prev = node;
}

static inline void list_add(struct list_head *node, struct list_head *head)
{
	unit_link(node, head, head->next);
}

static inline void list_add_tail(struct list_head *node, struct list_head *head)
{
	unit_link(node, head->prev, head);
}

static inline bool list_empty(const struct list_head *head)
{
	return head->next == head;
}

/* Move all entries to the front of another list. */
static inline void list_splice_init(struct list_head *list, struct list_head *head)
{
	if (list_empty(list))
		return;
	list->next->prev = head;
	list->prev->next = head->next;
	head->next->prev = list->prev;
	head->next = list->next;
	INIT_LIST_HEAD(list);
}

static inline void list_del(struct list_head *node)
{
	node->prev->next = node->next;
	node->next->prev = node->prev;
	node->next = NULL;
	node->prev = NULL;
}

static inline void list_replace(struct list_head *old, struct list_head *node)
{
	node->next = old->next;
	node->next->prev = node;
	node->prev = old->prev;
	node->prev->next = node;
}

static inline bool list_is_first(const struct list_head *node, const struct list_head *head)
{
	return node->prev == head;
}

#endif
