/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the protocol's C functions take from the kernel. Shared words are read
 * and changed through functions in Rust, so that loom sees every access.
 */
#include <linux/types.h>
#include <stdbool.h>
#include <stddef.h>

#define s64		__s64
#define u32		__u32
#define u64		__u64
#define atomic64_t	struct model_atomic64

struct model_atomic64 {
	s64 counter;
};

struct bdi_writeback {
	int unused;
};

struct wb_lock_cookie {
	int unused;
};

struct inode {
	unsigned int i_blkbits;
	struct bdi_writeback wb;
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

struct pinwb_run {
	struct folio *first;
	long in_node;
};

#define PINWB_LEAF_ENTRIES	512
#define PINWB_MAX_COUNT		0xffffffffU
#define PINWB_IN_NODE		0x100000000ULL
#define PINWB_IN_WB		0x200000000ULL
#define PINWB_EXEMPT		(PINWB_IN_NODE | PINWB_IN_WB)
#define PINWB_OWNER_SHIFT	34
#define PAGE_SHIFT		12

enum { PG_dirty, PG_writeback, PG_unevictable };
enum { AS_PINNED_WRITEBACK, AS_WAS_PINNED };
enum { NR_FILE_PINNED, WB_PINNED };

/* Rust is to call all of these. */
#define static
#define inline
#undef __always_inline
#define __always_inline

#define likely(x)		(x)
#define unlikely(x)		(x)
#define BIT(nr)			(1UL << (nr))
#define READ_ONCE(x)		model_read_once(&(x))
#define test_bit(nr, word)	((model_read_once(word) & BIT(nr)) != 0)
#define set_bit(nr, word)	model_or_relaxed(word, BIT(nr))
#define clear_bit(nr, word)	model_and_relaxed(word, ~BIT(nr))

#define atomic64_read(v)		model_read_once((unsigned long *)&(v)->counter)
#define atomic64_try_cmpxchg_relaxed(v, old, new) \
	model_try_cmpxchg((unsigned long *)&(v)->counter, (unsigned long *)(old), new, false)
#define atomic64_try_cmpxchg_release(v, old, new) \
	model_try_cmpxchg((unsigned long *)&(v)->counter, (unsigned long *)(old), new, true)

/* Full, which it is not without the atomic after it: there always is one. */
#define smp_mb__before_atomic()	model_mb()
/* The same with the atomic before it. */
#define smp_mb__after_atomic()	model_mb()

#define PageCompound(page)	((void)(page), false)
#define PageHead(page)		((void)(page), false)
#define folio_nr_pages(folio)	((void)(folio), 1L)
#define folio_test_unevictable(folio)	test_bit(PG_unevictable, &(folio)->flags.f)
#define trace_pinwb_pin(folio, pins)	((void)(folio), (void)(pins))
#define trace_pinwb_unpin(folio, pins)	((void)(folio), (void)(pins))

/* One node, one memcg, one bdi_writeback that is not switched. */
#define folio_nid(folio)	((void)(folio), 0)
#define pinwb_memcg_data(folio)	((void)(folio), 0)
#define rcu_read_lock()		((void)0)
#define rcu_read_unlock()	((void)0)
#define unlocked_inode_to_wb_begin(inode, cookie)	((void)(cookie), &(inode)->wb)
#define unlocked_inode_to_wb_end(inode, cookie)		((void)(inode), (void)(cookie))
#define lruvec_stat_mod_folio(folio, item, n)		((void)(folio), model_count(item, n))
#define wb_stat_mod(wb, item, n)			((void)(wb), model_count(item, n))

unsigned long model_read_once(const unsigned long *word);
void model_or_relaxed(unsigned long *word, unsigned long bits);
void model_and_relaxed(unsigned long *word, unsigned long bits);
bool model_try_cmpxchg(unsigned long *word, unsigned long *old, unsigned long new,
		       bool release);
void model_count(int item, long n);

void model_mb(void);

unsigned long page_to_pfn(const struct page *page);
bool folio_trylock(struct folio *folio);
void folio_unlock(struct folio *folio);
void folio_rescue_unevictable(struct folio *folio);

bool __pinwb_keep_dirty(struct folio *folio);
bool __pinwb_mapping_has_pins(struct address_space *mapping);
bool pinwb_knockout_exempt(void);
u32 pinwb_owner(void);
u64 pinwb_set_exempt(const struct folio *folio);
u64 pinwb_clear_exempt(const struct folio *folio);

/* The cut-out functions have no prototypes of their own. */
atomic64_t *pinwb_leaf_entry(const struct pinwb_leaf *leaf, const struct page *page);
bool pinwb_count_one(atomic64_t *entry, u64 exempt, u64 owner, u64 *set);
bool pinwb_forget_one(atomic64_t *entry, bool *last, u64 *cleared);
void pinwb_rescue(struct folio *folio);
void pinwb_run_flush(struct pinwb_run *run);
void pinwb_run_add(struct pinwb_run *run, struct folio *folio, long nr);
atomic64_t *pinwb_lock_ready(struct page *page, const struct address_space *mapping,
			     const struct pinwb_leaf *leaf);
void pinwb_account(struct folio *folio, struct bdi_writeback *wb, u64 bits, long nr);
void pinwb_account_exempt(struct folio *folio);
void pinwb_unpinned(struct folio *folio, bool left_node);
void __pinwb_account_cleaned(struct folio *folio, struct bdi_writeback *wb);
