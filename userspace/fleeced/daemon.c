// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleeced, daemon: puts the parts together in the order in which they depend
 * on each other (devices, exports, sockets, clients), and takes them apart in
 * the reverse order.
 */
#include "daemon.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../lib/standard_files.h"
#include "account.h"
#include "janitor.h"
#include "log.h"
#include "options.h"
#include "privileges.h"
#include "sandbox.h"
#include "server.h"

/* Who serves when root starts the server and does not say who. */
#define DEFAULT_USER	"nobody"

/* With less than what one client may open, those that do would wait for each other. */
#define MULTI_CONN_MIN	4

/* More than a process id takes. */
#define PID_FILE_BYTES	32

struct daemon {
	struct options options;
	struct backend **backends;
	size_t backend_count;
	struct export_table exports;
	struct stop stop;
	struct budget budget;
	struct slots slots;
	struct service_manager manager;
	struct janitor janitor;
	struct tls_credentials *tls;
	struct server server;
};

/*
 * [NAME=]DEVICE: a path may have a '=' too, but only after a '/'. A name that
 * does not fit leaves @name empty, which no export can be called.
 */
static const char *split_device(const char *argument, char *name, size_t size)
{
	const char *equals = strchr(argument, '=');
	const char *slash = strchr(argument, '/');

	*name = '\0';
	if (!equals || (slash && slash < equals))
		return argument;
	if ((size_t)(equals - argument) < size)
		snprintf(name, size, "%.*s", (int)(equals - argument), argument);
	return equals + 1;
}

static int add_device(struct daemon *daemon, const char *argument,
		      int (*open_backend)(const char *path, struct backend **backend))
{
	char name[EXPORT_NAME_SIZE];
	const char *path = split_device(argument, name, sizeof(name));
	struct backend *backend;
	int ret = open_backend(path, &backend);

	if (ret)
		return ret;
	daemon->backends[daemon->backend_count++] = backend;
	if (path == argument)
		snprintf(name, sizeof(name), "%s", backend->name);
	ret = export_table_add(&daemon->exports, name, backend, daemon->options.allow_release);
	if (ret == -EINVAL)
		log_error("%s: no usable export name (only A-Z a-z 0-9 . _ @ + -): give one with NAME=%s",
			  path, path);
	else if (ret == -EEXIST)
		log_error("%s: an export name that begins with %s is taken: give another with NAME=%s",
			  path, name, path);
	else if (ret)
		log_error("%s: %s", path, strerror(-ret));
	return ret;
}

static bool can_release_any(const struct daemon *daemon)
{
	size_t i;

	for (i = 0; i < daemon->backend_count; i++)
		if (daemon->backends[i]->ops->release)
			return true;
	return false;
}

static int open_devices(struct daemon *daemon,
			int (*open_backend)(const char *path, struct backend **backend))
{
	const struct options *options = &daemon->options;
	size_t i;
	int ret;

	daemon->backends = calloc(options->device_count, sizeof(*daemon->backends));
	if (!daemon->backends)
		return -ENOMEM;
	for (i = 0; i < options->device_count; i++) {
		ret = add_device(daemon, options->devices[i], open_backend);
		if (ret)
			return ret;
	}
	if ((options->allow_release || options->read_once) && !can_release_any(daemon)) {
		log_error("%s: none of the devices is a fleece snapshot of a module that can release",
			  options->allow_release ? "--allow-release" : "--read-once");
		return -EINVAL;
	}
	return 0;
}

static void close_devices(struct daemon *daemon)
{
	struct backend *backend;

	export_table_release(&daemon->exports);
	while (daemon->backend_count) {
		backend = daemon->backends[--daemon->backend_count];
		backend->ops->close(backend);
	}
	free(daemon->backends);
}

static int load_credentials(struct daemon *daemon)
{
	const struct options *options = &daemon->options;
	int ret = 0;

	if (options->tls_certs)
		ret = tls_credentials_load_x509(&daemon->tls, options->tls_certs);
	else if (options->tls_psk)
		ret = tls_credentials_load_psk(&daemon->tls, options->tls_psk);
	daemon->server.tls = daemon->tls;
	return ret;
}

