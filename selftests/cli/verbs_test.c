// SPDX-License-Identifier: GPL-2.0-only
/*
 * cli tests, verbs: runs attach, detach, snapshot and remove on the model of
 * device-mapper. Checked are the order of what is done, and that every single
 * failure, a kill and a freeze that hangs leave nothing half made and no
 * origin suspended.
 */
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../tap.h"
#include "main.h"
#include "model.h"
#include "report.h"

#define ARGUMENTS_MAX	16
/* Every verb here makes fewer changes. */
#define CHANGES_MAX	64

/* Run a command line of words without quotes; what it prints is dropped. */
static int run(const char *line)
{
	char text[512], *argv[ARGUMENTS_MAX + 1] = { 0 }, *rest = NULL, *word;
	int out, err, null, status, argc = 0;

	snprintf(text, sizeof(text), "%s", line);
	for (word = strtok_r(text, " ", &rest); word && argc < ARGUMENTS_MAX;
	     word = strtok_r(NULL, " ", &rest))
		argv[argc++] = word;
	fflush(NULL);
	out = dup(1);
	err = dup(2);
	null = open("/dev/null", O_WRONLY);
	dup2(null, 1);
	if (!getenv("VERBOSE"))
		dup2(null, 2);
	/* getopt starts anew. */
	optind = 0;
	status = fleece_main(argc, argv);
	fflush(NULL);
	dup2(out, 1);
	dup2(err, 2);
	close(out);
	close(err);
	close(null);
	return status;
}

static const char attach_order[] =
	"create:vg-lv-lower load:vg-lv-lower resume:vg-lv-lower load:vg-lv hold:vg-lv go:vg-lv";
static const char *const snapshot_order[] = {
	"cow:a-snap", "cow:b-snap", "create:a-snap", "load:a-snap", "create:b-snap",
	"load:b-snap", "freeze:a", "freeze:b", "go:a-snap", "go:b-snap", "go:b", "go:a",
};

/* Whether the model's log has exactly these words. */
static bool is_log(const char *const *words, size_t count)
{
	const char *at = model->log;
	size_t i;

	for (i = 0; i < count; i++) {
		size_t length = strlen(words[i]);

		if (strncmp(at, words[i], length) || (at[length] && at[length] != ' '))
			return false;
		at += length + (at[length] == ' ');
	}
	return !*at;
}

#define set_text(room, text)	snprintf(room, sizeof(room), "%s", text)

static bool is_table(const char *name, const char *type)
{
	const struct model_device *device = model_find(name);

	return device && !strcmp(device->live.type, type) && !device->is_suspended &&
	       !device->inactive.type[0];
}

static bool has_params(const char *name, const char *params)
{
	return !strcmp(model_find(name)->live.params, params);
}

static void set_up_live(void)
{
	model_reset();
	model_add("vg-lv", "LVM-x", "linear", "4001:0 2048");
}

static void set_up_origins(void)
{
	model_reset();
	model_add("a", "LVM-a", "fleece", "4001:1 - 128");
	model_add("b", "LVM-b", "fleece", "4001:2 - 128");
}

static bool origins_are_unharmed(void)
{
	return is_table("a", "fleece") && is_table("b", "fleece") && !model_find("a-snap") &&
	       !model_find("b-snap") && !model->cows;
}

static void test_attach(void)
{
	unsigned int at;
	int status;

	set_up_live();
	status = run("fleece attach vg-lv");
	tap_ok(status == DONE && is_table("vg-lv", "fleece") && is_table("vg-lv-lower", "linear"),
	       "attach moves the table to the lower device");
	tap_ok(!strcmp(model_find("vg-lv")->live.params, "4003:1 - 128"),
	       "the origin's table names the lower device: %s", model_find("vg-lv")->live.params);
	tap_ok(!strcmp(model_find("vg-lv-lower")->live.params, "4001:0 2048"),
	       "the lower device has the old table");
	tap_ok(!strncmp(model_find("vg-lv-lower")->uuid, "FLEECE-lower-", 13),
	       "the lower device's uuid is ours");
	tap_ok(!strcmp(model->log, attach_order),
	       "attach does it in this order: %s", model->log);
	tap_ok(run("fleece attach vg-lv") == BUSY, "attach twice is refused");
	tap_ok(run("fleece attach vg-lv-lower") == BUSY, "attach of a lower device is refused");

	for (at = 1; at < CHANGES_MAX; at++) {
		set_up_live();
		model->fail_at = at;
		status = run("fleece attach vg-lv");
		if (model->changes < at)
			break;
		tap_ok(status == FAILED && is_table("vg-lv", "linear") &&
		       !model_find("vg-lv-lower"),
		       "attach is undone when change %u fails: %s", at, model->log);
	}
	tap_ok(at == 7, "attach makes %u changes, each was made to fail", at - 1);
}

