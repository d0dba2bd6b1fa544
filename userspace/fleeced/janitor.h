/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fleeced, janitor: a process that removes the server's files when it ends,
 * however it ends. The server itself cannot: it has no right to do so any more.
 */
#ifndef FLEECED_JANITOR_H
#define FLEECED_JANITOR_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#define JANITOR_FILES	2

/**
 * struct janitor - the files, and the process that will remove them
 * @paths: of the files; not owned.
 * @devices: to recognise the files later.
 * @inodes: likewise.
 * @count: of them.
 * @socket_path: the one that is a socket, or NULL.
 * @listener: that socket, or -1.
 * @fd: to the process, or -1: there is none.
 */
struct janitor {
	const char *paths[JANITOR_FILES];
	dev_t devices[JANITOR_FILES];
	ino_t inodes[JANITOR_FILES];
	size_t count;
	const char *socket_path;
	int listener;
	int fd;
};

/** janitor_init() - no files yet, and no process */
void janitor_init(struct janitor *janitor);

/**
 * janitor_add() - a file that is to be removed
 * @janitor: with room for it.
 * @path: of the file, as it is now; outlives @janitor.
 *
 * A file that takes its place later is left alone.
 *
 * Context: before janitor_start().
 */
void janitor_add(struct janitor *janitor, const char *path);

/**
 * janitor_add_socket() - a socket whose file is to be removed
 * @janitor: that has none yet.
 * @path: as for janitor_add().
 * @listener: the socket, which the process keeps open until the file is gone.
 *
 * Context: before janitor_start().
 */
void janitor_add_socket(struct janitor *janitor, const char *path, int listener);

/**
 * janitor_start() - start the process, if there are any files
 * @janitor: with all files.
 * @is_confined: give it no privileges and system calls but those it needs.
 *
 * Prints why it failed.
 *
 * Context: before any thread exists, while the server still has its privileges.
 * Return: 0 or -errno.
 */
int janitor_start(struct janitor *janitor, bool is_confined);

/**
 * janitor_remove() - remove one file now
 * @janitor: with its process, or without one.
 * @path: as it was added; NULL: do nothing.
 *
 * Returns when the file is gone.
 */
void janitor_remove(struct janitor *janitor, const char *path);

/** janitor_finish() - remove all files now, and let the process end */
void janitor_finish(struct janitor *janitor);

#endif
