/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Pinned writeback: what C sees of mm/pinwb.
 *
 * What is called for every folio is a static inline that tests one bit of the
 * mapping (or of the bio) and calls into Rust only when the bit is set, so that a
 * mapping that was never pinned pays for one test and nothing else.
 *
 * See Documentation/mm/pinwb/design.rst for the races and
 * Documentation/mm/pinwb/filesystem.rst for what a filesystem has to do.
 */
#ifndef _LINUX_PINWB_H
#define _LINUX_PINWB_H

#include <linux/bio.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/writeback.h>

/*
 * Most pages that a writeback bio of a pinned mapping may carry, on any device:
 * one mempool_alloc_bulk() then serves the whole bio, and no bio ever waits for
 * pages while it holds some.
 */
#define PINWB_BIO_MAX_PAGES	256
#define PINWB_BIO_MAX_BYTES	(PINWB_BIO_MAX_PAGES << PAGE_SHIFT)

/*
 * Knock-outs: the steps in C that tests leave out, to see that they are needed.
 * Always false without CONFIG_PINWB_DEBUG.
 */
#ifdef CONFIG_PINWB_DEBUG
#define PINWB_KNOCKOUT(step)	bool pinwb_knockout_##step(void)
#else
#define PINWB_KNOCKOUT(step)						\
	static inline bool pinwb_knockout_##step(void)			\
	{								\
		return false;						\
	}								\
	bool pinwb_knockout_##step(void)
#endif

/* Space for blocks that no ->page_mkwrite() announced */
PINWB_KNOCKOUT(hole_alloc);
/* New blocks in place of shared ones */
PINWB_KNOCKOUT(cow);
/* Keeping writeback away from blocks that are being freed or shared */
PINWB_KNOCKOUT(exclusion);
/* Keeping data for which no blocks can be had */
PINWB_KNOCKOUT(keep_unmapped);
/* Keeping blocks unwritten whose extent could not be converted */
PINWB_KNOCKOUT(unwritten);
/* Moving the inode's times */
PINWB_KNOCKOUT(touch);
/* The difference between files that were pinned and those that never were */
PINWB_KNOCKOUT(sticky);
/* The exemption from the dirty limits */
PINWB_KNOCKOUT(exempt);
/* Leaving frozen filesystems alone */
PINWB_KNOCKOUT(freeze);

#ifdef CONFIG_PINWB_DEBUG
bool pinwb_guess_pinned(const struct folio *folio);
#endif

/**
 * pinwb_dirtyable - pages of files that could become dirty
 * @lru: those on the evictable lists
 * @cached: all, with those that are not evictable
 * @pinned: those that pins keep dirty; more than 0
 *
 * Pinned pages are on the lists, or reclaim or mlock(2) has taken them off. Either
 * sum is at least what of files could become dirty: @lru is exact if all of them
 * have been taken off, and @cached without them if nothing else has. Anonymous
 * pages of MADV_FREE are in @lru only.
 *
 * Return: their number.
 */
static inline unsigned long pinwb_dirtyable(unsigned long lru,
					    unsigned long cached,
					    unsigned long pinned)
{
	/* The counters don't fit each other to the page. */
	return min(lru, cached - min(cached, pinned));
}

#ifdef CONFIG_PINWB

/* Cleared by pinwb=off on the command line; does not change after boot. */
extern bool pinwb_on;

static inline bool pinwb_enabled(void)
{
	return pinwb_on;
}

/**
 * mapping_set_pinned_writeback - a filesystem opts an inode's mapping in
 * @mapping: the page cache of a regular file
 *
 * To be called while the inode is set up, before anybody can map it. Does
 * nothing if the kernel was booted with pinwb=off.
 */
static inline void mapping_set_pinned_writeback(struct address_space *mapping)
{
	if (!pinwb_enabled())
		return;
	set_bit(AS_PINNED_WRITEBACK, &mapping->flags);
	if (pinwb_knockout_sticky())
		set_bit(AS_WAS_PINNED, &mapping->flags);
}

