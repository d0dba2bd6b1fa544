// SPDX-License-Identifier: GPL-2.0-only
/* fleeced, tls_file: reads files with keys, certificates and names. Owns no state. */
#include "tls_file.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "log.h"

#define FILE_BYTES_MAX (1U << 20)

static int check_status(const struct stat *status, const char *path, bool is_secret)
{
	if (!S_ISREG(status->st_mode)) {
		log_error("%s is not a regular file", path);
		return -EINVAL;
	}
	if (status->st_size > FILE_BYTES_MAX) {
		log_error("%s is longer than %u bytes", path, FILE_BYTES_MAX);
		return -EFBIG;
	}
	if (status->st_mode & 0002) {
		log_error("everybody can write %s: chmod o-w it", path);
		return -EACCES;
	}
	if (is_secret && (status->st_mode & 0004)) {
		log_error("everybody can read the key in %s: make a new one, chmod o= it", path);
		return -EACCES;
	}
	return 0;
}

static int read_all(int file, gnutls_datum_t *content, size_t size)
{
	ssize_t n = 0;
	int ret;

	content->size = 0;
	content->data = malloc(size + 1);
	if (!content->data)
		return -ENOMEM;
	while (content->size < size) {
		n = read(file, content->data + content->size, size - content->size);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		content->size += n;
	}
	content->data[content->size] = '\0';
	if (content->size == size)
		return 0;
	ret = n < 0 ? -errno : -EIO;
	tls_file_release(content);
	return ret;
}

int tls_file_read(const char *path, bool is_secret, gnutls_datum_t *content)
{
	struct stat status;
	int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	int ret;

	if (file < 0 && errno == ENOENT)
		return -ENOENT;
	if (file < 0 || fstat(file, &status)) {
		ret = -errno;
		log_error("cannot read %s: %s", path, strerror(-ret));
		if (file >= 0)
			close(file);
		return ret;
	}
	ret = check_status(&status, path, is_secret);
	if (!ret) {
		ret = read_all(file, content, status.st_size);
		if (ret)
			log_error("cannot read %s: %s", path, strerror(-ret));
	}
	close(file);
	return ret;
}

void tls_file_release(gnutls_datum_t *content)
{
	if (content->data)
		explicit_bzero(content->data, content->size);
	free(content->data);
	content->data = NULL;
	content->size = 0;
}

static char *strip(char *line)
{
	size_t length;

	while (isspace((unsigned char)*line))
		line++;
	length = strlen(line);
	while (length && isspace((unsigned char)line[length - 1]))
		line[--length] = '\0';
	return line;
}

char *tls_file_next_line(char **rest, unsigned int *number)
{
	char *line;

	while ((line = strsep(rest, "\n"))) {
		++*number;
		line = strip(line);
		if (*line)
			return line;
	}
	return NULL;
}
