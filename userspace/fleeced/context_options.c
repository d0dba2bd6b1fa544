// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleeced, context_options: which metadata contexts a client can have, and
 * which it has selected. Owns no state: the selection is the connection's.
 */
#include "context_options.h"

#include <endian.h>
#include <string.h>

#include "log.h"

/* Most queries of one option; a client has no use for more than there are contexts. */
#define QUERIES_MAX 1024

static void reply_context(struct client_option *option, uint32_t id, const struct context *context)
{
	uint32_t big_endian = htobe32(id);
	size_t length = strlen(context->name);

	option_begin_reply(option, NBD_REP_META_CONTEXT, sizeof(big_endian) + length);
	option_append(option, &big_endian, sizeof(big_endian));
	option_append(option, context->name, length);
}

/* Are there exactly @queries well-formed queries, and nothing after them? */
static bool are_queries(struct option_data data, uint32_t queries)
{
	size_t length;

	/* Each takes bytes of the data, so that this ends soon, whatever is claimed. */
	while (queries--)
		if (!option_take_string(&data, &length))
			return false;
	return !data.left;
}

static bool is_listed(const struct context *context, struct option_data data, uint32_t queries)
{
	const char *query;
	size_t length;

	if (!queries)
		return true;
	while (queries--) {
		query = option_take_string(&data, &length);
		if (context_matches(context, query, length))
			return true;
	}
	return false;
}

static int list_contexts(struct client_option *option, const struct export *export,
			 uint32_t queries)
{
	size_t i;

	for (i = 0; i < export->context_count; i++)
		if (is_listed(&export->contexts[i], option->data, queries))
			reply_context(option, 0, &export->contexts[i]);
	return option_acknowledge(option);
}

static bool add_to_set(struct context_set *set, unsigned int id)
{
	size_t i;

	for (i = 0; i < set->count; i++)
		if (set->ids[i] == id)
			return true;
	if (set->count == CONNECTION_CONTEXTS)
		return false;
	set->ids[set->count++] = id;
	return true;
}

/* One line for all of them: how many there are is up to the client. */
static void log_unknown(const struct client_option *option, const struct export *export,
			const char *quoted, uint32_t count)
{
	const char *peer = option->connection->transport->peer;

	if (count == 1)
		log_stranger("%s: export %s has no context %s", peer, export->name, quoted);
	else if (count)
		log_stranger("%s: export %s has no context %s, nor %u more that it asked for", peer,
			     export->name, quoted, count - 1);
}

static int set_contexts(struct client_option *option, const struct export *export,
			uint32_t queries)
{
	struct context_set *set = &option->connection->contexts;
	char quoted[CONTEXT_NAME_SIZE] = "";
	uint32_t unknown = 0;
	const char *query;
	size_t length, i;
	int id;

	while (queries--) {
		query = option_take_string(&option->data, &length);
		id = export_find_context(export, query, length);
		if (id < 0) {
			if (!unknown++)
				log_quote(quoted, sizeof(quoted), query, length);
		} else if (!add_to_set(set, id)) {
			set->count = 0;
			return option_refuse(option, NBD_REP_ERR_TOO_BIG, "too many contexts selected");
		}
	}
	/* A client that goes on without one may copy too little. */
	log_unknown(option, export, quoted, unknown);
	for (i = 0; i < set->count; i++)
		reply_context(option, set->ids[i] + 1, &export->contexts[set->ids[i]]);
	return option_acknowledge(option);
}

int context_options_run(struct client_option *option)
{
	struct connection *connection = option->connection;
	struct context_set *set = &connection->contexts;
	bool is_set = option->code == NBD_OPT_SET_META_CONTEXT;
	const struct export *export;
	const char *name;
	uint32_t queries;
	size_t length;

	/* An earlier selection is gone, also if this one fails. */
	if (is_set)
		set->count = 0;
	name = option_take_string(&option->data, &length);
	if (!name || !option_take_u32(&option->data, &queries) ||
	    !are_queries(option->data, queries))
		return option_refuse(option, NBD_REP_ERR_INVALID,
				     "malformed name or list of queries");
	if (queries > QUERIES_MAX)
		return option_refuse(option, NBD_REP_ERR_TOO_BIG, "too many queries");
	if (is_set && connection->form == REPLY_SIMPLE)
		return option_refuse(option, NBD_REP_ERR_INVALID,
				     "negotiate structured replies or extended headers first");
	export = export_table_find(connection->rules->exports, name, length);
	if (!export)
		return option_refuse(option, NBD_REP_ERR_UNKNOWN, "no export of this name");
	if (!is_set)
		return list_contexts(option, export, queries);
	memcpy(set->export_name, name, length);
	set->export_name_length = length;
	set->export = export;
	return set_contexts(option, export, queries);
}