/**
 * mapping_clear_pinned_writeback - a filesystem opts an inode's mapping out
 * @mapping: the page cache of a regular file
 *
 * Keeps new pins out, once smp_mb__after_atomic() was called. Pins that exist
 * stay: pinwb_mapping_has_pins() tells of them afterwards.
 */
static inline void mapping_clear_pinned_writeback(struct address_space *mapping)
{
	clear_bit(AS_PINNED_WRITEBACK, &mapping->flags);
}

static inline bool mapping_pinned_writeback(const struct address_space *mapping)
{
	return test_bit(AS_PINNED_WRITEBACK, &mapping->flags);
}

/**
 * mapping_was_pinned - may folios here be dirty without an announcement?
 * @mapping: the page cache of a file
 *
 * Set by the first writable long-term pin, until the inode is evicted: a
 * device may have written to any folio of this mapping without
 * ->page_mkwrite(), and the filesystem must find blocks for it in writeback.
 *
 * Return: true if so.
 */
static inline bool mapping_was_pinned(const struct address_space *mapping)
{
	return unlikely(test_bit(AS_WAS_PINNED, &mapping->flags));
}

static inline void mapping_set_was_pinned(struct address_space *mapping)
{
	if (test_bit(AS_WAS_PINNED, &mapping->flags))
		return;
	/*
	 * Whoever sees the flag finds the pools of copies, also if another CPU
	 * made them. Pairs with smp_rmb() in __pinwb_bounce_bio().
	 */
	smp_mb__before_atomic();
	set_bit(AS_WAS_PINNED, &mapping->flags);
}

bool __pinwb_folio_pinned(const struct folio *folio);
bool __pinwb_folio_stays(const struct folio *folio);
bool __pinwb_keep_dirty(struct folio *folio);
bool __pinwb_mapping_has_pins(struct address_space *mapping);
bool __pinwb_folio_exempt(const struct folio *folio);
bool __pinwb_folio_unchanged(const struct folio *folio);
void __pinwb_folio_removed(struct folio *folio);
void __pinwb_folio_cut(const struct folio *folio);
void __pinwb_writeback_failed(void);
int __pinwb_remount_ro(struct super_block *sb);
int __pinwb_swapon(struct address_space *mapping);
void __pinwb_account_cleaned(struct folio *folio, struct bdi_writeback *wb);
void __pinwb_account_moved(struct folio *folio, struct address_space *mapping);
void __pinwb_account_switched(struct folio *folio, struct bdi_writeback *old_wb,
			      struct bdi_writeback *new_wb);
void __pinwb_touch_inode(struct inode *inode);
void __pinwb_touch_times(struct inode *inode);
int __pinwb_bounce_bio(struct bio *bio, struct inode *inode);
void __pinwb_unbounce_bio(struct bio *bio);

/**
 * pinwb_folio_pinned - is there a writable long-term pin on this folio now?
 * @folio: a folio of @mapping
 * @mapping: its mapping
 *
 * With the folio locked, "no" stays true until the unlock as far as devices
 * are concerned: a pin that is counted later is admitted under the lock.
 *
 * Return: true if there is.
 */
static inline bool pinwb_folio_pinned(const struct folio *folio,
				      const struct address_space *mapping)
{
	return mapping_was_pinned(mapping) && __pinwb_folio_pinned(folio);
}

/* What pinwb_begin_writeback() found. */
enum pinwb_gate {
	PINWB_FROZEN,	/* nothing may be written */
	PINWB_OPEN,	/* a freeze waits for the caller in another way */
	PINWB_HELD,	/* a freeze waits for pinwb_end_writeback() */
};

enum pinwb_gate pinwb_begin_writeback(struct address_space *mapping,
				      const struct writeback_control *wbc);

/**
 * pinwb_end_writeback - ->writepages() of a file that was pinned is done
 * @sb: the filesystem
 * @gate: what pinwb_begin_writeback() returned
 */
static inline void pinwb_end_writeback(struct super_block *sb,
				       enum pinwb_gate gate)
{
	if (gate == PINWB_HELD)
		sb_end_pagefault(sb);
}

