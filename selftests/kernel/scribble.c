// SPDX-License-Identifier: GPL-2.0-only
/*
 * scribble: writes random data to random places of a device until its standard input
 * ends, from several threads, of which no two write to the same place.
 *
 *   scribble DEVICE THREADS SEED
 *
 * Places and lengths are multiples of 4 KiB, I/O is direct and never flushed. Most
 * writes of a thread go where its last ones went, so some parts come to rest while
 * others are busy. Prints how many writes there were; exits 1 if one has failed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "../random.h"

#define BLOCK		4096u
#define BLOCKS_MAX	4
#define THREADS_MAX	16
/* Blocks around the last place. */
#define NEIGHBOURHOOD	256
/* One write in so many goes to another neighbourhood. */
#define TRAVELS		24
#define PAUSE_NS_MAX	4000000

struct scribbler {
	pthread_t thread;
	int fd;
	uint64_t random;
	uint64_t first_block;
	uint64_t nr_blocks;
	uint64_t nr_writes;
	int error;
};

static atomic_bool has_ended;

/* A place of the scribbler's own, and as many blocks as there are up to its end. */
static uint64_t next_place(struct scribbler *self, uint64_t *home, uint64_t *blocks)
{
	uint64_t place;

	if (!random_below(&self->random, TRAVELS))
		*home = random_below(&self->random, self->nr_blocks);
	place = (*home + random_below(&self->random, NEIGHBOURHOOD)) % self->nr_blocks;
	*blocks = 1 + random_below(&self->random, BLOCKS_MAX);
	if (*blocks > self->nr_blocks - place)
		*blocks = self->nr_blocks - place;
	return self->first_block + place;
}

static void *scribble(void *argument)
{
	struct scribbler *self = argument;
	uint64_t home = 0, place, blocks, k;
	struct timespec pause = { 0 };
	uint64_t *data;

	if (posix_memalign((void **)&data, BLOCK, BLOCKS_MAX * BLOCK)) {
		self->error = ENOMEM;
		return NULL;
	}
	while (!has_ended && !self->error) {
		place = next_place(self, &home, &blocks);
		for (k = 0; k < blocks * BLOCK / sizeof(*data); k++)
			data[k] = random_next(&self->random);
		if (pwrite(self->fd, data, blocks * BLOCK, place * BLOCK) !=
		    (ssize_t)(blocks * BLOCK))
			self->error = errno ? errno : EIO;
		self->nr_writes++;
		pause.tv_nsec = random_below(&self->random, PAUSE_NS_MAX);
		nanosleep(&pause, NULL);
	}
	free(data);
	return NULL;
}

int main(int argc, char **argv)
{
	static struct scribbler scribblers[THREADS_MAX];
	unsigned int count = argc == 4 ? atoi(argv[2]) : 0;
	uint64_t nr_writes = 0, share;
	int error = 0;
	unsigned int i;
	int fd;

	if (!count || count > THREADS_MAX) {
		fprintf(stderr, "usage: scribble DEVICE THREADS SEED\n");
		return 2;
	}
	fd = open(argv[1], O_WRONLY | O_DIRECT | O_CLOEXEC);
	if (fd < 0) {
		perror(argv[1]);
		return 1;
	}
	share = lseek(fd, 0, SEEK_END) / BLOCK / count;
	for (i = 0; i < count; i++) {
		scribblers[i] = (struct scribbler){
			.fd = fd, .random = mix64(strtoull(argv[3], NULL, 10) * THREADS_MAX + i),
			.first_block = i * share, .nr_blocks = share,
		};
		if (pthread_create(&scribblers[i].thread, NULL, scribble, &scribblers[i]))
			return 1;
	}
	while (getchar() != EOF)
		;
	has_ended = true;
	for (i = 0; i < count; i++) {
		pthread_join(scribblers[i].thread, NULL);
		nr_writes += scribblers[i].nr_writes;
		error = error ? error : scribblers[i].error;
	}
	printf("%" PRIu64 " writes\n", nr_writes);
	if (error)
		fprintf(stderr, "%s: %s\n", argv[1], strerror(error));
	return error != 0;
}
