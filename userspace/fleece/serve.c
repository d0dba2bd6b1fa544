// SPDX-License-Identifier: GPL-2.0-only
/*
 * fleece, serve: starts fleeced for snapshots, waits until it is ready, and
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
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#include "control.h"
#include "device.h"
#include "json.h"
#include "lock.h"
#include "process.h"
#include "ready.h"
#include "uri.h"
#include "verbs.h"

#define SERVER			"fleeced"
#define READY_MS		20000
#define URI_BYTES		1024
#define ADDRESSES_MAX		16
/* After the name of an export: the one on which TRIM releases. */
#define RELEASE_SUFFIX		"+release"

/*
 * struct served - a snapshot
 * @name: of its export: its device's, but for characters that no export's name may have.
 * @since: the checkpoint that it is limited to the changes after, or "".
 * @device: path.
 * @argument: of the server, the path with or without the name of the export.
 */
struct served {
	char name[DM_NAME_LEN];
	char since[FLEECE_NAME_SIZE];
	char device[PATH_MAX];
	char argument[PATH_MAX + DM_NAME_LEN];
};

/* Of the name of an export. */
#define NAME_CHARACTERS \
	"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._@+-"

struct serve {
	struct served *snapshots;
	size_t count;
	char socket[sizeof(((struct sockaddr_un *)NULL)->sun_path)];
	const char *listen[ADDRESSES_MAX];
	size_t listen_count;
	const char *vsock[ADDRESSES_MAX];
	size_t vsock_count;
	const char *tls_certs;
	const char *tls_psk;
	bool is_insecure;
	bool allow_release;
	bool read_once;
	bool is_background;
	bool is_json;
	char pid_file[PATH_MAX];
	char log_file[PATH_MAX];
	/* Bytes that were in it before. */
	off_t log_start;
	char **more;
	char checkpoint[FLEECE_NAME_SIZE];
};

/* Enough for what is said before it gets ready, or not. */
#define LOG_SHOWN	2048

/* Atomic, as a signal handler reads it. */
static atomic_int server_pid;
/* In the foreground a Ctrl-C reaches the server as well; the end of the terminal may not. */
static atomic_bool shares_terminal;