/**
 * pinwb_keep_dirty - the keep-dirty step of writeback
 * @folio: locked, its dirty bit cleared by folio_clear_dirty_for_io()
 * @mapping: its mapping
 *
 * If the folio is pinned, makes it dirty again: the filesystem then also has to
 * keep the dirty state of the blocks that it is about to write. To be called
 * under the folio lock that is held until __folio_start_writeback(), which would
 * otherwise drop the DIRTY tag, and before any byte is copied.
 *
 * Context: process context, folio locked; does not sleep.
 *
 * Return: true if the folio is pinned.
 */
static inline bool pinwb_keep_dirty(struct folio *folio,
				    struct address_space *mapping)
{
	return mapping_was_pinned(mapping) && __pinwb_keep_dirty(folio);
}

/**
 * pinwb_mapping_has_pins - walk a mapping for pinned folios
 * @mapping: the page cache of a file
 *
 * For rare operations that must refuse files with pins (journal mode flip,
 * verity). Callers keep new pins out by clearing the opt-in first, and set it
 * again if the answer makes them give up.
 *
 * Context: process context, no folio locks; may sleep.
 *
 * Return: true if there are any.
 */
static inline bool pinwb_mapping_has_pins(struct address_space *mapping)
{
	return mapping_was_pinned(mapping) && __pinwb_mapping_has_pins(mapping);
}

/**
 * pinwb_exclude_pins - keep pins away from an operation on a file
 * @mapping: the page cache of a file
 *
 * Opts the mapping out, and looks for pins. Whatever the answer, the caller opts
 * in again with mapping_set_pinned_writeback(), here or when it is done.
 *
 * Admission counts a pin before it looks at the opt-in for the last time.
 *
 * Context: process context, no folio locks; may sleep. The caller keeps others
 * from opting the mapping in.
 *
 * Return: true if there are no pins, and none will be taken.
 */
static inline bool pinwb_exclude_pins(struct address_space *mapping)
{
	mapping_clear_pinned_writeback(mapping);
	/* Either we see a pin's count, or admission sees the cleared bit */
	smp_mb__after_atomic();
	return !pinwb_mapping_has_pins(mapping);
}

/**
 * pinwb_folio_stays - does a pin keep reclaim from doing anything about a folio?
 * @folio: the folio
 * @mapping: its mapping, or NULL; not freed before the caller is done
 *
 * Context: any.
 *
 * Return: true if so.
 */
static inline bool pinwb_folio_stays(const struct folio *folio,
				     const struct address_space *mapping)
{
	return mapping && mapping_was_pinned(mapping) && __pinwb_folio_stays(folio);
}

/**
 * pinwb_folio_exempt - will writing this folio leave it dirty?
 * @folio: a dirty folio of @mapping
 * @mapping: its mapping
 *
 * For passes that write to get clean memory, or that a WB_SYNC_ALL pass follows.
 *
 * Context: any.
 *
 * Return: true if it has a pin, and is not counted as dirty for that.
 */
static inline bool pinwb_folio_exempt(const struct folio *folio,
				      const struct address_space *mapping)
{
	return mapping_was_pinned(mapping) && __pinwb_folio_exempt(folio);
}

/**
 * pinwb_skip_folio - may a pass of writeback leave this folio out?
 * @folio: a dirty folio of @mapping
 * @mapping: its mapping
 * @wbc: the pass
 *
 * If it writes to get clean memory, or is followed by one that writes all; or is
 * the periodic one, and the folio has not changed since it was written last.
 *
 * Context: process context, with a reference to the folio.
 *
 * Return: true if there is no point in writing it.
 */
static inline bool pinwb_skip_folio(const struct folio *folio,
				    const struct address_space *mapping,
				    const struct writeback_control *wbc)
{
	if (!mapping_was_pinned(mapping))
		return false;
	if (wbc->spare_pinned)
		return __pinwb_folio_exempt(folio);
	return wbc->for_kupdate && __pinwb_folio_unchanged(folio);
}