/* Somebody else changes the device meanwhile: their table stays, and is nowhere below ours. */
static void test_attach_meddled(bool is_slow)
{
	unsigned int at, nr_wrong = 0;

	for (at = 1; at <= 6; at++) {
		set_up_live();
		set_text(model->meddle_with, "vg-lv");
		model->meddle_at = at;
		model->is_meddler_slow = is_slow;
		if (run("fleece attach vg-lv") == DONE)
			/* Ours was loaded over theirs, which is lost to us both. */
			nr_wrong += !is_slow || at != 4 || !is_table("vg-lv", "fleece");
		else
			nr_wrong += model_find("vg-lv-lower") ||
				    (!is_slow && !has_params("vg-lv", "4001:0 4096"));
		nr_wrong += model_find("vg-lv")->is_suspended;
	}
	tap_ok(!nr_wrong, "attach gives way when another program %s a table before any change",
	       is_slow ? "loads" : "changes");
}

static void test_detach_meddled(void)
{
	static const char theirs[] = "4001:0 4096";
	unsigned int at, nr_wrong = 0;

	for (at = 1; at <= 3; at++) {
		set_up_live();
		run("fleece attach vg-lv");
		set_text(model->meddle_with, "vg-lv");
		model->meddle_at = model->changes + at;
		nr_wrong += run("fleece detach vg-lv") != BUSY || !has_params("vg-lv", theirs) ||
			    model_find("vg-lv")->inactive.type[0];
		set_up_live();
		run("fleece attach vg-lv");
		set_text(model->meddle_with, "vg-lv-lower");
		model->meddle_at = model->changes + 1;
		nr_wrong += run("fleece detach vg-lv") != BUSY || !is_table("vg-lv", "fleece") ||
			    model_find("vg-lv")->inactive.type[0];
	}
	tap_ok(!nr_wrong, "detach gives way, too");
}

static void test_attach_refusals(void)
{
	set_up_live();
	set_text(model_find("vg-lv")->live.type, "cache");
	tap_ok(run("fleece attach vg-lv") == FAILED && !model->changes,
	       "attach refuses a target with state of its own");
	set_up_live();
	model_find("vg-lv")->is_suspended = true;
	tap_ok(run("fleece attach vg-lv") == BUSY && !model->changes,
	       "attach refuses a suspended device");
	set_up_live();
	model_add("vg-lv-lower", "x", "linear", "4001:0 0");
	tap_ok(run("fleece attach vg-lv") == BUSY && !model->changes,
	       "attach refuses when the lower device's name is in use");
	set_up_live();
	tap_ok(run("fleece attach vg-lv --name other") == USAGE && !model->changes,
	       "attach refuses a name for a live device");
	tap_ok(run("fleece attach vg-lv --metadata /dev/null") == NO_DEVICE && !model->changes,
	       "attach refuses a metadata device that is none");
}

static void test_detach(void)
{
	unsigned int at;
	int status;

	set_up_live();
	run("fleece attach vg-lv");
	model_find("vg-lv")->snapshots = 1;
	tap_ok(run("fleece detach vg-lv") == BUSY && is_table("vg-lv", "fleece"),
	       "detach refuses while there is a snapshot");
	model_find("vg-lv")->snapshots = 0;
	model->log[0] = 0;
	tap_ok(run("fleece detach vg-lv") == DONE && is_table("vg-lv", "linear") &&
	       !model_find("vg-lv-lower"), "detach puts the old table back: %s", model->log);
	tap_ok(!strcmp(model_find("vg-lv")->live.params, "4001:0 2048"), "it is the same table");
	tap_ok(run("fleece detach vg-lv") == NO_DEVICE, "detach twice is refused");

	for (at = 1; at < CHANGES_MAX; at++) {
		set_up_live();
		run("fleece attach vg-lv");
		model->fail_at = model->changes + at;
		status = run("fleece detach vg-lv");
		if (model->changes < model->fail_at)
			break;
		tap_ok(status == FAILED && is_table("vg-lv", "fleece") &&
		       is_table("vg-lv-lower", "linear"),
		       "detach is undone when change %u fails", at);
	}
	tap_ok(at == 4, "detach makes %u changes, each was made to fail", at - 1);
}

