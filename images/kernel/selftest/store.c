// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A store of pages inside of the guest, right behind /dev/kztmem: it shows what
 * the module does without an agent, a port and a host, and misbehaves on demand.
 *
 *   store PAGES [FAULT]
 *
 * FAULT: refuse (every second put), twice (each reply), late (after 2 ms, and once
 * after 5 s), stale (old content of persistent and cached pages), lost (a page in 64
 * is not found), silent (after 5000 frames, once), torn (half a reply too much, once
 * in 5000 frames, and after a short one of a long one), forgetful (makes the first
 * pool and does not say so; what is said on the console tells whether the next session
 * begins with FRESH).
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <uapi/linux/kztmem.h>

#define PAGE		4096
#define HEAD		sizeof(struct kztmem_header)
#define MAX_FRAME	(HEAD + KZTMEM_MAX_PAGES * (sizeof(int32_t) + PAGE))
#define NONCE		0x6e6f6e6365ULL
#define SILENCE		100 /* ms */

/* Pages in lists: by hash, and the free ones. Places are numbers, NONE ends a list. */
#define NONE UINT32_MAX

struct entry {
	__le64 object[2];
	uint32_t index;
	uint32_t pool;
	bool taken;
	uint32_t next;
};

static struct entry *entries;
static uint8_t (*pages)[PAGE];
static uint32_t *buckets;
static uint32_t capacity, free_list = NONE;

static char *fault = "";
static unsigned long frames, puts_seen;
static bool torn_short;
static bool welcomed;
static uint64_t session;
/* Pools have other numbers in each process: those of an earlier one are unknown. */
#define MAX_POOLS 4096
static unsigned int pools, first_pool;
static bool persistent_pools[MAX_POOLS];
static uint8_t out[2 * MAX_FRAME];

static bool is(const char *name)
{
	return !strcmp(fault, name);
}

static uint32_t crc32c(uint32_t crc, const void *data, size_t len)
{
	static uint32_t table[256];
	const uint8_t *p = data;

	if (!table[1])
		for (uint32_t i = 0; i < 256; i++) {
			table[i] = i;
			for (int bit = 0; bit < 8; bit++)
				table[i] = table[i] >> 1 ^ (table[i] & 1 ? 0x82f63b78 : 0);
		}
	while (len--)
		crc = table[(crc ^ *p++) & 0xff] ^ crc >> 8;
	return crc;
}

static uint32_t frame_crc(const struct kztmem_header *header)
{
	struct kztmem_header bare = *header;
	uint32_t crc;

	bare.crc = 0;
	crc = crc32c(~0u, &bare, HEAD);
	return ~crc32c(crc, header + 1, header->length);
}

static uint32_t *bucket(const __le64 *object, uint32_t index)
{
	uint64_t hash = (object[0] * 31 + object[1]) * 0x9e3779b97f4a7c15ULL;

	hash = (hash ^ index) * 0x9e3779b97f4a7c15ULL;
	return &buckets[(hash >> 20) % capacity];
}

/* The place of a page, NONE if there is none, or no room for it. */
static uint32_t find(const struct kztmem_header *header, uint32_t index, bool make)
{
	uint32_t *head = bucket(header->object, index), at;

	for (at = *head; at != NONE; at = entries[at].next) {
		struct entry *entry = &entries[at];

		if (entry->pool == header->pool && entry->index == index &&
		    entry->object[0] == header->object[0] &&
		    entry->object[1] == header->object[1])
			return at;
	}
	if (!make || free_list == NONE)
		return NONE;
	at = free_list;
	free_list = entries[at].next;
	entries[at] = (struct entry) {
		.object = { header->object[0], header->object[1] },
		.index = index, .pool = header->pool, .taken = true, .next = *head,
	};
	*head = at;
	return at;
}

static void drop(uint32_t at)
{
	uint32_t *link;

	if (at == NONE || !entries[at].taken)
		return;
	link = bucket(entries[at].object, entries[at].index);
	while (*link != at)
		link = &entries[*link].next;
	*link = entries[at].next;
	entries[at].taken = false;
	entries[at].next = free_list;
	free_list = at;
}