/*
 * A folio with a pin is dirty for as long as the pin lasts. Nobody can do
 * anything about that, and so it counts neither against the dirty limits nor as
 * memory that could be dirtied: NR_FILE_PINNED and WB_PINNED are what is to be
 * subtracted. Two bits in the folio's ledger entry say whether it is in them.
 *
 * They are set while the folio is locked and dirty, when a pin is admitted and by
 * keep-dirty, and cleared by the functions here, wherever NR_FILE_DIRTY changes.
 * The last unpin, which knows no locks, takes the folio off NR_FILE_PINNED, so
 * that the limit holds for it again. It can't tell whose bdi_writeback it is and
 * leaves WB_PINNED as it is until the folio is written. Only then can an unpinned
 * folio still have a bit, and be moved or split with it.
 */

/**
 * pinwb_account_cleaned - a folio is not dirty any more
 * @folio: the folio
 * @mapping: its mapping
 * @wb: what the folio counts for; can't be switched
 *
 * Context: folio locked, or nobody else sees it dirty; does not sleep.
 */
static inline void pinwb_account_cleaned(struct folio *folio,
					 const struct address_space *mapping,
					 struct bdi_writeback *wb)
{
	if (mapping_was_pinned(mapping))
		__pinwb_account_cleaned(folio, wb);
}

/**
 * pinwb_account_moved - a dirty folio moves to another PFN, or is split
 * @folio: the folio, frozen: there are no pins
 * @mapping: its mapping, i_pages locked
 */
static inline void pinwb_account_moved(struct folio *folio,
				       struct address_space *mapping)
{
	if (mapping_was_pinned(mapping))
		__pinwb_account_moved(folio, mapping);
}

/**
 * pinwb_account_switched - a dirty folio's inode gets another bdi_writeback
 * @folio: the folio
 * @mapping: its mapping, i_pages locked
 * @old_wb: what it counts for now
 * @new_wb: what it will count for
 */
static inline void pinwb_account_switched(struct folio *folio,
					  const struct address_space *mapping,
					  struct bdi_writeback *old_wb,
					  struct bdi_writeback *new_wb)
{
	if (mapping_was_pinned(mapping))
		__pinwb_account_switched(folio, old_wb, new_wb);
}

/**
 * pinwb_folio_removed - a folio leaves its file
 * @folio: the folio
 * @mapping: its mapping, for the last time
 *
 * What devices write to it from now on is lost. Counts that, and says so.
 *
 * Context: any.
 */
static inline void pinwb_folio_removed(struct folio *folio,
				       const struct address_space *mapping)
{
	if (mapping_was_pinned(mapping))
		__pinwb_folio_removed(folio);
}

/**
 * pinwb_folio_cut - a folio stays in its file, but loses some of its blocks
 * @folio: the folio, locked
 * @mapping: its mapping
 *
 * What was written of it is not on the disk any more.
 */
static inline void pinwb_folio_cut(const struct folio *folio,
				   const struct address_space *mapping)
{
	if (mapping_was_pinned(mapping))
		__pinwb_folio_cut(folio);
}

/**
 * pinwb_writeback_failed - something could not be written
 * @mapping: the mapping that has the error
 *
 * To be called before the writeback ends.
 *
 * Context: any.
 */
static inline void pinwb_writeback_failed(const struct address_space *mapping)
{
	if (mapping_was_pinned(mapping))
		__pinwb_writeback_failed();
}

/**
 * pinwb_touch_inode - the device wrote: move mtime, ctime and i_version
 * @inode: the inode of a mapping that is about to be written back
 *
 * No ->page_mkwrite() saw the device's stores. To be called once for each
 * ->writepages() that kept a pinned folio dirty.
 *
 * Context: process context, no folio lock, no transaction handle; may sleep.
 */
static inline void pinwb_touch_inode(struct inode *inode)
{
	__pinwb_touch_inode(inode);
}

/**
 * pinwb_touch_times - the same for filesystems that write the inode anyway
 * @inode: the inode of a mapping with a folio that was kept dirty
 *
 * Changes the inode in memory only, for a filesystem that stores it when the
 * I/O which is about to be submitted has ended.
 *
 * Context: any process context.
 */
static inline void pinwb_touch_times(struct inode *inode)
{
	__pinwb_touch_times(inode);
}

