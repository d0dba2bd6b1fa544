/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fleeced, path_lock: the right to create, look at and replace the file of a path, for one
 * server at a time.
 */
#ifndef FLEECED_PATH_LOCK_H
#define FLEECED_PATH_LOCK_H

/**
 * path_lock() - wait for the right
 * @path: of the file; that of the lock is the same with ".lock" behind it.
 *
 * Context: sleeps, for a few seconds at most.
 *
 * Return: a descriptor for path_unlock(), or -errno (-EBUSY: somebody has kept it).
 */
int path_lock(const char *path);

/**
 * path_unlock() - give it back, and remove the file of the lock
 * @lock: from path_lock().
 * @path: the same.
 */
void path_unlock(int lock, const char *path);

#endif
