// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleece, serve: starts fleeced for snapshots, waits until it listens, and
 * prints what to type next. It speaks no NBD itself.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "control.h"
#include "device.h"
#include "lock.h"
#include "process.h"
#include "verbs.h"

#define SERVER			"fleeced"
#define READY_MS		20000
#define READY_STEP_MS		20

struct serve {
	char **names;
	size_t count;
	char socket[sizeof(((struct sockaddr_un *)NULL)->sun_path)];
	const char *listen[16];
	size_t listen_count;
	bool allow_release;
	bool read_once;
	bool is_background;
	char pid_file[PATH_MAX];
	char log_file[PATH_MAX];
	char **more;
	char checkpoint[FLEECE_NAME_SIZE];
};

/* Atomic, as a signal handler reads it. */
static atomic_int server_pid;

static void forward_signal(int number)
{
	if (server_pid > 0)
		kill(server_pid, number);
}

static int connect_socket(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int ret;

	if (fd < 0)
		return -errno;
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	ret = connect(fd, (struct sockaddr *)&address, sizeof(address)) ? -errno : 0;
	close(fd);
	return ret;
}

static void add_word(char **argv, size_t *count, const char *word)
{
	argv[(*count)++] = (char *)word;
}

static char **make_arguments(const struct serve *serve, const char *server,
			     char (*devices)[PATH_MAX])
{
	size_t more = 0, count = 0, i;
	char **argv;

	while (serve->more && serve->more[more])
		more++;
	argv = calloc(serve->count + more + 2 * serve->listen_count + 16, sizeof(*argv));
	if (!argv)
		return NULL;
	add_word(argv, &count, server);
	add_word(argv, &count, "--socket");
	add_word(argv, &count, serve->socket);
	for (i = 0; i < serve->listen_count; i++) {
		add_word(argv, &count, "--listen");
		add_word(argv, &count, serve->listen[i]);
	}
	if (serve->allow_release)
		add_word(argv, &count, "--allow-release");
	if (serve->read_once)
		add_word(argv, &count, "--read-once");
	if (serve->is_background) {
		add_word(argv, &count, "--pid-file");
		add_word(argv, &count, serve->pid_file);
	}
	for (i = 0; i < more; i++)
		add_word(argv, &count, serve->more[i]);
	for (i = 0; i < serve->count; i++)
		add_word(argv, &count, devices[i]);
	return argv;
}

/* In the child. */
static void start_server(const struct serve *serve, char **argv)
{
	int null, log;

	if (serve->is_background) {
		null = open("/dev/null", O_RDWR);
		log = open(serve->log_file, O_WRONLY | O_CREAT | O_APPEND, 0640);
		if (null < 0 || log < 0 || setsid() < 0 || dup2(null, 0) < 0 ||
		    dup2(log, 1) < 0 || dup2(log, 2) < 0) {
			report_errno(errno, NULL, "cannot write %s", serve->log_file);
			_exit(FAILED);
		}
	}
	execvp(argv[0], argv);
	report_errno(errno, NULL, "cannot run %s; is it installed?", argv[0]);
	_exit(errno == ENOENT ? NO_MODULE : FAILED);
}

static enum status ended(const struct serve *serve, int status)
{
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		return DONE;
	if (serve->is_background)
		report_note(NULL, SERVER " may have said why in %s", serve->log_file);
	if (WIFSIGNALED(status))
		return report(FAILED, NULL, SERVER " died of signal %d", WTERMSIG(status));
	return report(WEXITSTATUS(status) == NO_MODULE ? NO_MODULE : FAILED, NULL,
		      SERVER " ended with status %d", WEXITSTATUS(status));
}

/* DONE once it listens; anything else: it has ended. */
static enum status wait_until_ready(const struct serve *serve, pid_t pid)
{
	const struct timespec step = { .tv_nsec = READY_STEP_MS * 1000000L };
	int waited, status;