/**
 * pinwb_bio_max_bytes - how large a writeback bio of a pinned mapping may be
 * @inode: the inode that it writes
 * @bdev: the device that it goes to
 *
 * At most PINWB_BIO_MAX_PAGES. Copies are single pages, each a segment: if the
 * device takes fewer segments or bytes in one request, it is a multiple of what
 * it takes, so that the block layer does not cut a small piece off each bio. A
 * plug would gather such pieces, and what follows them, before the device gets
 * anything.
 *
 * Context: any.
 *
 * Return: bytes, a multiple of the block size.
 */
unsigned int pinwb_bio_max_bytes(const struct inode *inode,
				 struct block_device *bdev);

/**
 * pinwb_bio_over - pinwb_bio_full() without a look at the device of the bio
 * @bio: the bio under construction
 * @mapping: the mapping that it writes
 * @len: bytes
 * @max: pinwb_bio_max_bytes() of when the bio was allocated, or if the mapping
 *	 was not pinned then, PINWB_BIO_MAX_BYTES
 *
 * Context: any.
 *
 * Return: true if so.
 */
static inline bool pinwb_bio_over(const struct bio *bio,
				  const struct address_space *mapping,
				  size_t len, unsigned int max)
{
	unsigned int size = bio->bi_iter.bi_size;

	/* What does not fit in any bio has one of its own */
	return mapping_was_pinned(mapping) && size && size + len > max;
}

/**
 * pinwb_bio_full - must a writeback bio be submitted before @len more bytes?
 * @bio: the bio under construction
 * @mapping: the mapping that it writes
 * @len: bytes
 *
 * Context: any.
 *
 * Return: true if so.
 */
static inline bool pinwb_bio_full(const struct bio *bio,
				  const struct address_space *mapping,
				  size_t len)
{
	return mapping_was_pinned(mapping) &&
	       pinwb_bio_over(bio, mapping, len,
			      pinwb_bio_max_bytes(mapping->host, bio->bi_bdev));
}

/**
 * pinwb_bio_room - how much of a folio may be added to a writeback bio at once
 * @bio: the bio under construction, or NULL
 * @inode: the inode that it writes
 * @bdev: the device that it goes to
 *
 * For who adds more than a block at a time, and asks pinwb_bio_full() then: if
 * the bio is full, this is what fits in the next one.
 *
 * Context: any.
 *
 * Return: bytes, a multiple of the block size if what is in @bio is.
 */
static inline unsigned int pinwb_bio_room(const struct bio *bio,
					  const struct inode *inode,
					  struct block_device *bdev)
{
	unsigned int size = bio ? bio->bi_iter.bi_size : 0;
	unsigned int max;

	if (!mapping_was_pinned(inode->i_mapping))
		return UINT_MAX;
	max = pinwb_bio_max_bytes(inode, bdev);
	return size < max ? max - size : max;
}

/**
 * pinwb_bounce_bio - divert the pinned parts of a bio to private copies
 * @bio: a page cache write that is complete but not submitted
 * @mapping: the mapping that it writes
 *
 * To be called before checksums, integrity payload and submission. Waits for
 * bounce pages, never for a pin.
 *
 * Return: 0, or -EIO if the memory to copy is poisoned: then the bio is
 * unchanged and must be ended with an error instead of submitted.
 *
 * Context: process context, may sleep (GFP_NOIO).
 */
static inline int __must_check pinwb_bounce_bio(struct bio *bio,
						struct address_space *mapping)
{
	if (!mapping_was_pinned(mapping))
		return 0;
	return __pinwb_bounce_bio(bio, mapping->host);
}

/**
 * pinwb_unbounce_bio - put the bio's own pages back at completion
 * @bio: a bio whose I/O has ended
 *
 * To be called first thing in the filesystem's ->bi_end_io().
 *
 * Context: any.
 */
static inline void pinwb_unbounce_bio(struct bio *bio)
{
	if (unlikely(bio_flagged(bio, BIO_BOUNCED)))
		__pinwb_unbounce_bio(bio);
}

