// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The module's frames, byte by byte: its own code against vectors.
 *
 *   frames VECTORS
 *
 * Requests of the file that the module can make are made by it, and read in
 * pieces. Replies are written to it, whole and in pieces, and with each bit of
 * their headers wrong, when nothing may come of them.
 */
#include "kernel.h"

#include <ctype.h>
#include <err.h>

#include "send.c"
#include "receive.c"
#include "crc.c"

#define MAX_VECTORS	128
#define NR_REQUESTS	KZTMEM_MAX_PAGES

struct vector {
	char			name[64];
	struct kztmem_header	header;		/* as its numbers say */
	size_t			size;
	u8			*bytes;		/* of the whole frame */
};

struct kzt kzt;
static struct vector vectors[MAX_VECTORS];
static unsigned int nr_vectors;
static struct kzt_request requests[NR_REQUESTS];

/* What the module has made of what was written to it */
static struct {
	unsigned int		ended;
	int			statuses[NR_REQUESTS];
	u8			pages[NR_REQUESTS][PAGE_SIZE];
	u32			crcs[NR_REQUESTS];
	unsigned int		sessions, welcomes, pools;
	int			status;
	struct kztmem_hello	hello;
	u64			nonce;
} seen;

/* A run of freed slots, for FLUSH_PAGE */
static struct {
	struct kzt_key		key;
	u32			count;
} flush;

bool kzt_flushes_pending(void)
{
	return flush.count;
}

u32 kzt_flush_take(struct kzt_key *key)
{
	u32 count = flush.count;

	*key = flush.key;
	flush.count = 0;
	return count;
}

void kzt_request_put(struct kzt_request *request)
{
	INIT_LIST_HEAD(&request->link);
}

void kzt_session_begin(void)
{
	seen.sessions++;
	kzt.session++;
	kzt.state = KZT_GREETING;
	kzt_receive_reset();
}

void kzt_session_welcome(const struct kztmem_hello *hello, int status)
{
	seen.welcomes++;
	seen.hello = *hello;
	seen.status = status;
}

void kzt_session_nonce(u64 nonce)
{
	seen.nonce = nonce;
}

void kzt_session_pool(enum kzt_pool pool, int status)
{
	(void)pool;
	seen.pools++;
	seen.status = status;
}

void kzt_session_pool_gone(enum kzt_pool pool, int number)
{
	(void)pool;
	(void)number;
}

static void request_end(struct kzt_request *request, int status, const void *data,
			u32 crc)
{
	unsigned int i = request - requests;

	seen.ended++;
	seen.statuses[i] = status;
	seen.crcs[i] = crc;
	if (request->op == KZTMEM_GET_PAGE && status == 1)
		memcpy(seen.pages[i], data, PAGE_SIZE);
}

static unsigned int digit(char c)
{
	return isdigit(c) ? c - '0' : tolower(c) - 'a' + 10;
}

static const char *hex(u8 *to, const char *from)
{
	for (; isxdigit(from[0]); from += 2)
		*to++ = digit(from[0]) << 4 | digit(from[1]);
	return from;
}

/* Parts of hex bytes, joined by "+", each as often as it says behind a "*". */
static size_t payload(u8 *to, const char *from)
{
	u8 *start = to;

	while (*from && *from != '-') {
		const char *end = from + strspn(from, "0123456789abcdef");
		size_t len = (end - from) / 2;
		unsigned long times = *end == '*' ? strtoul(end + 1, (char **)&from, 10) : 1;

		if (*end != '*')
			from = end;
		hex(to, end - 2 * len);
		for (to += len; --times; to += len)
			memcpy(to, to - len, len);
		if (*from == '+')
			from++;
	}
	return to - start;
}

static void read_vector(char *line, struct vector *vector)
{
	char *word[14];
	u64 number[11];

	for (int i = 0; i < 14; i++) {
		word[i] = strtok(i ? NULL : line, " \n");
		if (!word[i])
			errx(1, "%s: not a vector", word[0]);
	}
	for (int i = 0; i < 11; i++)
		number[i] = strtoull(word[i + 1], NULL, 0);
	snprintf(vector->name, sizeof(vector->name), "%s", word[0]);
	vector->bytes = calloc(1, HEAD + MAX_PAYLOAD);
	hex(vector->bytes, word[13]);
	vector->size = HEAD + payload(vector->bytes + HEAD, word[12]);
	vector->header = (struct kztmem_header) {
		.magic = KZTMEM_MAGIC,
		.op = number[0],
		.flags = number[1],
		.session = number[2],
		.tag = number[3],
		.pool = number[4],
		.object = { number[5], number[6], number[7] },
		.index = number[8],
		.count = number[9],
		.length = number[10],
		.crc = ((struct kztmem_header *)vector->bytes)->crc,
	};
}

static void read_vectors(const char *path)
{
	static char line[1 << 20];
	FILE *file = fopen(path, "r");

	if (!file)
		err(1, "%s", path);
	while (fgets(line, sizeof(line), file))
		if (*line != '#' && *line != '\n') {
			if (nr_vectors == MAX_VECTORS)
				errx(1, "%s: too many vectors", path);
			read_vector(line, &vectors[nr_vectors++]);
		}
	fclose(file);
}