static int open_unix_socket(struct daemon *daemon)
{
	const struct options *options = &daemon->options;
	struct listener_set *listeners = &daemon->server.listeners;
	struct socket_access access = { options->socket_mode, -1, -1 };
	struct account account;
	int ret;

	if (options->socket_owner) {
		ret = account_find(options->socket_owner, &account);
		if (ret)
			return ret;
		access.owner = account.user;
		access.group = account.group;
	}
	ret = listen_unix(listeners, options->socket_path, &access);
	if (!ret)
		janitor_add_socket(&daemon->janitor, options->socket_path,
				   listeners->listeners[listeners->count - 1].fd);
	return ret;
}

static int open_sockets(struct daemon *daemon)
{
	const struct options *options = &daemon->options;
	struct listener_set *listeners = &daemon->server.listeners;
	bool allow_any = options->insecure || daemon->tls;
	int ret = service_manager_adopt(listeners, allow_any);
	size_t i;

	for (i = 0; !ret && i < options->listen_count; i++)
		ret = listen_tcp(listeners, options->listen[i], allow_any);
	for (i = 0; !ret && i < options->vsock_count; i++)
		ret = listen_vsock(listeners, options->vsock[i], allow_any);
	if (!ret && options->socket_path)
		ret = open_unix_socket(daemon);
	return ret;
}

static int write_file(const char *path, const char *text)
{
	int file = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
	size_t length = strlen(text);
	int ret = 0;

	if (file < 0)
		return -errno;
	if (write(file, text, length) != (ssize_t)length)
		ret = -EIO;
	close(file);
	return ret;
}

/*
 * What is at its place is lost when the file is written, and removed when the server ends.
 * So it must be a pid file, or empty: no device, image or socket that was named by mistake.
 */
static int check_pid_file(const char *path)
{
	char text[PID_FILE_BYTES + 1];
	struct stat status;
	ssize_t length = 0;
	int file;

	if (stat(path, &status))
		return errno == ENOENT ? 0 : -errno;
	if (!S_ISREG(status.st_mode) || status.st_size > PID_FILE_BYTES)
		return -EEXIST;
	file = open(path, O_RDONLY | O_CLOEXEC);
	if (file < 0)
		return -errno;
	length = read(file, text, sizeof(text) - 1);
	close(file);
	if (length < 0)
		return -EIO;
	text[length] = '\0';
	return strspn(text, "0123456789\n") == (size_t)length ? 0 : -EEXIST;
}

/*
 * Written when clients can connect, so that a script can wait for it, and never
 * seen incomplete.
 */
static int write_pid_file(struct daemon *daemon)
{
	const char *path = daemon->options.pid_file;
	char text[PID_FILE_BYTES], *fresh = NULL;
	int ret;

	if (!path)
		return 0;
	ret = check_pid_file(path);
	if (ret) {
		log_error("cannot write %s: %s", path,
			  ret == -EEXIST ? "it exists, and is no pid file" : strerror(-ret));
		return ret;
	}
	snprintf(text, sizeof(text), "%d\n", getpid());
	if (asprintf(&fresh, "%s.%d", path, getpid()) < 0)
		return -ENOMEM;
	ret = write_file(fresh, text);
	if (!ret && rename(fresh, path))
		ret = -errno;
	if (ret) {
		log_error("cannot write %s: %s", path, strerror(-ret));
		if (ret != -EEXIST)
			unlink(fresh);
	} else {
		janitor_add(&daemon->janitor, path);
	}
	free(fresh);
	return ret;
}