/**
 * pinwb_folio_is_counted - does the ledger count pins of such folios?
 * @folio: a folio that is pinned
 *
 * Page cache folios of files. Says the same at pin and at unpin, whatever
 * happened between: truncation takes the mapping away, but not these properties.
 *
 * Return: true if it does.
 */
static inline bool pinwb_folio_is_counted(const struct folio *folio)
{
	return !folio_test_anon(folio) && !folio_test_swapbacked(folio) &&
	       !folio_test_hugetlb(folio) && !is_zero_folio(folio) &&
	       pinwb_enabled();
}

/*
 * Set for ever by the first pin that the ledger counts. Whoever releases a pin
 * of a counted page has got the page from somebody who saw it set.
 */
extern bool pinwb_used;

/**
 * pinwb_was_used - has a pin been counted since the machine started?
 *
 * For rare operations that look at many files for the sake of pinned ones.
 *
 * Return: false if no mapping was ever pinned.
 */
static inline bool pinwb_was_used(void)
{
	return READ_ONCE(pinwb_used);
}

/**
 * pinwb_remount_ro - may a filesystem become read-only?
 * @sb: no file is open for writing, and none will be
 *
 * There may still be pins, of whoever has closed and unmapped the file. What
 * their devices write could never be stored.
 *
 * Context: process context; may sleep.
 *
 * Return: 0, or -EBUSY after a message that says how many pages are pinned, and
 * by whom.
 */
static inline int pinwb_remount_ro(struct super_block *sb)
{
	return pinwb_was_used() ? __pinwb_remount_ro(sb) : 0;
}

/**
 * pinwb_swapon - may a file become swap space?
 * @mapping: its page cache
 *
 * Swap writes to the blocks behind the back of the page cache, which writes
 * pinned folios for ever. Opts the file out, until the inode is evicted.
 *
 * Context: process context, inode locked; may sleep.
 *
 * Return: 0, or -EBUSY after a message if there are pins.
 */
static inline int pinwb_swapon(struct address_space *mapping)
{
	return mapping_pinned_writeback(mapping) ? __pinwb_swapon(mapping) : 0;
}

/*
 * Is the range part of one VMA of a kind whose writable pages the ledger never
 * counts? One look at the VMA instead of one at each page. mmap_lock held.
 */
static inline bool pinwb_range_is_memory(struct mm_struct *mm,
					 unsigned long start,
					 unsigned long nr_pages)
{
	struct vm_area_struct *vma = vma_lookup(mm, start);

	return vma && (vma_is_anonymous(vma) || vma_is_shmem(vma)) &&
	       nr_pages <= (vma->vm_end - start) >> PAGE_SHIFT;
}

int __pinwb_admit(struct mm_struct *mm, unsigned long start,
		  struct page **pages, unsigned long nr_pages,
		  bool mmap_locked);
void __pinwb_unpin(struct folio *folio, unsigned long nr);

/**
 * pinwb_admit - count writable long-term pins and make the folios safe for DMA
 * @mm: the address space
 * @start: user address of the first page
 * @pages: pages that were just pinned with FOLL_PIN, FOLL_LONGTERM, FOLL_WRITE
 * @nr_pages: how many
 * @mmap_locked: whether the caller holds the mmap_lock
 *
 * Context: process context, no folio locks. Sleeps, but never for a pin.
 *
 * Return: 0, or an error after which the caller drops the references: -EAGAIN
 * if the range is to be pinned again.
 */
static inline int pinwb_admit(struct mm_struct *mm, unsigned long start,
			      struct page **pages, unsigned long nr_pages,
			      bool mmap_locked)
{
	unsigned long i;

	if (mmap_locked && pinwb_range_is_memory(mm, start, nr_pages))
		return 0;
	for (i = 0; i < nr_pages; i++) {
		if (pinwb_folio_is_counted(page_folio(pages[i]))) {
			if (!pinwb_was_used())
				WRITE_ONCE(pinwb_used, true);
			return __pinwb_admit(mm, start, pages, nr_pages,
					     mmap_locked);
		}
	}
	return 0;
}