static void test_detach_plain(void)
{
	model_reset();
	model_add("data", "FLEECE-origin-x", "fleece", "4001:1 - 128");
	model_find("data")->is_open = true;
	tap_ok(run("fleece detach data") == BUSY && is_table("data", "fleece"),
	       "detach of a plain device in use is refused");
	model_find("data")->is_open = false;
	tap_ok(run("fleece detach data") == DONE && !model_find("data"),
	       "detach removes an unused plain device");
}

static void test_snapshot(void)
{
	unsigned int at;
	int status;

	set_up_origins();
	status = run("fleece snapshot a b --cluster 4K --staging 1M --cbw-timeout 5");
	tap_ok(status == DONE && is_table("a-snap", "fleece-snapshot") &&
	       is_table("b-snap", "fleece-snapshot") && is_table("a", "fleece") &&
	       is_table("b", "fleece") && model->cows == 2, "snapshot of two origins");
	tap_ok(model->locks == 1, "it has taken the right to change devices");
	tap_ok(is_log(snapshot_order, sizeof(snapshot_order) / sizeof(snapshot_order[0])),
	       "all is prepared, both are frozen, both snapshots start, both are resumed: %s",
	       model->log);
	tap_ok(!strcmp(model_find("a-snap")->live.params,
		       "4001:1 4002:0 8 4 cbw_timeout 5 staging 2048"),
	       "the table of a snapshot: %s", model_find("a-snap")->live.params);
	tap_ok(!strncmp(model_find("a-snap")->uuid, "FLEECE-snapshot-", 16) &&
	       strstr(model_find("a-snap")->uuid, "-file"),
	       "its uuid tells who made the COW space");
	tap_ok(run("fleece snapshot a") == BUSY && model->cows == 2,
	       "a second snapshot of the same name is refused");
	tap_ok(run("fleece snapshot a --name x/y") == USAGE &&
	       run("fleece snapshot a b --name one") == USAGE &&
	       run("fleece snapshot a b --name one --name one") == USAGE &&
	       run("fleece snapshot a --name b-snap") == BUSY && model->cows == 2,
	       "names that cannot be are refused");
	tap_ok(run("fleece snapshot a --name a-later") == DONE &&
	       is_table("a-later", "fleece-snapshot") && is_table("a-snap", "fleece-snapshot"),
	       "a second snapshot of another name is taken");
	tap_ok(run("fleece remove a-later") == DONE && is_table("a-snap", "fleece-snapshot") &&
	       model->cows == 2, "and removed");
	tap_ok(run("fleece grow a-snap 1G") == DONE && model->grown == 1, "grow tells the module");
	tap_ok(run("fleece grow a-snap 2G") == FAILED && model->grown == 1,
	       "grow without room does not");
	tap_ok(run("fleece grow a 1G") == NO_DEVICE && run("fleece grow c 1G") == NO_DEVICE,
	       "grow of what is no snapshot is refused");
	model->locks = 0;
	tap_ok(run("fleece remove a-snap b-snap") == DONE && origins_are_unharmed(),
	       "remove frees the COW space");
	tap_ok(model->locks == 1, "it has taken the right to change devices");
	tap_ok(run("fleece remove a-snap") == NO_DEVICE, "remove twice is refused");
	tap_ok(run("fleece remove a") == NO_DEVICE && is_table("a", "fleece"),
	       "remove of an origin is refused");

	for (at = 1; at < CHANGES_MAX; at++) {
		set_up_origins();
		model->fail_at = at;
		status = run("fleece snapshot a b --checkpoint c");
		if (status == DONE)
			break;
		tap_ok(status == FAILED && origins_are_unharmed(),
		       "snapshot undoes everything when change %u fails: %s", at, model->log);
	}
	tap_ok(at == 13, "snapshot makes %u changes, each was made to fail", at - 1);
}