static bool is_pool(uint32_t pool)
{
	return pool >= first_pool && pool < first_pool + pools;
}

static bool is_persistent(uint32_t pool)
{
	return persistent_pools[pool - first_pool];
}

static void drop_pools(bool all)
{
	for (uint32_t at = 0; at < capacity; at++)
		if (entries[at].taken && (all || !is_persistent(entries[at].pool)))
			drop(at);
}

static void send_all(int device, const void *data, size_t len)
{
	if (write(device, data, len) != (ssize_t)len)
		err(1, "write");
}

static void reply(int device, const struct kztmem_header *request, int32_t status,
		  size_t length)
{
	struct kztmem_header *header = (void *)out;

	*header = *request;
	header->flags = KZTMEM_REPLY;
	header->pool = status;
	header->length = length;
	header->crc = 0;
	header->crc = frame_crc(header);
	if (is("late"))
		usleep(frames == 5000 ? 5000000 : 2000);
	if (is("silent") && frames == 5000)
		return;
	/*
	 * What comes then is taken for the other half. Of a short reply not even the
	 * header is whole, which may tell of more than ever comes: a long one follows.
	 */
	if (is("torn") && (frames % 5000 == 0 || (torn_short && length > HEAD))) {
		torn_short = length <= HEAD;
		send_all(device, out, (HEAD + length) / 2);
	}
	send_all(device, out, HEAD + length);
	if (is("twice"))
		send_all(device, out, HEAD + length);
}

static void no_pool(int device, const struct kztmem_header *request)
{
	int32_t *status = (int32_t *)(out + HEAD);
	bool each = request->op == KZTMEM_PUT_PAGE || request->op == KZTMEM_GET_PAGE;

	for (uint32_t i = 0; each && i < request->count; i++)
		status[i] = -ENODEV;
	reply(device, request, each ? 0 : -ENODEV,
	      each ? request->count * sizeof(*status) : 0);
}

static void new_pool(int device, const struct kztmem_header *request)
{
	if (pools == MAX_POOLS) {
		reply(device, request, -ENOMEM, 0);
		return;
	}
	persistent_pools[pools] = request->index & KZTMEM_POOL_PERSIST;
	if (pools++ || !is("forgetful"))
		reply(device, request, first_pool + pools - 1, 0);
}

static void put(int device, const struct kztmem_header *request)
{
	const uint8_t *data = (const uint8_t *)(request + 1);
	int32_t *status = (int32_t *)(out + HEAD);

	for (uint32_t i = 0; i < request->count; i++) {
		uint32_t at = find(request, request->index + i, true);
		bool refused = at == NONE || (is("refuse") && puts_seen++ % 2);

		if (refused) {
			drop(at);
			status[i] = -ENOMEM;
			continue;
		}
		/* The first content a page ever had is kept. */
		if (!is("stale") || !*(uint64_t *)pages[at])
			memcpy(pages[at], data + i * PAGE, PAGE);
		status[i] = 1;
	}
	reply(device, request, 0, request->count * sizeof(*status));
}

static void get(int device, const struct kztmem_header *request)
{
	int32_t *status = (int32_t *)(out + HEAD);
	uint8_t *data = (uint8_t *)(status + request->count);

	for (uint32_t i = 0; i < request->count; i++) {
		uint32_t at = find(request, request->index + i, false);

		status[i] = at != NONE && !(is("lost") && frames % 64 == 0);
		if (!status[i])
			continue;
		memcpy(data, pages[at], PAGE);
		data += PAGE;
		if (!is_persistent(request->pool))
			drop(at);
	}
	reply(device, request, 0, data - out - HEAD);
}

static void flush(int device, const struct kztmem_header *request)
{
	for (uint32_t i = 0; i < request->count; i++)
		drop(find(request, request->index + i, false));
	reply(device, request, 1, 0);
}

static void flush_object(int device, const struct kztmem_header *request)
{
	for (uint32_t at = 0; at < capacity; at++)
		if (entries[at].pool == request->pool &&
		    entries[at].object[0] == request->object[0] &&
		    entries[at].object[1] == request->object[1])
			drop(at);
	reply(device, request, 1, 0);
}

