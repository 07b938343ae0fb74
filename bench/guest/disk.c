/*
 * Reads or writes a file in the guest and prints how long it took, in microseconds: disk read|random|write FILE MIB.
 * `read` reads it from end to end, `random` reads as many blocks of 4096 bytes as would be a sixteenth of it, `write` writes it and waits until the
 * file system has it. The caches are dropped before.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 4096
#define CHUNK (1 << 20)

static char buffer[CHUNK];

static int64_t now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000 + time.tv_nsec / 1000;
}

static uint64_t next(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static void drop_caches(void)
{
	int file = open("/proc/sys/vm/drop_caches", O_WRONLY);
	sync();
	if (file < 0 || write(file, "3", 1) != 1)
		exit(3);
	close(file);
}

int main(int count, char **words)
{
	uint64_t state = 88172645463325252;
	if (count != 4)
		return 2;
	int64_t bytes = atoll(words[3]) << 20;
	int writes = strcmp(words[1], "write") == 0, random = strcmp(words[1], "random") == 0;
	for (int at = 0; at < CHUNK; at += 8)
		*(uint64_t *)(buffer + at) = next(&state);
	drop_caches();
	int64_t began = now();
	int file = open(words[2], writes ? O_WRONLY | O_CREAT | O_TRUNC : O_RDONLY, 0600);
	if (file < 0)
		return 4;
	if (random) {
		posix_fadvise(file, 0, 0, POSIX_FADV_RANDOM);
		for (int64_t left = bytes / BLOCK / 16; left > 0; left--)
			if (pread(file, buffer, BLOCK, next(&state) % (bytes / BLOCK) * BLOCK) != BLOCK)
				return 5;
	} else {
		for (int64_t left = bytes; left > 0; left -= CHUNK)
			if ((writes ? write(file, buffer, CHUNK) : read(file, buffer, CHUNK)) != CHUNK)
				return 6;
	}
	if (writes)
		syncfs(file);
	printf("%lld\n", (long long)(now() - began));
	return 0;
}