/**
 * pinwb_unpin - forget writable long-term pins
 * @folio: the folio
 * @nr: how many pins; the caller drops the references afterwards
 *
 * Context: any.
 */
static inline void pinwb_unpin(struct folio *folio, unsigned long nr)
{
	if (pinwb_folio_is_counted(folio))
		__pinwb_unpin(folio, nr);
}

/**
 * pinwb_unpin_needed - is there anything to forget when pins are released?
 * @gup_flags: the flags that the pages were pinned with
 *
 * Return: false if no page that was pinned with these flags is counted.
 */
static inline bool pinwb_unpin_needed(unsigned int gup_flags)
{
	return (gup_flags & FOLL_WRITE) && pinwb_was_used();
}

/**
 * pinwb_unpin_pages - forget a writable long-term pin of each page
 * @pages: the pages, each with a pin; null pointers are skipped
 * @nr_pages: how many; the caller drops the references afterwards
 *
 * Context: any.
 */
void pinwb_unpin_pages(struct page **pages, unsigned long nr_pages);

/* Between mm/pinwb/glue.c and the Rust side. */
#define PINWB_LEAF_ENTRIES	512
#define PINWB_MAX_COUNT		0xffffffffU
#define PINWB_IN_NODE		0x100000000ULL	/* counted in NR_FILE_PINNED */
#define PINWB_IN_WB		0x200000000ULL	/* counted in WB_PINNED */
#define PINWB_EXEMPT		(PINWB_IN_NODE | PINWB_IN_WB)
#define PINWB_OWNER_SHIFT	34

struct pinwb_leaf {
	unsigned long first_pfn;
	atomic64_t *entries;
};

unsigned long pinwb_admit_ready(struct page **pages, unsigned long nr_pages,
				struct address_space *mapping,
				const struct pinwb_leaf *leaf);
unsigned long pinwb_forget_ready(struct page **pages, unsigned long nr_pages,
				 const struct pinwb_leaf *leaf);

struct pinwb_place {
	const struct inode *inode;	/* to compare: it may be gone */
	unsigned int major;
	unsigned int minor;
	unsigned long ino;
	u64 file_id;
	unsigned long index;
	unsigned long nr_pages;
};

bool pinwb_vma_allowed(struct vm_area_struct *vma, bool longterm_api);
bool pinwb_vma_is_opted_in(struct mm_struct *mm, unsigned long address,
			   bool mmap_locked);
int pinwb_fault_for_write(struct mm_struct *mm, unsigned long address,
			  bool mmap_locked);
void pinwb_redirty_folio(struct folio *folio);
void pinwb_account_exempt(struct folio *folio);
void pinwb_unpinned(struct folio *folio, bool left_node);
u64 pinwb_set_exempt(const struct folio *folio);
u64 pinwb_clear_exempt(const struct folio *folio);
u64 pinwb_exempt_bits(const struct folio *folio);

struct pinwb_pins {
	unsigned long nr_pages;
	u32 owner;
};

extern bool pinwb_write_unchanged;
u64 pinwb_hash_page(const void *data);
u32 pinwb_owner(void);
void pinwb_pins_on(unsigned int major, unsigned int minor,
		   struct pinwb_pins *found);
u64 pinwb_file_id(const struct inode *inode);
bool pinwb_folio_place(unsigned long pfn, struct pinwb_place *place);
const char *pinwb_folio_path(unsigned long pfn, const struct inode *of,
			     char *buf, int len);
void pinwb_count_refusal(void);

#ifdef CONFIG_PINWB_BENCHMARK
struct page_ext_operations;
extern struct page_ext_operations pinwb_bench_page_ext_ops;
int pinwb_bench_ledger_add(const unsigned long *pfns, unsigned long nr,
			   int pins);
unsigned long pinwb_bench_ledger_lookup(const unsigned long *pfns,
					unsigned long nr);
unsigned long pinwb_bench_ledger_bytes(void);
#endif

#else /* !CONFIG_PINWB */

static inline void mapping_set_pinned_writeback(struct address_space *mapping)
{
}

static inline void mapping_clear_pinned_writeback(struct address_space *mapping)
{
}

