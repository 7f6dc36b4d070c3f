// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Memory in huge pages goes out as they are and comes back, all of it checked.
 *
 *   huge MIB ROUNDS
 *
 * Says how much of it was in huge pages, and how many pages were wrong.
 */
#include <err.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE	4096
#define WORDS	(PAGE / sizeof(uint64_t))
#define HUGE	(2UL << 20)

static uint64_t word(unsigned long round, unsigned long page, unsigned long i)
{
	return (round << 40 ^ page << 12 ^ i) * 0x9e3779b97f4a7c15ULL;
}

static void fill(uint64_t *memory, unsigned long pages, unsigned long round)
{
	for (unsigned long page = 0; page < pages; page++)
		for (unsigned long i = 0; i < WORDS; i++)
			memory[page * WORDS + i] = word(round, page, i);
}

static unsigned long bad_pages(const uint64_t *memory, unsigned long pages,
			       unsigned long round)
{
	unsigned long bad = 0;

	for (unsigned long page = 0; page < pages; page++)
		for (unsigned long i = 0; i < WORDS; i++)
			if (memory[page * WORDS + i] != word(round, page, i)) {
				bad++;
				break;
			}
	return bad;
}

static unsigned long huge_kib(void)
{
	FILE *file = fopen("/proc/self/smaps_rollup", "r");
	unsigned long found = 0;
	char line[256];

	if (!file)
		err(1, "smaps_rollup");
	while (fgets(line, sizeof(line), file))
		if (sscanf(line, "AnonHugePages: %lu", &found) == 1)
			break;
	fclose(file);
	return found;
}

int main(int argc, char **argv)
{
	unsigned long size, rounds, bad = 0, huge = 0;
	char *memory;

	if (argc != 3)
		errx(2, "usage: huge MIB ROUNDS");
	size = strtoul(argv[1], NULL, 0) << 20;
	rounds = strtoul(argv[2], NULL, 0);
	for (unsigned long round = 0; round < rounds; round++) {
		memory = mmap(NULL, size + HUGE, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (memory == MAP_FAILED)
			err(1, "mmap");
		memory += -(uintptr_t)memory % HUGE;
		if (madvise(memory, size, MADV_HUGEPAGE))
			err(1, "MADV_HUGEPAGE");
		fill((uint64_t *)memory, size / PAGE, round);
		huge += huge_kib();
		if (madvise(memory, size, MADV_PAGEOUT))
			err(1, "MADV_PAGEOUT");
		bad += bad_pages((uint64_t *)memory, size / PAGE, round);
		if (munmap(memory, size))
			err(1, "munmap");
	}
	printf("%lu %lu\n", huge, bad);
	return bad > 0;
}
