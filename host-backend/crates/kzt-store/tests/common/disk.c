// SPDX-License-Identifier: GPL-2.0-or-later
// Preloaded into a process, it makes a disk of what the file KZT_TEST_DISK says: "ok", "eio" for
// reads that fail, "enospc" for writes that do, "still" for reads and writes that wait until it
// says something else. It is asked about files whose names end in ".spill" alone.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int is_spill(int fd)
{
	char link[64], path[4096];
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	ssize_t length = readlink(link, path, sizeof path - 1);
	return length > 6 && memcmp(path + length - 6, ".spill", 6) == 0;
}

// What the disk does now, once it does anything.
static char state(void)
{
	for (;;) {
		char text[8] = "";
		int fd = open(getenv("KZT_TEST_DISK"), O_RDONLY | O_CLOEXEC);
		if (fd >= 0) {
			if (read(fd, text, sizeof text - 1) < 0)
				text[0] = 0;
			close(fd);
		}
		if (text[0] != 's')
			return text[0] == 'e' ? text[1] : 0;
		usleep(1000);
	}
}

ssize_t pread64(int fd, void *bytes, size_t count, off64_t offset)
{
	static ssize_t (*real)(int, void *, size_t, off64_t);
	if (!real)
		real = dlsym(RTLD_NEXT, "pread64");
	if (is_spill(fd) && state() == 'i') {
		errno = EIO;
		return -1;
	}
	return real(fd, bytes, count, offset);
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t offset)
{
	static ssize_t (*real)(int, const void *, size_t, off64_t);
	if (!real)
		real = dlsym(RTLD_NEXT, "pwrite64");
	if (is_spill(fd) && state() == 'n') {
		errno = ENOSPC;
		return -1;
	}
	return real(fd, bytes, count, offset);
}