static void test_checkpoints(void)
{
	set_up_origins();
	set_text(model->checkpoints, "old u1 1 0 valid\nlost u2 2 0 invalid\n");
	tap_ok(run("fleece snapshot a --since old --checkpoint new") == DONE &&
	       !strcmp(model_find("a-snap")->live.params,
		       "4001:1 4002:0 128 4 since old checkpoint new"),
	       "since and checkpoint are passed on");
	set_up_origins();
	set_text(model->checkpoints, "old u1 1 0 valid\nlost u2 2 0 invalid\n");
	tap_ok(run("fleece snapshot a --since none") == NO_CHECKPOINT && !model->changes,
	       "an unknown checkpoint: nothing is touched, exit status 7");
	tap_ok(run("fleece snapshot a --since lost") == NO_CHECKPOINT && !model->changes,
	       "an invalid checkpoint: nothing is touched, exit status 7");
	tap_ok(run("fleece snapshot a --checkpoint old") == BUSY && !model->changes,
	       "a checkpoint that exists: nothing is touched, exit status 5");
	model->fail_at = 10;
	tap_ok(run("fleece snapshot a b --checkpoint new") == FAILED && model->deleted == 1,
	       "after a failure the new checkpoint is deleted, but none of a snapshot not started");
}

static void test_snapshot_refusals(void)
{
	set_up_origins();
	tap_ok(run("fleece snapshot a a") == USAGE && !model->changes, "an origin named twice");
	tap_ok(run("fleece snapshot a b --cow /dev/null") == USAGE, "two origins, one COW device");
	tap_ok(run("fleece snapshot a --cow /dev/null --cow-size 1M") == USAGE,
	       "COW device and size together");
	tap_ok(run("fleece snapshot a --on-cbw-error ignore") == USAGE && !model->changes,
	       "an unknown policy for errors");
	tap_ok(run("fleece snapshot a --on-cow-full explode") == USAGE, "an unknown policy");
	tap_ok(run("fleece snapshot a --cow-size 100K") == FAILED && !model->changes,
	       "COW space smaller than its header");
	tap_ok(run("fleece snapshot c") == NO_DEVICE, "an unknown origin");
	model_find("b")->is_suspended = true;
	tap_ok(run("fleece snapshot a b") == BUSY && !model->changes, "a suspended origin");
	model_find("b")->is_suspended = false;
	model_add("c", "LVM-c", "linear", "4001:3 0");
	tap_ok(run("fleece snapshot a c") == NO_DEVICE && !model->changes,
	       "a device that is not attached");
}

/* One filesystem lies in a file of another that is frozen already. */
static void test_stuck_freeze(void)
{
	struct timespec start, end;
	int status;

	set_up_origins();
	set_text(model->stick_on, "b");
	clock_gettime(CLOCK_MONOTONIC, &start);
	status = run("fleece snapshot a b --freeze-timeout 1");
	clock_gettime(CLOCK_MONOTONIC, &end);
	tap_ok(status == FAILED && origins_are_unharmed(),
	       "a freeze that hangs on a frozen origin is given up: %s", model->log);
	tap_ok(end.tv_sec - start.tv_sec >= 1 && end.tv_sec - start.tv_sec < 10,
	       "it is given up when the limit has passed");
}

static bool become_resumed(const char *one, const char *two)
{
	const struct timespec step = { .tv_nsec = 1000000 };
	int i;

	for (i = 0; i < 10000; i++) {
		if (!model_find(one)->is_suspended && (!two || !model_find(two)->is_suspended))
			return true;
		nanosleep(&step, NULL);
	}
	return false;
}

/*
 * Die of SIGKILL before the @at-th change; false if it came to an end. Until its guardian has
 * ended as well, the next command would wait for the lock that it holds.
 */