static void no_session(int device)
{
	struct kztmem_header *header = (void *)out;
	uint64_t nonce = NONCE;

	memset(header, 0, HEAD);
	header->magic = KZTMEM_MAGIC;
	header->op = KZTMEM_NO_SESSION;
	header->length = sizeof(nonce);
	memcpy(header + 1, &nonce, sizeof(nonce));
	header->crc = frame_crc(header);
	send_all(device, out, HEAD + sizeof(nonce));
}

static void say(const char *format, int number)
{
	printf("@ ");
	printf(format, number);
	printf("\n");
	fflush(stdout);
}

static void hello(int device, const struct kztmem_header *request)
{
	const struct kztmem_hello *hello = (const void *)(request + 1);

	if (hello->nonce != NONCE) {
		no_session(device);
		return;
	}
	if (request->session != session) {
		drop_pools(request->flags & KZTMEM_FRESH);
		if (is("forgetful"))
			say("fresh %d", !!(request->flags & KZTMEM_FRESH));
	}
	session = request->session;
	welcomed = true;
	memcpy(out + HEAD, hello, sizeof(*hello));
	reply(device, request, 0, sizeof(*hello));
}

static void serve(int device, const struct kztmem_header *request)
{
	frames++;
	if (request->op == KZTMEM_HELLO) {
		hello(device, request);
		return;
	}
	if (!welcomed || request->session != session)
		return;
	if (request->op == KZTMEM_NEW_POOL) {
		new_pool(device, request);
		return;
	}
	if (!is_pool(request->pool)) {
		no_pool(device, request);
		return;
	}
	switch (request->op) {
	case KZTMEM_PUT_PAGE:
		put(device, request);
		break;
	case KZTMEM_GET_PAGE:
		get(device, request);
		break;
	case KZTMEM_FLUSH_PAGE:
		flush(device, request);
		break;
	case KZTMEM_FLUSH_OBJECT:
		flush_object(device, request);
		break;
	default:
		reply(device, request, -ENOSYS, 0);
	}
}

int main(int argc, char **argv)
{
	static uint8_t in[MAX_FRAME];
	size_t filled = 0, done, whole;
	int device;

	if (argc < 2)
		errx(2, "usage: store PAGES [FAULT]");
	capacity = strtoul(argv[1], NULL, 0);
	if (argc > 2)
		fault = argv[2];
	first_pool = getpid() % 100000 * MAX_POOLS;
	entries = calloc(capacity, sizeof(*entries));
	pages = calloc(capacity, PAGE);
	buckets = malloc(capacity * sizeof(*buckets));
	if (!entries || !pages || !buckets)
		err(1, "memory");
	for (uint32_t at = 0; at < capacity; at++) {
		buckets[at] = NONE;
		entries[at].next = free_list;
		free_list = at;
	}
	if (mlockall(MCL_CURRENT | MCL_FUTURE))
		err(1, "mlockall");
	device = open("/dev/kztmem", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (device < 0)
		err(1, "/dev/kztmem");
	for (;;) {
		struct pollfd poll_device = { .fd = device, .events = POLLIN };
		ssize_t got = read(device, in + filled, sizeof(in) - filled);

		if (got < 0 && errno == EAGAIN) {
			/* A new session has cut the frame. Its HELLO comes again. */
			if (!poll(&poll_device, 1, filled ? SILENCE : -1))
				filled = 0;
			continue;
		}
		if (got <= 0)
			err(1, "read");
		filled += got;
		for (done = 0; filled - done >= HEAD; done += whole) {
			const struct kztmem_header *header = (void *)(in + done);

			whole = HEAD + header->length;
			if (header->magic != KZTMEM_MAGIC || whole > sizeof(in))
				whole = filled - done;
			else if (filled - done < whole)
				break;
			else if (header->crc == frame_crc(header))
				serve(device, header);
		}
		filled -= done;
		memmove(in, in + done, filled);
	}
}