static const struct vector *request_of(const struct vector *reply)
{
	for (unsigned int i = 0; i < nr_vectors; i++)
		if (vectors[i].header.tag == reply->header.tag &&
		    vectors[i].header.op == reply->header.op &&
		    !(vectors[i].header.flags & KZTMEM_REPLY))
			return &vectors[i];
	return NULL;
}

/* A module that has nothing to do, in the session of a frame that is to have its tag */
static void begin(const struct kztmem_header *header)
{
	kzt_receive_reset();
	memset(&kzt, 0, sizeof(kzt));
	memset(&seen, 0, sizeof(seen));
	memset(frames, 0, sizeof(frames));
	INIT_LIST_HEAD(&kzt.queue);
	INIT_LIST_HEAD(&kzt.frames_free);
	INIT_LIST_HEAD(&kzt.in_flight);
	kzt_frames_init();
	list_del(&frames[header->tag % NR_FRAMES].link);
	INIT_LIST_HEAD(&kzt.frames_free);
	list_add_tail(&frames[header->tag % NR_FRAMES].link, &kzt.frames_free);
	frames[header->tag % NR_FRAMES].tag = header->tag;
	kzt.session = header->session;
	kzt.state = KZT_SERVING;
	kzt.max_pages = KZTMEM_MAX_PAGES;
}

/* Have the module do what this request is made of; false: it never asks for that. */
static bool ask(const struct vector *vector)
{
	const struct kztmem_header *header = &vector->header;
	enum kzt_pool pool = header->pool ? KZT_EPHEMERAL : KZT_PERSISTENT;
	u32 count = header->count;

	if (header->object[2] || header->flags & KZTMEM_REPLY)
		return false;
	begin(header);
	kzt.pool[KZT_PERSISTENT] = kzt.pool[KZT_EPHEMERAL] = header->pool;
	switch (header->op) {
	case KZTMEM_NEW_POOL:
		pool = header->index & KZTMEM_POOL_PERSIST ? KZT_PERSISTENT : KZT_EPHEMERAL;
		kzt.pool[pool] = -ENODEV;
		kzt.want_pool[pool] = true;
		return !header->object[0];
	case KZTMEM_FLUSH_PAGE:
		flush.key = (struct kzt_key) {
			.pool = KZT_PERSISTENT,
			.object = { header->object[0], header->object[1] },
			.index = header->index,
		};
		flush.count = count;
		return true;
	case KZTMEM_FLUSH_OBJECT:
		count = 1;
		break;
	case KZTMEM_PUT_PAGE:
	case KZTMEM_GET_PAGE:
		break;
	default:
		return false;
	}
	for (u32 i = 0; i < count && count <= NR_REQUESTS; i++) {
		struct kzt_request *request = &requests[i];

		*request = (struct kzt_request) {
			.op = header->op,
			.key = {
				.pool = pool,
				.object = { header->object[0], header->object[1] },
				.index = header->index + i,
			},
			.page = vector->bytes + HEAD + i * PAGE_SIZE,
			.end = request_end,
		};
		if (header->op == KZTMEM_PUT_PAGE)
			request->crc = kzt_crc(request->page, PAGE_SIZE);
		list_add_tail(&request->link, &kzt.queue);
	}
	return count <= NR_REQUESTS;
}

/* All that there is to read, so much at a time */
static size_t read_all(u8 *to, size_t piece)
{
	size_t done = 0;
	ssize_t got;

	while ((got = kzt_send((char *)to + done, piece)) > 0)
		done += got;
	return done;
}

static bool makes_request(const struct vector *vector, size_t piece)
{
	static u8 made[HEAD + MAX_PAYLOAD];

	return read_all(made, piece) == vector->size &&
	       !memcmp(made, vector->bytes, vector->size);
}

/* The module gives its HELLOs no tag. */
static bool makes_hello(const struct vector *vector)
{
	const struct kztmem_hello *hello = (void *)(vector->bytes + HEAD);
	struct vector untagged = *vector;
	struct kztmem_header *header;
	bool done;

	untagged.bytes = malloc(vector->size);
	memcpy(untagged.bytes, vector->bytes, vector->size);
	header = (void *)untagged.bytes;
	header->tag = 0;
	header->crc = frame_crc(header, header->length, NULL, 0);
	begin(&vector->header);
	kzt.state = KZT_GREETING;
	kzt.greet = true;
	kzt.fresh = vector->header.flags & KZTMEM_FRESH;
	kzt.nonce = hello->nonce;
	done = makes_request(&untagged, 7);
	free(untagged.bytes);
	return done;
}

static void write_all(const u8 *from, size_t size, size_t piece)
{
	for (size_t done = 0; done < size; done += piece)
		kzt_receive((const char *)from + done, min(piece, size - done));
}