/* All is open: from here on, nothing is needed but what serving needs. */
static int confine(struct daemon *daemon)
{
	const struct options *options = &daemon->options;
	bool changes_user = !options->no_sandbox && (options->user || !geteuid());
	struct account account;
	int ret = 0;

	if (changes_user)
		ret = account_find(options->user ? options->user : DEFAULT_USER, &account);
	if (!ret)
		ret = janitor_start(&daemon->janitor, !options->no_sandbox);
	if (ret || options->no_sandbox)
		return ret;
	ret = privileges_drop(changes_user ? &account : NULL, 0);
	if (!ret)
		ret = sandbox_enter_server(options->allow_release || options->read_once);
	return ret;
}

static void fill_rules(struct daemon *daemon)
{
	const struct options *options = &daemon->options;
	struct connection_rules *rules = &daemon->server.rules;

	rules->exports = &daemon->exports;
	rules->stop = &daemon->stop;
	rules->budget = &daemon->budget;
	rules->slots = &daemon->slots;
	rules->multi_conn = !options->stdio &&
			    (!options->max_connections ||
			     options->max_connections >= MULTI_CONN_MIN);
	rules->read_once = options->read_once;
	rules->holes = !options->no_holes;
	rules->handshake_ms = (int64_t)options->handshake_seconds * 1000;
	rules->workers = CONNECTION_WORKERS;
	daemon->server.stall_ms = (int64_t)options->stall_seconds * 1000;
	daemon->server.manager = &daemon->manager;
	daemon->server.janitor = &daemon->janitor;
	daemon->server.socket_path = options->socket_path;
}

static int serve(struct daemon *daemon, int signals)
{
	int in, out, ret;

	if (!daemon->options.stdio)
		return server_run(&daemon->server, signals);
	in = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 3);
	out = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
	if (in < 0 || out < 0) {
		ret = -errno;
		log_error("cannot use stdin and stdout: %s", strerror(-ret));
		return ret;
	}
	/* The client must see the end of the stream when the connection is closed. */
	close(STDIN_FILENO);
	close(STDOUT_FILENO);
	return server_run_one(&daemon->server, signals, in, out);
}

static int start(struct daemon *daemon,
		 int (*open_backend)(const char *path, struct backend **backend))
{
	int signals = server_block_signals();
	int ret;

	if (signals < 0)
		return signals;
	ret = open_devices(daemon, open_backend);
	fill_rules(daemon);
	if (!ret)
		ret = load_credentials(daemon);
	if (!ret)
		ret = open_sockets(daemon);
	if (!ret)
		ret = service_manager_open(&daemon->manager);
	if (!ret)
		ret = write_pid_file(daemon);
	if (!ret)
		ret = confine(daemon);
	if (!ret)
		ret = serve(daemon, signals);
	/* In this order: nobody else may take the path of the socket before. */
	janitor_finish(&daemon->janitor);
	listen_close(&daemon->server.listeners);
	close(signals);
	return ret;
}

int daemon_main(int argc, char **argv,
		int (*open_backend)(const char *path, struct backend **backend))
{
	struct daemon *daemon;
	int status, ret;

	/* A device or client that got the place of stderr would get the log. */
	if (fleece_fill_standard_files())
		return EXIT_FAILURE;
	daemon = calloc(1, sizeof(*daemon));
	if (!daemon)
		return EXIT_FAILURE;
	status = options_parse(&daemon->options, argc, argv);
	if (status >= 0) {
		free(daemon);
		return status;
	}
	daemon->manager.fd = -1;
	janitor_init(&daemon->janitor);
	budget_init(&daemon->budget, BUDGET_POOL);
	slots_init(&daemon->slots, daemon->options.max_connections);
	ret = stop_init(&daemon->stop);
	if (!ret)
		ret = start(daemon, open_backend);
	/* Threads that could not be ended still use all of it. */
	if (ret == -ETIMEDOUT)
		_exit(EXIT_FAILURE);
	close_devices(daemon);
	service_manager_close(&daemon->manager);
	slots_release(&daemon->slots);
	budget_release(&daemon->budget);
	tls_credentials_release(daemon->tls);
	stop_release(&daemon->stop);
	free(daemon);
	return ret ? EXIT_FAILURE : EXIT_SUCCESS;
}
