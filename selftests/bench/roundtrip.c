// SPDX-License-Identifier: GPL-2.0-only
/*
 * roundtrip: what one question and its answer take on the socket that is stdin. With
 * `answer` at the other end, which does nothing else, that is what the machine takes:
 * what a server takes beyond it is the server's own.
 *
 *   roundtrip ask QUESTION ANSWER COUNT	asks so often; prints the median, in nanoseconds
 *   roundtrip answer QUESTION ANSWER		answers until the other end has gone
 *
 * QUESTION and ANSWER are bytes in hexadecimal. An answer that is another one is a failure.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MESSAGE_BYTES	256

/*
 * struct message - what is sent in one piece
 * @length: of @bytes, at least 1.
 */
struct message {
	uint8_t bytes[MESSAGE_BYTES];
	size_t length;
};

static void fail(const char *what)
{
	fprintf(stderr, "roundtrip: %s\n", what);
	exit(1);
}

static void parse_message(const char *text, struct message *message)
{
	size_t digits = strlen(text);
	size_t i;

	message->length = digits / 2;
	if (!message->length || digits % 2 || message->length > MESSAGE_BYTES)
		fail("a message has 1 to 256 bytes");
	for (i = 0; i < message->length; i++)
		if (sscanf(text + 2 * i, "%2hhx", &message->bytes[i]) != 1)
			fail("a message is written in hexadecimal");
}

static void send_message(const struct message *message)
{
	if (write(STDIN_FILENO, message->bytes, message->length) != (ssize_t)message->length)
		fail("cannot send");
}

/* false: the other end has gone. */
static bool receive_message(const struct message *expected)
{
	uint8_t bytes[MESSAGE_BYTES];
	ssize_t n = recv(STDIN_FILENO, bytes, expected->length, MSG_WAITALL);

	if (!n || (n < 0 && errno == ECONNRESET))
		return false;
	if (n != (ssize_t)expected->length || memcmp(bytes, expected->bytes, n))
		fail("got another message than expected");
	return true;
}

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static int compare(const void *a, const void *b)
{
	const int64_t *left = a, *right = b;

	return (*left > *right) - (*left < *right);
}

static void ask(const struct message *question, const struct message *answer, size_t count)
{
	int64_t *took = calloc(count, sizeof(*took));
	int64_t start;
	size_t i;

	if (!count || !took)
		fail("asks at least once, and no more often than memory can hold");
	for (i = 0; i < count; i++) {
		start = now_ns();
		send_message(question);
		if (!receive_message(answer))
			fail("the server has gone");
		took[i] = now_ns() - start;
	}
	qsort(took, count, sizeof(*took), compare);
	printf("%lld\n", (long long)took[count / 2]);
	free(took);
}

int main(int argc, char **argv)
{
	struct message question, answer;

	if (argc < 4)
		fail("see the beginning of roundtrip.c");
	parse_message(argv[2], &question);
	parse_message(argv[3], &answer);
	if (!strcmp(argv[1], "ask") && argc == 5)
		ask(&question, &answer, strtoul(argv[4], NULL, 10));
	else if (!strcmp(argv[1], "answer") && argc == 4)
		while (receive_message(&question))
			send_message(&answer);
	else
		fail("see the beginning of roundtrip.c");
	return 0;
}