	for (waited = 0; waited < READY_MS; waited += READY_STEP_MS) {
		if (waitpid(pid, &status, WNOHANG) == pid) {
			enum status end = ended(serve, status);

			return end == DONE ? FAILED : end;
		}
		if (!connect_socket(serve->socket))
			return DONE;
		nanosleep(&step, NULL);
	}
	kill(pid, SIGTERM);
	waitpid(pid, &status, 0);
	return report(FAILED, NULL, SERVER " does not listen on %s", serve->socket);
}

static void print_commands(const struct serve *serve, pid_t pid)
{
	char uri[512];
	size_t i;

	for (i = 0; i < serve->count; i++) {
		const char *name = serve->names[i];

		snprintf(uri, sizeof(uri), "nbd+unix:///%s?socket=%s", name, serve->socket);
		printf("%s\n", uri);
		printf("  nbdinfo '%s'\n", uri);
		if (i == 0 && serve->checkpoint[0])
			printf("  nbdinfo --map=qemu:dirty-bitmap:%s '%s'\n",
			       serve->checkpoint, uri);
		printf("  fleece pull '%s' %s.raw\n", uri, name);
		printf("  nbdcopy -p '%s' %s.raw\n", uri, name);
		printf("  qemu-img convert -p -O qcow2 '%s' %s.qcow2\n", uri, name);
		printf("  nbd-client -unix %s /dev/nbd0 -N %s -readonly\n", serve->socket, name);
	}
	for (i = 0; i < serve->listen_count; i++)
		printf("nbd://%s/%s\n", serve->listen[i], serve->names[0]);
	if (serve->is_background)
		printf("stop it with: kill %d\n", (int)pid);
	fflush(stdout);
}

static enum status wait_until_end(const struct serve *serve, pid_t pid)
{
	int status;

	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return report_errno(errno, NULL, "cannot wait for " SERVER);
	return ended(serve, status);
}

static enum status run_server(const struct serve *serve, char **argv)
{
	struct sigaction action = { .sa_handler = forward_signal };
	enum status status;
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (pid == 0)
		start_server(serve, argv);
	if (pid < 0)
		return report_errno(errno, NULL, "cannot start " SERVER);
	server_pid = pid;
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGHUP, &action, NULL);
	status = wait_until_ready(serve, pid);
	if (status != DONE)
		return status;
	print_commands(serve, pid);
	return serve->is_background ? DONE : wait_until_end(serve, pid);
}

/* Any checkpoint will do for the example of a map. */
static void find_checkpoint(struct serve *serve, const struct snapshot *snapshot, int control)
{
	struct fleece_checkpoint *list;
	size_t count;
	int device = device_open(&snapshot->dm);

	if (device < 0)
		return;
	if (!fleece_control_checkpoints(control, device, &list, &count)) {
		if (count)
			snprintf(serve->checkpoint, sizeof(serve->checkpoint), "%s",
				 list[0].name);
		free(list);
	}
	close(device);
}

static enum status find_snapshots(struct serve *serve, char (*devices)[PATH_MAX], int control)
{
	struct snapshot snapshot;
	enum status status;
	size_t i;

	for (i = 0; i < serve->count; i++) {
		status = device_snapshot(serve->names[i], &snapshot);
		if (status != DONE)
			return status;
		if (snapshot.status.is_broken)
			return report(BROKEN, snapshot.dm.name, "is broken (%s)",
				      strerror(snapshot.status.error));
		serve->names[i] = strdup(snapshot.dm.name);
		if (!serve->names[i])
			return report_errno(ENOMEM, NULL, "cannot prepare");
		snprintf(devices[i], sizeof(devices[i]), "/dev/mapper/%s", snapshot.dm.name);
		if (i == 0)
			find_checkpoint(serve, &snapshot, control);
	}
	return DONE;
}

static enum status choose_files(struct serve *serve)
{
	enum status status = lock_run_dir();