static bool takes_greeting(const struct vector *vector, const u8 *bytes, size_t piece)
{
	const struct kztmem_header *header = &vector->header;

	begin(header);
	kzt.state = KZT_GREETING;
	write_all((const u8 *)"KZTM, what is left of a frame", 29, piece);
	write_all(bytes, vector->size, piece);
	if (header->op == KZTMEM_NO_SESSION)
		return !memcmp(&seen.nonce, vector->bytes + HEAD, sizeof(seen.nonce));
	return seen.welcomes && seen.status == (int)header->pool &&
	       !memcmp(&seen.hello, vector->bytes + HEAD, sizeof(seen.hello));
}

static bool has_no_greeting(void)
{
	return !seen.nonce && !seen.welcomes;
}

/* Send the request and write the reply. */
static void answer(const struct vector *request, const struct vector *reply,
		   const u8 *bytes, size_t piece)
{
	static u8 sent[HEAD + MAX_PAYLOAD];

	ask(request);
	read_all(sent, sizeof(sent));
	write_all(bytes, reply->size, piece);
}

static bool takes_reply(const struct vector *request, const struct vector *reply,
			size_t piece)
{
	const struct kztmem_header *header = &reply->header;
	bool paged = header->op == KZTMEM_PUT_PAGE || header->op == KZTMEM_GET_PAGE;
	const s32 *statuses = (void *)(reply->bytes + HEAD);
	const u8 *page = (void *)(statuses + header->count);

	answer(request, reply, reply->bytes, piece);
	if (seen.sessions || !list_empty(&kzt.in_flight))
		return false;
	if (header->op == KZTMEM_NEW_POOL)
		return seen.pools && seen.status == (int)header->pool;
	if (header->op == KZTMEM_FLUSH_PAGE)
		return true;
	for (u32 i = 0; i < (paged ? header->count : 1); i++) {
		int status = header->length ? statuses[i] : (int)header->pool;

		if (seen.statuses[i] != status)
			return false;
		if (header->op != KZTMEM_GET_PAGE || status != 1)
			continue;
		if (memcmp(seen.pages[i], page, PAGE_SIZE) ||
		    seen.crcs[i] != kzt_crc(page, PAGE_SIZE))
			return false;
		page += PAGE_SIZE;
	}
	return seen.ended == (paged ? header->count : 1);
}

/* Nothing comes of a frame that one bit of is wrong. */
static void check_damage(const struct vector *request, const struct vector *vector)
{
	u8 *wrong = malloc(vector->size);

	for (unsigned int bit = 0; bit < 8 * HEAD; bit++) {
		memcpy(wrong, vector->bytes, vector->size);
		wrong[bit / 8] ^= 1 << bit % 8;
		if (request)
			answer(request, vector, wrong, 4096);
		else
			takes_greeting(vector, wrong, 4096);
		if (seen.ended || seen.pools || !has_no_greeting())
			errx(1, "%s: taken with bit %u wrong", vector->name, bit);
	}
	free(wrong);
}

static void check_layout(const struct vector *vector)
{
	const struct kztmem_header *header = (void *)vector->bytes;

	if (memcmp(header, &vector->header, HEAD))
		errx(1, "%s: the header is laid out otherwise", vector->name);
	if (vector->size != HEAD + header->length)
		errx(1, "%s: the payload has another length", vector->name);
	if (header->crc != frame_crc(header, header->length, NULL, 0))
		errx(1, "%s: the checksum is another one", vector->name);
}

int main(int argc, char **argv)
{
	static const size_t pieces[] = { 1, 63, 4097, HEAD + MAX_PAYLOAD };
	unsigned int made = 0, taken = 0;

	if (argc != 2)
		errx(2, "usage: frames VECTORS");
	kzt_crc_init();
	if (kzt_receive_alloc())
		err(1, "memory");
	read_vectors(argv[1]);
	for (unsigned int i = 0; i < nr_vectors; i++) {
		const struct vector *vector = &vectors[i], *request = request_of(vector);
		bool reply = vector->header.flags & KZTMEM_REPLY;
		unsigned int op = vector->header.op;
		bool greets = op == KZTMEM_NO_SESSION || (op == KZTMEM_HELLO && reply);
		bool ours = op == KZTMEM_HELLO && !strstr(vector->name, "small") &&
			    !strstr(vector->name, "version");

		check_layout(vector);
		if (!reply && ours && !makes_hello(vector))
			errx(1, "%s: the module's is another one", vector->name);
		made += !reply && ours;
		if (greets) {
			for (unsigned int j = 0; j < 4; j++)
				if (!takes_greeting(vector, vector->bytes, pieces[j]))
					errx(1, "%s: not taken", vector->name);
			check_damage(NULL, vector);
		} else if (reply && request && ask(request)) {
			for (unsigned int j = 0; j < 4; j++)
				if (!takes_reply(request, vector, pieces[j]))
					errx(1, "%s: not taken", vector->name);
			check_damage(request, vector);
		} else if (!reply && ask(vector)) {
			for (unsigned int j = 0; j < 4; j++)
				if (ask(vector) && !makes_request(vector, pieces[j]))
					errx(1, "%s: the module's is another one", vector->name);
			made++;
			continue;
		} else {
			continue;
		}
		taken++;
	}
	printf("%u vectors, %u made, %u taken\n", nr_vectors, made, taken);
	return 0;
}