/* A second one would end it at once. */
static void forward_signal(int number, siginfo_t *info, void *context)
{
	bool has_had_it = shares_terminal && number == SIGINT && info->si_code == SI_KERNEL;

	(void)context;
	if (server_pid > 0 && !has_had_it)
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

static void add_option(char **argv, size_t *count, const char *option, const char *value)
{
	if (!value)
		return;
	add_word(argv, count, option);
	add_word(argv, count, value);
}

static char **make_arguments(const struct serve *serve, const char *server)
{
	size_t more = 0, count = 0, i;
	char **argv;

	while (serve->more && serve->more[more])
		more++;
	argv = calloc(serve->count + more + 2 * serve->listen_count + 2 * serve->vsock_count + 16,
		      sizeof(*argv));
	if (!argv)
		return NULL;
	add_word(argv, &count, server);
	add_option(argv, &count, "--socket", serve->socket);
	for (i = 0; i < serve->listen_count; i++)
		add_option(argv, &count, "--listen", serve->listen[i]);
	for (i = 0; i < serve->vsock_count; i++)
		add_option(argv, &count, "--vsock", serve->vsock[i]);
	add_option(argv, &count, "--tls-certs", serve->tls_certs);
	add_option(argv, &count, "--tls-psk", serve->tls_psk);
	if (serve->is_insecure)
		add_word(argv, &count, "--insecure");
	if (serve->allow_release)
		add_word(argv, &count, "--allow-release");
	if (serve->read_once)
		add_word(argv, &count, "--read-once");
	add_option(argv, &count, "--pid-file", serve->pid_file[0] ? serve->pid_file : NULL);
	for (i = 0; i < more; i++)
		add_word(argv, &count, serve->more[i]);
	for (i = 0; i < serve->count; i++)
		add_word(argv, &count, serve->snapshots[i].argument);
	return argv;
}

/* In the child. */
static void start_server(const struct serve *serve, char **argv, const char *ready_name)
{
	int null, log;

	process_release_signals();
	/* Instead of the service manager, if we have one: it is this process that it knows. */
	setenv("NOTIFY_SOCKET", ready_name, 1);

	if (serve->is_background) {
		null = open("/dev/null", O_RDWR | O_CLOEXEC);
		log = open(serve->log_file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC,
			   0640);
		if (null < 0 || log < 0 || setsid() < 0 || dup2(null, 0) < 0 ||
		    dup2(log, 1) < 0 || dup2(log, 2) < 0) {
			report_errno(errno, NULL, "cannot write %s", serve->log_file);
			_exit(FAILED);
		}
		/* What else the caller has open, its lock perhaps, is not to be held so long. */
		syscall(__NR_close_range, STDERR_FILENO + 1, UINT_MAX, 0U);
	}
	execvp(argv[0], argv);
	report_errno(errno, NULL, "cannot run %s; is it installed?", argv[0]);
	_exit(errno == ENOENT ? NO_MODULE : FAILED);
}

/* What the server has said, for who started it in the background. */
static void show_log(const struct serve *serve)
{
	char text[LOG_SHOWN];
	int log = open(serve->log_file, O_RDONLY | O_CLOEXEC);
	ssize_t length = log < 0 ? -1 : pread(log, text, sizeof(text), serve->log_start);

	if (log >= 0)
		close(log);
	if (length > 0)
		fwrite(text, 1, (size_t)length, stderr);
}

static enum status ended(const struct serve *serve, int status)
{
	int code = WIFEXITED(status) ? WEXITSTATUS(status) : 0;

	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		return DONE;
	if (serve->is_background)
		show_log(serve);
	if (WIFSIGNALED(status))
		return report(FAILED, NULL, SERVER " died of signal %d", WTERMSIG(status));
	/* That it was misused, it has in common with us. */
	return report(code == NO_MODULE || code == USAGE ? (enum status)code : FAILED, NULL,
		      SERVER " ended with status %d", code);
}

static enum status check_socket(const struct serve *serve)
{
	if (connect_socket(serve->socket))
		return DONE;
	return report(BUSY, serve->snapshots[0].name, "somebody serves on %s already",
		      serve->socket);
}

/* DONE once it is ready; anything else: it has ended. */
static enum status wait_until_ready(const struct serve *serve, pid_t pid, int ready)
{
	int status, ret = ready_wait(ready, pid, READY_MS, &status);
	enum status end;

	if (!ret)
		return DONE;
	if (ret == -ECHILD) {
		end = ended(serve, status);
		/* Another one may have been faster with the socket. */
		if (end == FAILED && check_socket(serve) == BUSY)
			return BUSY;
		return end == DONE ? FAILED : end;
	}
	kill(pid, SIGTERM);
	waitpid(pid, &status, 0);
	return report_errno(ret, NULL, SERVER " does not get ready");
}

/* fleeced has two options whose name begins so. */
static bool is_tls(const struct serve *serve)
{
	size_t i;

	for (i = 0; serve->more && serve->more[i]; i++)
		if (!strncmp(serve->more[i], "--tls-", strlen("--tls-")))
			return true;
	return serve->tls_certs || serve->tls_psk;
}

/* What is between single quotes ends there. */
static void print_quoted(const char *text)
{
	putchar('\'');
	for (; *text; text++)
		if (*text == '\'')
			fputs("'\\''", stdout);
		else
			putchar(*text);
	putchar('\'');
}

/* Of a limited one nothing else can be read: the backup made at @since is completed. */
static void print_pull(const char *uri, const struct served *snapshot)
{
	printf("  fleece pull '%s' %s.raw", uri, snapshot->name);
	if (snapshot->since[0])
		printf(" --since %s", snapshot->since);
	putchar('\n');
}

static void print_commands(const struct serve *serve, const char *uri,
			   const struct served *snapshot)
{
	const char *name = snapshot->name;

	printf("  nbdinfo '%s'\n", uri);
	if (snapshot->since[0]) {
		printf("  nbdinfo --map=qemu:dirty-bitmap:%s '%s'\n", snapshot->since, uri);
		print_pull(uri, snapshot);
		return;
	}
	if (snapshot == serve->snapshots && serve->checkpoint[0])
		printf("  nbdinfo --map=qemu:dirty-bitmap:%s '%s'\n", serve->checkpoint, uri);
	print_pull(uri, snapshot);
	printf("  nbdcopy -p '%s' %s.raw\n", uri, name);
	/* Without -f, what the device begins with would say how to read it. */
	printf("  qemu-img convert -p -f raw -O qcow2 '%s' %s.qcow2\n", uri, name);
	printf("  nbd-client -unix ");
	print_quoted(serve->socket);
	printf(" /dev/nbd0 -N %s -readonly\n", name);
}

/* One of a list: for people, or for programs if there is a @json. */
static void print_uri(struct fleece_json *json, int ret, const char *uri, const char *address)
{
	if (ret == -EINVAL)
		report_note(address, "the log of " SERVER " tells the port");
	else if (ret)
		report_note(address, "its URI is too long to be printed");
	else if (json)
		fleece_json_string(json, NULL, uri);
	else
		printf("%s\n", uri);
}

/* What a client in a virtual machine, or on its host, has to connect to. */
static unsigned int local_cid(void)
{
	unsigned int cid = VMADDR_CID_HOST;
	int fd = open("/dev/vsock", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return VMADDR_CID_HOST;
	if (ioctl(fd, IOCTL_VM_SOCKETS_GET_LOCAL_CID, &cid) || cid == VMADDR_CID_ANY)
		cid = VMADDR_CID_HOST;
	close(fd);
	return cid;
}

static void print_addresses(const struct serve *serve, struct fleece_json *json,
			    const struct uri_export *export)
{
	char uri[URI_BYTES], host[HOST_NAME_MAX + 1] = "localhost";
	int ret;
	size_t i;

	gethostname(host, HOST_NAME_MAX);
	for (i = 0; i < serve->listen_count; i++) {
		ret = uri_of_tcp(uri, sizeof(uri), export, serve->listen[i], host);
		print_uri(json, ret, uri, serve->listen[i]);
	}
	for (i = 0; i < serve->vsock_count; i++) {
		ret = uri_of_vsock(uri, sizeof(uri), export, serve->vsock[i], local_cid());
		print_uri(json, ret, uri, serve->vsock[i]);
	}
}

/* @suffix: "", or RELEASE_SUFFIX, for the export from which pull releases what it has. */
static void print_export(const struct serve *serve, struct fleece_json *json,
			 const struct served *snapshot, const char *suffix)
{
	char name[sizeof(snapshot->name) + sizeof(RELEASE_SUFFIX)];
	struct uri_export export = { .name = name, .is_tls = is_tls(serve) };
	char uri[URI_BYTES];
	int ret;

	snprintf(name, sizeof(name), "%s%s", snapshot->name, suffix);
	ret = uri_of_unix(uri, sizeof(uri), &export, serve->socket);
	print_uri(json, ret, uri, serve->socket);
	/* With TLS they need the client's credentials, which are nothing of ours. */
	if (!ret && !json && !export.is_tls) {
		if (*suffix)
			print_pull(uri, snapshot);
		else
			print_commands(serve, uri, snapshot);
	}
	print_addresses(serve, json, &export);
}

static void print_exports(const struct serve *serve, pid_t pid)
{
	size_t i;

	for (i = 0; i < serve->count; i++) {
		print_export(serve, NULL, &serve->snapshots[i], "");
		if (serve->allow_release)
			print_export(serve, NULL, &serve->snapshots[i], RELEASE_SUFFIX);
	}
	if (is_tls(serve))
		printf("clients need TLS credentials: see TLS and EXAMPLES in fleeced(8)\n");
	if (serve->is_background)
		printf("stop it with: kill %d\n", (int)pid);
}

static void print_json(const struct serve *serve, pid_t pid)
{
	struct fleece_json json = { .out = stdout };
	size_t i;

	fleece_json_object(&json, NULL);
	fleece_json_number(&json, "version", 1);
	fleece_json_number(&json, "pid", (uint64_t)pid);
	fleece_json_string(&json, "pid_file", serve->pid_file[0] ? serve->pid_file : NULL);
	fleece_json_string(&json, "log_file", serve->is_background ? serve->log_file : NULL);
	fleece_json_string(&json, "socket", serve->socket);
	fleece_json_bool(&json, "tls", is_tls(serve));
	fleece_json_array(&json, "exports");
	for (i = 0; i < serve->count; i++) {
		const struct served *snapshot = &serve->snapshots[i];

		fleece_json_object(&json, NULL);
		fleece_json_string(&json, "name", snapshot->name);
		fleece_json_string(&json, "device", snapshot->device);
		fleece_json_string(&json, "since", snapshot->since[0] ? snapshot->since : NULL);
		fleece_json_array(&json, "uris");
		print_export(serve, &json, snapshot, "");
		fleece_json_array_end(&json);
		fleece_json_array(&json, "release_uris");
		if (serve->allow_release)
			print_export(serve, &json, snapshot, RELEASE_SUFFIX);
		fleece_json_array_end(&json);
		fleece_json_object_end(&json);
	}
	fleece_json_array_end(&json);
	fleece_json_object_end(&json);
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
	struct sigaction action = { .sa_sigaction = forward_signal, .sa_flags = SA_SIGINFO };
	char ready_name[sizeof(((struct sockaddr_un *)NULL)->sun_path) + 1];
	int ready = ready_open(ready_name, sizeof(ready_name));
	enum status status;
	pid_t pid;

	if (ready < 0)
		return report_errno(ready, NULL, "cannot prepare");
	fflush(stdout);
	/* One that ended us before we can pass it on would leave the server behind. */
	process_hold_signals();
	pid = fork();
	if (pid == 0)
		start_server(serve, argv, ready_name);
	if (pid < 0) {
		status = report_errno(errno, NULL, "cannot start " SERVER);
		process_release_signals();
		close(ready);
		return status;
	}
	server_pid = pid;
	shares_terminal = !serve->is_background;
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGHUP, &action, NULL);
	/* Who does not read what is printed does not leave the server to nobody. */
	signal(SIGPIPE, SIG_IGN);
	process_release_signals();
	status = wait_until_ready(serve, pid, ready);
	close(ready);
	if (status != DONE)
		return status;
	if (serve->is_json)
		print_json(serve, pid);
	else
		print_exports(serve, pid);
	fflush(stdout);
	return serve->is_background ? DONE : wait_until_end(serve, pid);
}

/* Any that is offered will do for the example of a map. */
static void find_checkpoint(struct serve *serve, const struct snapshot *snapshot, int control)
{
	struct fleece_checkpoint *list;
	size_t count, i;
	int device = device_open(&snapshot->dm);

	if (device < 0)
		return;
	if (!fleece_control_checkpoints(control, device, &list, &count)) {
		for (i = 0; i < count && list[i].flags & FLEECE_CHECKPOINT_INVALID; i++)
			;
		if (i < count)
			snprintf(serve->checkpoint, sizeof(serve->checkpoint), "%s",
				 list[i].name);
		free(list);
	}
	close(device);
}

/* Two that get the same name are refused by the server. */
static void name_export(struct served *served, const char *device)
{
	size_t good;

	snprintf(served->name, sizeof(served->name), "%s", device);
	while (served->name[good = strspn(served->name, NAME_CHARACTERS)])
		served->name[good] = '_';
	snprintf(served->device, sizeof(served->device), "/dev/mapper/%s", device);
	if (strcmp(served->name, device))
		snprintf(served->argument, sizeof(served->argument), "%s=%s", served->name,
			 served->device);
	else
		snprintf(served->argument, sizeof(served->argument), "%s", served->device);
}

static enum status find_snapshot(struct serve *serve, const char *text, struct served *served,
				 int control)
{
	struct snapshot snapshot;
	enum status status = device_snapshot(text, &snapshot);

	if (status != DONE)
		return status;
	if (snapshot.status.is_broken)
		return report(BROKEN, snapshot.dm.name, "is broken (%s)",
			      snapshot_error(&snapshot));
	name_export(served, snapshot.dm.name);
	snprintf(served->since, sizeof(served->since), "%s", snapshot.since);
	if (served == serve->snapshots)
		find_checkpoint(serve, &snapshot, control);
	return DONE;
}

static enum status find_snapshots(struct serve *serve, char **names, int control)
{
	enum status status = DONE;
	size_t i;

	for (i = 0; i < serve->count && status == DONE; i++)
		status = find_snapshot(serve, names[i], &serve->snapshots[i], control);
	return status;
}

static enum status choose_files(struct serve *serve)
{
	enum status status = lock_run_dir();
	const char *name = serve->snapshots[0].name;
	struct stat st;

	if (status != DONE)
		return status;
	if (!serve->socket[0] &&
	    snprintf(serve->socket, sizeof(serve->socket), RUN_DIR "/%s.sock", name) >=
	    (int)sizeof(serve->socket))
		return report(FAILED, name,
			      "its name is too long for a socket's path; choose one with --socket");
	if (!serve->pid_file[0] && serve->is_background)
		snprintf(serve->pid_file, sizeof(serve->pid_file), RUN_DIR "/%s.pid", name);
	if (!serve->log_file[0])
		snprintf(serve->log_file, sizeof(serve->log_file), RUN_DIR "/%s.log", name);
	if (!stat(serve->log_file, &st))
		serve->log_start = st.st_size;
	return check_socket(serve);
}

static enum status serve_snapshots(struct serve *serve, char **names, int control)
{
	char server[PATH_MAX], **argv = NULL;
	enum status status;

	serve->snapshots = calloc(serve->count, sizeof(*serve->snapshots));
	if (!serve->snapshots)
		return report_errno(ENOMEM, NULL, "cannot prepare");
	status = find_snapshots(serve, names, control);
	if (status == DONE)
		status = choose_files(serve);
	if (status == DONE) {
		process_find(server, sizeof(server), SERVER, SERVER);
		argv = make_arguments(serve, server);
		status = argv ? run_server(serve, argv) :
				report_errno(ENOMEM, NULL, "cannot prepare");
	}
	free(argv);
	free(serve->snapshots);
	return status;
}

static enum status copy_path(char *to, size_t size, const char *from)
{
	if (!*from || snprintf(to, size, "%s", from) >= (int)size)
		return verb_usage("the path '%s' is too long or empty", from);
	return DONE;
}

static enum status add_address(const char **addresses, size_t *count, const char *address)
{
	if (*count == ADDRESSES_MAX)
		return verb_usage("more than %d addresses of a kind", ADDRESSES_MAX);
	addresses[(*count)++] = address;
	return DONE;
}

enum option_value {
	SOCKET = 256, LISTEN, VSOCK, CERTS, PSK, INSECURE, RELEASE, ONCE, BACKGROUND, PID, LOG,
	JSON,
};

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
		return add_address(serve->listen, &serve->listen_count, optarg);
	case VSOCK:
		return add_address(serve->vsock, &serve->vsock_count, optarg);
	case CERTS:
		serve->tls_certs = optarg;
		return DONE;
	case PSK:
		serve->tls_psk = optarg;
		return DONE;
	case INSECURE:
		serve->is_insecure = true;
		return DONE;
	case RELEASE:
		serve->allow_release = true;
		return DONE;
	case ONCE:
		serve->read_once = true;
		return DONE;
	case JSON:
		serve->is_json = true;
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
		{ "vsock", required_argument, NULL, VSOCK },
		{ "tls-certs", required_argument, NULL, CERTS },
		{ "tls-psk", required_argument, NULL, PSK },
		{ "insecure", no_argument, NULL, INSECURE },
		{ "allow-release", no_argument, NULL, RELEASE },
		{ "read-once", no_argument, NULL, ONCE },
		{ "background", no_argument, NULL, BACKGROUND },
		{ "pid-file", required_argument, NULL, PID },
		{ "log-file", required_argument, NULL, LOG },
		{ "json", no_argument, NULL, JSON },
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
	serve.count = (size_t)(argc - optind);
	if (!serve.count)
		return verb_usage("at least one SNAPSHOT is needed");
	if (serve.log_file[0] && !serve.is_background)
		return verb_usage("--log-file needs --background");
	status = device_start(&control);
	return status == DONE ? serve_snapshots(&serve, argv + optind, control) : status;
}
