/* SPDX-License-Identifier: GPL-2.0-only */
/* fleece, process: other programs that are run and waited for. */
#ifndef FLEECE_PROCESS_H
#define FLEECE_PROCESS_H

#include <stdbool.h>
#include <stddef.h>

/**
 * process_run() - run a program, found in PATH or in the system's sbin, to its end
 * @argv: its arguments, NULL at the end.
 * @output: room for the beginning of what it writes to stdout, or to stderr
 *	when it fails; line feeds at the end are removed.
 * @size: of the room.
 *
 * Return: its exit status, or -errno when it could not be run (-ENOENT: not installed).
 */
int process_run(const char *const argv[], char *output, size_t size);

/**
 * process_hold_signals() - keep an interrupt from ending this process
 *
 * For verbs that would otherwise leave something half made. Programs that process_run()
 * runs meanwhile are not interrupted from the terminal either; when one is killed, the verb
 * fails and undoes. They are held until they are released as often.
 */
void process_hold_signals(void);

/**
 * process_release_signals() - let it end this process again
 *
 * One that has come meanwhile ends it now.
 */
void process_release_signals(void);

/** process_holds_signals() - are they held? */
bool process_holds_signals(void);

/** process_is_asked_to_end() - has one come that is held? */
bool process_is_asked_to_end(void);

/**
 * process_find() - where another program of ours is
 * @path: room for its path.
 * @size: of the room.
 * @directory: where it is built, below userspace/.
 * @program: its name.
 *
 * It is looked for beside this program, where it is built, and in PATH.
 */
void process_find(char *path, size_t size, const char *directory, const char *program);

/**
 * process_load_module() - have modprobe load a module
 * @name: of the module.
 *
 * Whether it worked is seen at its first use.
 */
void process_load_module(const char *name);

#endif
