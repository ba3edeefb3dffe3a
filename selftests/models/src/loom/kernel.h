/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the protocol's C functions take from the kernel. Shared words are read
 * and changed through functions in Rust, so that loom sees every access.
 */
#include <linux/types.h>
#include <stdbool.h>

#define s64		__s64
#define u32		__u32
#define atomic64_t	struct model_atomic64

struct model_atomic64 {
	s64 counter;
};

struct inode {
	unsigned int i_blkbits;
};

struct address_space {
	struct inode *host;
	unsigned long flags;
};

struct folio {
	struct {
		unsigned long f;
	} flags;
	struct address_space *mapping;
};

/* Each page here is a folio of its own. */
struct page {
	struct folio folio;
};

struct pinwb_leaf {
	unsigned long first_pfn;
	atomic64_t *entries;
};

#define PINWB_LEAF_ENTRIES	512
#define PINWB_MAX_COUNT		0xffffffffU
#define PAGE_SHIFT		12

enum { PG_dirty, PG_writeback };
enum { AS_PINNED_WRITEBACK, AS_WAS_PINNED };

/* Rust is to call all of these. */
#define static
#define inline

#define unlikely(x)		(x)
#define BIT(nr)			(1UL << (nr))
#define READ_ONCE(x)		model_read_once(&(x))
#define test_bit(nr, word)	((model_read_once(word) & BIT(nr)) != 0)
#define set_bit(nr, word)	model_or_relaxed(word, BIT(nr))
#define clear_bit(nr, word)	model_and_relaxed(word, ~BIT(nr))

#define atomic64_read(v)		model_read_once((unsigned long *)&(v)->counter)
#define atomic64_fetch_inc_relaxed(v)	model_add_relaxed((unsigned long *)&(v)->counter, 1)
#define atomic64_fetch_dec_release(v)	model_add_release((unsigned long *)&(v)->counter, -1)
#define atomic64_inc(v)			model_add_relaxed((unsigned long *)&(v)->counter, 1)
#define atomic64_dec(v)			model_add_relaxed((unsigned long *)&(v)->counter, -1)

/* Full, which it is not without the atomic after it: there always is one. */
#define smp_mb__before_atomic()	model_mb()

#define PageCompound(page)	((void)(page), false)

unsigned long model_read_once(const unsigned long *word);
void model_or_relaxed(unsigned long *word, unsigned long bits);
void model_and_relaxed(unsigned long *word, unsigned long bits);
unsigned long model_add_relaxed(unsigned long *word, unsigned long n);
unsigned long model_add_release(unsigned long *word, unsigned long n);

void model_mb(void);

unsigned long page_to_pfn(const struct page *page);
bool folio_trylock(struct folio *folio);
void folio_unlock(struct folio *folio);

bool __pinwb_keep_dirty(struct folio *folio);
bool __pinwb_mapping_has_pins(struct address_space *mapping);

/* The cut-out functions have no prototypes of their own. */
bool pinwb_count_one(atomic64_t *entry);
bool pinwb_forget_one(atomic64_t *entry);