	if (status != DONE)
		return status;
	if (!serve->socket[0] &&
	    snprintf(serve->socket, sizeof(serve->socket), RUN_DIR "/%s.sock", serve->names[0]) >=
	    (int)sizeof(serve->socket))
		return report(FAILED, serve->names[0],
			      "its name is too long for a socket's path; choose one with --socket");
	if (!serve->pid_file[0])
		snprintf(serve->pid_file, sizeof(serve->pid_file), RUN_DIR "/%s.pid",
			 serve->names[0]);
	if (!serve->log_file[0])
		snprintf(serve->log_file, sizeof(serve->log_file), RUN_DIR "/%s.log",
			 serve->names[0]);
	if (!connect_socket(serve->socket))
		return report(BUSY, serve->names[0], "somebody serves on %s already",
			      serve->socket);
	return DONE;
}

static enum status serve_snapshots(struct serve *serve, int control)
{
	char (*devices)[PATH_MAX] = calloc(serve->count, sizeof(*devices));
	char server[PATH_MAX], **argv = NULL;
	enum status status;

	if (!devices)
		return report_errno(ENOMEM, NULL, "cannot prepare");
	status = find_snapshots(serve, devices, control);
	if (status == DONE)
		status = choose_files(serve);
	if (status == DONE) {
		process_find(server, sizeof(server), SERVER, SERVER);
		argv = make_arguments(serve, server, devices);
		status = argv ? run_server(serve, argv) :
				report_errno(ENOMEM, NULL, "cannot prepare");
	}
	free(argv);
	free(devices);
	return status;
}

static enum status copy_path(char *to, size_t size, const char *from)
{
	if (!*from || snprintf(to, size, "%s", from) >= (int)size)
		return verb_usage("the path '%s' is too long or empty", from);
	return DONE;
}

enum option_value { SOCKET = 256, LISTEN, RELEASE, ONCE, BACKGROUND, PID, LOG };

static enum status parse_option(int option, struct serve *serve)
{
	switch (option) {
	case SOCKET:
		return copy_path(serve->socket, sizeof(serve->socket), optarg);
	case PID:
		return copy_path(serve->pid_file, sizeof(serve->pid_file), optarg);
	case LOG:
		return copy_path(serve->log_file, sizeof(serve->log_file), optarg);
	case LISTEN:
		if (serve->listen_count == sizeof(serve->listen) / sizeof(serve->listen[0]))
			return verb_usage("too many --listen");
		serve->listen[serve->listen_count++] = optarg;
		return DONE;
	case RELEASE:
		serve->allow_release = true;
		return DONE;
	case ONCE:
		serve->read_once = true;
		return DONE;
	default:
		serve->is_background = true;
		return DONE;
	}
}

enum status verb_serve(int argc, char **argv)
{
	static const struct option options[] = {
		{ "socket", required_argument, NULL, SOCKET },
		{ "listen", required_argument, NULL, LISTEN },
		{ "allow-release", no_argument, NULL, RELEASE },
		{ "read-once", no_argument, NULL, ONCE },
		{ "background", no_argument, NULL, BACKGROUND },
		{ "pid-file", required_argument, NULL, PID },
		{ "log-file", required_argument, NULL, LOG },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	struct serve serve = { 0 };
	enum status status = DONE;
	int option, control, i;

	/* What follows "--" is not ours. */
	for (i = 1; i < argc && !serve.more; i++)
		if (!strcmp(argv[i], "--"))
			serve.more = argv + i + 1;
	if (serve.more)
		argc = (int)(serve.more - argv) - 1;
	while (status == DONE && (option = verb_option(argc, argv, options)) >= 0)
		status = parse_option(option, &serve);
	if (status != DONE)
		return status;
	serve.names = argv + optind;
	serve.count = (size_t)(argc - optind);
	if (!serve.count)
		return verb_usage("at least one SNAPSHOT is needed");
	status = device_start(&control);
	return status == DONE ? serve_snapshots(&serve, control) : status;
}