static bool die_at(const char *line, unsigned int at)
{
	int status, alive[2];
	char byte;
	pid_t pid;

	fflush(NULL);
	if (pipe(alive))
		abort();
	pid = fork();
	if (pid == 0) {
		model->main_pid = getpid();
		model->kill_at = at;
		_exit(run(line));
	}
	close(alive[1]);
	waitpid(pid, &status, 0);
	while (read(alive[0], &byte, 1) > 0)
		;
	close(alive[0]);
	return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
}

static void test_kill(void)
{
	unsigned int at;

	for (at = 1; at < CHANGES_MAX; at++) {
		set_up_origins();
		if (!die_at("fleece snapshot a b", at))
			break;
		tap_ok(become_resumed("a", "b"),
		       "killed before change %u of a snapshot, the origins get resumed", at);
	}
	tap_ok(at == 13, "the snapshot was killed at each of %u changes", at - 1);
	set_up_origins();
	die_at("fleece snapshot a b", 10);
	become_resumed("a", "b");
	model->main_pid = getpid();
	tap_ok(model->cows == 2 && run("fleece remove a-snap b-snap") == DONE &&
	       origins_are_unharmed(), "remove frees what was never started, COW space too");
	for (at = 1; at < CHANGES_MAX; at++) {
		set_up_live();
		if (!die_at("fleece attach vg-lv", at))
			break;
		tap_ok(become_resumed("vg-lv", NULL),
		       "killed before change %u of an attach, the device gets resumed", at);
	}
	tap_ok(at == 7, "the attach was killed at each of %u changes", at - 1);
}

static bool is_attached(void)
{
	return is_table("vg-lv", "fleece") && is_table("vg-lv-lower", "linear") &&
	       has_params("vg-lv-lower", "4001:0 2048");
}

static bool is_detached(void)
{
	return is_table("vg-lv", "linear") && !model_find("vg-lv-lower") &&
	       has_params("vg-lv", "4001:0 2048");
}

/* Die before the @at-th change of one verb, run another one; is the device whole then? */
static bool recovers(const char *dying, unsigned int at, bool is_attach)
{
	int status;

	die_at(dying, model->changes + at);
	model->main_pid = getpid();
	model->kill_at = 0;
	model->has_mortal_guardian = false;
	/* The first one may have come to its end, or not have begun. */
	if (is_attach) {
		status = run("fleece attach vg-lv");
		return is_attached() && (status == DONE || status == BUSY);
	}
	status = run("fleece detach vg-lv");
	return is_detached() && (status == DONE || status == NO_DEVICE);
}

/* A module that does not fit the command is not asked for anything. */
static void test_newer_module(void)
{
	static const char *const lines[] = {
		"fleece attach vg-lv", "fleece detach b", "fleece snapshot b", "fleece list",
		"fleece check",
	};
	size_t i;

	for (i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
		set_up_live();
		model_add("b", "LVM-b", "fleece", "4001:2 - 128");
		model->newer = 1;
		tap_ok(run(lines[i]) == NO_MODULE && !model->changes,
		       "%s, with another interface of the module: exit status 8", lines[i]);
	}
}

/* What a killed command has left is no obstacle to the next one. */
static void test_leftovers(bool dies_as_well)
{
	unsigned int at, nr_wrong = 0;
	int next;

	for (at = 1; at <= 6; at++) {
		for (next = 0; next < 2; next++) {
			set_up_live();
			model->has_mortal_guardian = dies_as_well;
			nr_wrong += !recovers("fleece attach vg-lv", at, next);
			set_up_live();
			run("fleece attach vg-lv");
			model->has_mortal_guardian = dies_as_well;
			nr_wrong += !recovers("fleece detach vg-lv", at, next);
		}
	}
	tap_ok(!nr_wrong, "after a kill at any change%s, the next attach and detach are whole",
	       dies_as_well ? ", of the guardian as well" : "");
}

int main(void)
{
	test_attach();
	test_attach_meddled(false);
	test_attach_meddled(true);
	test_attach_refusals();
	test_detach();
	test_detach_meddled();
	test_detach_plain();
	test_snapshot();
	test_checkpoints();
	test_snapshot_refusals();
	test_stuck_freeze();
	test_kill();
	test_newer_module();
	test_leftovers(false);
	test_leftovers(true);
	return tap_end();
}
