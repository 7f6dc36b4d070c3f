/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * As much of the kernel as the module's code needs that is run here, for a program
 * with one thread: no lock is ever contended, and user memory is our own.
 */
#ifndef SELFTEST_KERNEL_H
#define SELFTEST_KERNEL_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int32_t s32;
typedef unsigned long pgoff_t;
typedef struct { int value; } atomic_t;
typedef struct { long value; } atomic_long_t;
typedef struct { } spinlock_t, wait_queue_head_t;

struct mutex { };
struct completion { };
struct work_struct { };
struct delayed_work { };
struct workqueue_struct;
struct folio;
struct page;
struct tmem_area;
struct tmem_ops;
struct tmem_page;

#define __user
#define fallthrough		__attribute__((__fallthrough__))
#define PAGE_SIZE		4096UL
#define BIT(nr)			(1UL << (nr))
#define __ffs(word)		__builtin_ctzl(word)
#define READ_ONCE(x)		(*(const volatile typeof(x) *)&(x))
#define WRITE_ONCE(x, value)	(*(volatile typeof(x) *)&(x) = (value))
#define BUILD_BUG_ON(condition)	_Static_assert(!(condition), #condition)
#define min(a, b)		((a) < (b) ? (a) : (b))
#define jiffies			0UL

/* This machine is little-endian, as all are that the module runs on. */
#define cpu_to_le16(x)		(x)
#define cpu_to_le32(x)		(x)
#define cpu_to_le64(x)		(x)
#define le16_to_cpu(x)		(x)
#define le32_to_cpu(x)		(x)
#define le64_to_cpu(x)		(x)

#define spin_lock_irq(lock)	((void)(lock))
#define spin_unlock_irq(lock)	((void)(lock))
#define atomic_long_add(nr, counter)	((counter)->value += (nr))
#define pr_warn_ratelimited(...)	((void)0)
#define vmalloc(size)		malloc(size)
#define vcalloc(nr, size)	calloc(nr, size)
#define vfree(memory)		free(memory)
#define smp_load_acquire(at)	(*(at))
#define smp_store_release(at, value)	(*(at) = (value))
#define GOLDEN_RATIO_64		0x61c8864680b583ebULL	/* as in linux/hash.h */

static inline int order_base_2(unsigned long nr)
{
	return nr < 2 ? 0 : 64 - __builtin_clzl(nr - 1);
}

unsigned long totalram_pages(void);

static inline unsigned long copy_to_user(void *to, const void *from, size_t len)
{
	memcpy(to, from, len);
	return 0;
}

#define copy_from_user(to, from, len)	copy_to_user(to, from, len)

static inline u32 crc32c(u32 crc, const void *data, size_t len)
{
	const u8 *at = data;

	while (len--) {
		crc ^= *at++;
		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78 : 0);
	}
	return crc;
}

static inline u32 __crc32c_le_shift(u32 crc, size_t len)
{
	while (len--)
		crc = crc32c(crc, "", 1);
	return crc;
}

struct list_head {
	struct list_head *next, *prev;
};

#define LIST_HEAD_INIT(name)	{ &(name), &(name) }
#define LIST_HEAD(name)		struct list_head name = LIST_HEAD_INIT(name)

static inline void INIT_LIST_HEAD(struct list_head *list)
{
	list->next = list->prev = list;
}

static inline bool list_empty(const struct list_head *list)
{
	return list->next == list;
}

static inline void list_add_tail(struct list_head *entry, struct list_head *list)
{
	entry->next = list;
	entry->prev = list->prev;
	list->prev->next = entry;
	list->prev = entry;
}

static inline void list_del(struct list_head *entry)
{
	entry->prev->next = entry->next;
	entry->next->prev = entry->prev;
}

static inline void list_move_tail(struct list_head *entry, struct list_head *list)
{
	list_del(entry);
	list_add_tail(entry, list);
}

static inline void list_splice_init(struct list_head *from, struct list_head *to)
{
	while (!list_empty(from))
		list_move_tail(from->next, to);
}

#define container_of(at, type, member) \
	((type *)((char *)(at) - offsetof(type, member)))
#define list_first_entry(list, type, member) \
	container_of((list)->next, type, member)
#define list_first_entry_or_null(list, type, member) \
	(list_empty(list) ? NULL : list_first_entry(list, type, member))
#define list_next_entry(at, member) \
	container_of((at)->member.next, typeof(*(at)), member)
#define list_for_each_entry(at, list, member)				\
	for (at = list_first_entry(list, typeof(*at), member);		\
	     &at->member != (list); at = list_next_entry(at, member))
#define list_for_each_entry_safe(at, after, list, member)		\
	for (at = list_first_entry(list, typeof(*at), member),		\
	     after = list_next_entry(at, member);			\
	     &at->member != (list);					\
	     at = after, after = list_next_entry(after, member))

#endif /* SELFTEST_KERNEL_H */
