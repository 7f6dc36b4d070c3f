// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * How well the module knows which pages have been evicted before.
 *
 *   again RAM FILES PAGES
 *
 * Of a machine with RAM pages of memory, FILES files of PAGES pages each are
 * evicted twice, and then as many others once. Three lines tell how many were
 * taken for pages that had been evicted: the first time, the second, the others.
 */
#include "kernel.h"

#include <err.h>

#include "evicted.c"

static unsigned long ram;

unsigned long totalram_pages(void)
{
	return ram;
}

static unsigned long known(u64 first_file, unsigned long files, unsigned long pages)
{
	unsigned long file, page, found = 0;

	for (file = 0; file < files; file++)
		for (page = 0; page < pages; page++)
			found += kzt_evicted_before(first_file + file, page);
	return found;
}

int main(int argc, char **argv)
{
	unsigned long files, pages;

	if (argc != 4)
		errx(2, "usage: again RAM FILES PAGES");
	ram = strtoul(argv[1], NULL, 0);
	files = strtoul(argv[2], NULL, 0);
	pages = strtoul(argv[3], NULL, 0);
	if (kzt_evicted_before(1, 1))
		errx(1, "a page is known before there is a table");
	if (kzt_evicted_alloc())
		errx(1, "no memory");
	printf("%lu\n", known(1, files, pages));
	printf("%lu\n", known(1, files, pages));
	printf("%lu\n", known(1 + files, files, pages));
	kzt_evicted_free();
	return 0;
}