static inline bool mapping_pinned_writeback(const struct address_space *mapping)
{
	return false;
}

static inline bool mapping_was_pinned(const struct address_space *mapping)
{
	return false;
}

static inline bool pinwb_folio_pinned(const struct folio *folio,
				      const struct address_space *mapping)
{
	return false;
}

enum pinwb_gate {
	PINWB_FROZEN,
	PINWB_OPEN,
};

static inline enum pinwb_gate
pinwb_begin_writeback(struct address_space *mapping,
		      const struct writeback_control *wbc)
{
	return PINWB_OPEN;
}

static inline void pinwb_end_writeback(struct super_block *sb,
				       enum pinwb_gate gate)
{
}

static inline bool pinwb_keep_dirty(struct folio *folio,
				    struct address_space *mapping)
{
	return false;
}

static inline bool pinwb_mapping_has_pins(struct address_space *mapping)
{
	return false;
}

static inline bool pinwb_exclude_pins(struct address_space *mapping)
{
	return true;
}

static inline bool pinwb_folio_stays(const struct folio *folio,
				     const struct address_space *mapping)
{
	return false;
}

static inline bool pinwb_folio_exempt(const struct folio *folio,
				      const struct address_space *mapping)
{
	return false;
}

static inline bool pinwb_skip_folio(const struct folio *folio,
				    const struct address_space *mapping,
				    const struct writeback_control *wbc)
{
	return false;
}

static inline void pinwb_folio_removed(struct folio *folio,
				       const struct address_space *mapping)
{
}

static inline void pinwb_folio_cut(const struct folio *folio,
				   const struct address_space *mapping)
{
}

static inline void pinwb_writeback_failed(const struct address_space *mapping)
{
}

static inline void pinwb_account_cleaned(struct folio *folio,
					 const struct address_space *mapping,
					 struct bdi_writeback *wb)
{
}

static inline void pinwb_account_moved(struct folio *folio,
				       struct address_space *mapping)
{
}

static inline void pinwb_account_switched(struct folio *folio,
					  const struct address_space *mapping,
					  struct bdi_writeback *old_wb,
					  struct bdi_writeback *new_wb)
{
}

static inline void pinwb_touch_inode(struct inode *inode)
{
}

static inline void pinwb_touch_times(struct inode *inode)
{
}

static inline unsigned int pinwb_bio_max_bytes(const struct inode *inode,
					       struct block_device *bdev)
{
	return UINT_MAX;
}

static inline bool pinwb_bio_over(const struct bio *bio,
				  const struct address_space *mapping,
				  size_t len, unsigned int max)
{
	return false;
}

static inline bool pinwb_bio_full(const struct bio *bio,
				  const struct address_space *mapping,
				  size_t len)
{
	return false;
}

static inline unsigned int pinwb_bio_room(const struct bio *bio,
					  const struct inode *inode,
					  struct block_device *bdev)
{
	return UINT_MAX;
}

static inline int __must_check pinwb_bounce_bio(struct bio *bio,
						struct address_space *mapping)
{
	return 0;
}

static inline void pinwb_unbounce_bio(struct bio *bio)
{
}

static inline bool pinwb_folio_is_counted(const struct folio *folio)
{
	return false;
}

static inline void pinwb_unpin(struct folio *folio, unsigned long nr)
{
}

static inline bool pinwb_was_used(void)
{
	return false;
}

static inline int pinwb_remount_ro(struct super_block *sb)
{
	return 0;
}

static inline int pinwb_swapon(struct address_space *mapping)
{
	return 0;
}

static inline bool pinwb_unpin_needed(unsigned int gup_flags)
{
	return false;
}

static inline void pinwb_unpin_pages(struct page **pages, unsigned long nr_pages)
{
}

static inline bool pinwb_vma_allowed(struct vm_area_struct *vma,
				     bool longterm_api)
{
	return false;
}

static inline int pinwb_admit(struct mm_struct *mm, unsigned long start,
			      struct page **pages, unsigned long nr_pages,
			      bool mmap_locked)
{
	return 0;
}

#endif /* CONFIG_PINWB */

#endif /* _LINUX_PINWB_H */
