// SPDX-License-Identifier: GPL-2.0
/*
 * The parts of pinned writeback that have to be C: the boot parameter, messages
 * with file names, and steps made of static inlines and locks that have no Rust
 * abstraction.
 */
#define pr_fmt(fmt) "pinwb: " fmt

#include <linux/backing-dev.h>
#include <linux/export.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/init.h>
#include <linux/iversion.h>
#include <linux/mm.h>
#include <linux/pinwb.h>
#include <linux/printk.h>
#include <linux/ratelimit.h>
#include <linux/rmap.h>
#include <linux/writeback.h>

bool pinwb_used __read_mostly;
EXPORT_SYMBOL_GPL(pinwb_used);

bool pinwb_on __ro_after_init = true;
EXPORT_SYMBOL_GPL(pinwb_on);

static int __init pinwb_setup(char *str)
{
	return kstrtobool(str, &pinwb_on);
}
early_param("pinwb", pinwb_setup);

static void pinwb_refuse(struct vm_area_struct *vma, const char *reason)
{
	static DEFINE_RATELIMIT_STATE(limit, DEFAULT_RATELIMIT_INTERVAL,
				      DEFAULT_RATELIMIT_BURST);

	pinwb_count_refusal();
	if (!__ratelimit(&limit))
		return;

	pr_warn("refused a writable long-term pin of %pD on %s by %s[%d]: %s\n",
		vma->vm_file, file_inode(vma->vm_file)->i_sb->s_type->name,
		current->comm, task_pid_nr(current), reason);
}

/**
 * pinwb_vma_allowed - may this file mapping be pinned for write?
 * @vma: a shared writable mapping that needs dirty tracking
 * @longterm_api: the caller is pin_longterm_pages*()
 *
 * Context: mmap_lock held.
 *
 * Return: true, or false after a message that says why not.
 */
bool pinwb_vma_allowed(struct vm_area_struct *vma, bool longterm_api)
{
	if (!pinwb_enabled() || !vma->vm_file)
		return false;

	if (!mapping_pinned_writeback(vma->vm_file->f_mapping)) {
		pinwb_refuse(vma, "not supported for this filesystem or kind of file");
		return false;
	}
	if (!longterm_api) {
		pinwb_refuse(vma, "the driver does not use pin_longterm_pages()");
		return false;
	}
	return true;
}

/**
 * pinwb_vma_is_opted_in - is the mapping at an address a file that takes pins?
 * @mm: the address space
 * @address: user address
 * @mmap_locked: whether the caller holds the mmap_lock
 *
 * Return: whether it is.
 */
bool pinwb_vma_is_opted_in(struct mm_struct *mm, unsigned long address,
			   bool mmap_locked)
{
	struct vm_area_struct *vma;
	bool ret;

	if (!mmap_locked)
		mmap_read_lock(mm);
	vma = vma_lookup(mm, untagged_addr_remote(mm, address));
	ret = vma && vma->vm_file &&
	      mapping_pinned_writeback(vma->vm_file->f_mapping);
	if (!mmap_locked)
		mmap_read_unlock(mm);
	return ret;
}

/**
 * pinwb_fault_for_write - have the filesystem announced a write at an address
 * @mm: the address space
 * @address: user address
 * @mmap_locked: whether the caller holds the mmap_lock
 *
 * Context: process context, no folio lock.
 *
 * Return: 0, or -EFAULT etc. as fixup_user_fault(); -EINTR on a fatal signal.
 */
int pinwb_fault_for_write(struct mm_struct *mm, unsigned long address,
			  bool mmap_locked)
{
	bool unlocked;
	int ret;

	if (mmap_locked)
		return fixup_user_fault(mm, address, FAULT_FLAG_WRITE, NULL);

	ret = mmap_read_lock_killable(mm);
	if (ret)
		return ret;
	ret = fixup_user_fault(mm, address, FAULT_FLAG_WRITE, &unlocked);
	mmap_read_unlock(mm);
	return ret;
}

/*
 * Long-term pins come by the hundred, and most of their pages need nothing but
 * to be counted. Calls from Rust to C are not inlined: one for each step with
 * each page would cost more than get_user_pages() does. So the loops over pages
 * in the usual state stand here: small folios, entries in one leaf of the
 * ledger. What they stop at is for Rust.
 */

/*
 * Leaves the upper half of the counts to Rust, which knows what to say when there
 * is no more room. Nobody has 2^31 CPUs to get from there to an overflow with.
 */
static bool pinwb_count_one(atomic64_t *entry)
{
	s64 old = atomic64_fetch_inc_relaxed(entry);

	if (unlikely((u32)old > PINWB_MAX_COUNT / 2)) {
		atomic64_dec(entry);
		return false;
	}
	return true;
}

/*
 * An entry counts no pins if its page is of a kind that is not counted, or if
 * nobody pinned it. The latter is for Rust, which complains.
 */
static bool pinwb_forget_one(atomic64_t *entry)
{
	if (!(u32)atomic64_read(entry))
		return false;
	if (unlikely(!(u32)atomic64_fetch_dec_release(entry))) {
		atomic64_inc(entry);
		return false;
	}
	return true;
}

/*
 * Does a locked folio need nothing but to be counted? The mapping took pins a
 * moment ago, but it may have been opted out since, or be another one at the
 * same address. With blocks smaller than the page, dirty may mean dirty in part.
 */
static bool pinwb_folio_ready(const struct folio *folio,
			      const struct address_space *mapping)
{
	const unsigned long look = BIT(PG_dirty) | BIT(PG_writeback);
	const unsigned long flags = BIT(AS_PINNED_WRITEBACK) | BIT(AS_WAS_PINNED);

	return folio->mapping == mapping &&
	       (READ_ONCE(folio->flags.f) & look) == BIT(PG_dirty) &&
	       (READ_ONCE(mapping->flags) & flags) == flags &&
	       mapping->host->i_blkbits >= PAGE_SHIFT;
}

/**
 * pinwb_admit_ready - count pins of folios that are ready for a device
 * @pages: pages that are pinned
 * @nr_pages: how many
 * @mapping: where the folio before them was found
 * @leaf: the leaf with the entry of that folio
 *
 * Context: process context, no folio locks; does not sleep.
 *
 * Return: how many pages, from the first on, were counted.
 */
unsigned long pinwb_admit_ready(struct page **pages, unsigned long nr_pages,
				struct address_space *mapping,
				const struct pinwb_leaf *leaf)
{
	unsigned long first_pfn = leaf->first_pfn;
	atomic64_t *entries = leaf->entries;
	unsigned long i;

	for (i = 0; i < nr_pages; i++) {
		struct folio *folio = (struct folio *)pages[i];
		unsigned long nth = page_to_pfn(pages[i]) - first_pfn;
		bool done;

		if (PageCompound(pages[i]) || nth >= PINWB_LEAF_ENTRIES ||
		    !folio_trylock(folio))
			break;
		done = pinwb_folio_ready(folio, mapping) &&
		       pinwb_count_one(&entries[nth]);
		folio_unlock(folio);
		if (!done)
			break;
	}
	return i;
}

/**
 * pinwb_forget_ready - take pins off the ledger
 * @pages: pages that are pinned, or null pointers
 * @nr_pages: how many
 * @leaf: a leaf of the ledger
 *
 * Context: any.
 *
 * Return: how many pages, from the first on, were taken off.
 */
unsigned long pinwb_forget_ready(struct page **pages, unsigned long nr_pages,
				 const struct pinwb_leaf *leaf)
{
	unsigned long first_pfn = leaf->first_pfn;
	atomic64_t *entries = leaf->entries;
	unsigned long i;

	for (i = 0; i < nr_pages && pages[i]; i++) {
		unsigned long nth = page_to_pfn(pages[i]) - first_pfn;

		if (PageCompound(pages[i]) || nth >= PINWB_LEAF_ENTRIES ||
		    !pinwb_forget_one(&entries[nth]))
			break;
	}
	return i;
}

/**
 * pinwb_redirty_folio - make a folio dirty again that is being written
 * @folio: in its mapping, and kept there by the folio lock or by writeback
 *
 * Neither ->dirty_folio(), which may do more than set the bit, nor
 * folio_redirty_for_writepage(), which would report the folio as skipped. Like
 * the latter it takes the folio off the counts of newly dirtied pages: nobody
 * dirtied it now, and neither the writer's rate limit nor the bandwidth
 * estimate may see it.
 */
void pinwb_redirty_folio(struct folio *folio)
{
	struct address_space *mapping = folio->mapping;
	struct wb_lock_cookie cookie = {};
	long nr = folio_nr_pages(folio);
	struct bdi_writeback *wb;

	if (!filemap_dirty_folio(mapping, folio))
		return;

	wb = unlocked_inode_to_wb_begin(mapping->host, &cookie);
	current->nr_dirtied -= nr;
	node_stat_mod_folio(folio, NR_DIRTIED, -nr);
	wb_stat_mod(wb, WB_DIRTIED, -nr);
	unlocked_inode_to_wb_end(mapping->host, &cookie);
}

void __pinwb_touch_inode(struct inode *inode)
{
	if (IS_NOCMTIME(inode) || pinwb_knockout_touch())
		return;
	if (inode->i_op->update_time)
		inode->i_op->update_time(inode, FS_UPD_CMTIME, 0);
	else
		generic_update_time(inode, FS_UPD_CMTIME, 0);
}
EXPORT_SYMBOL_GPL(__pinwb_touch_inode);

void __pinwb_touch_times(struct inode *inode)
{
	if (IS_NOCMTIME(inode) || pinwb_knockout_touch())
		return;
	inode_set_mtime_to_ts(inode, inode_set_ctime_current(inode));
	if (IS_I_VERSION(inode))
		inode_maybe_inc_iversion(inode, false);
}
EXPORT_SYMBOL_GPL(__pinwb_touch_times);

/**
 * pinwb_folio_place - where in which file is a folio?
 * @pfn: its head page, which was pinned at some time
 * @place: filled in; only nr_pages if the folio is in no file
 *
 * The pin may be gone and the page be something else by now: then the answer is
 * about that, which is the best that a snapshot can say.
 *
 * Return: whether the folio is in a file.
 */
bool pinwb_folio_place(unsigned long pfn, struct pinwb_place *place)
{
	struct page *page = pfn_to_online_page(pfn);
	struct address_space *mapping;
	struct folio *folio;
	bool ret = false;

	place->nr_pages = 0;
	if (!page)
		return false;
	folio = page_folio(page);
	if (!folio_try_get(folio))
		return false;

	if (page_folio(page) == folio) {
		place->nr_pages = folio_nr_pages(folio);
		place->index = folio->index;

		/* Inodes and superblocks are freed after a grace period. */
		rcu_read_lock();
		mapping = folio_test_anon(folio) ? NULL : folio_mapping(folio);
		if (mapping && mapping->host) {
			place->major = MAJOR(mapping->host->i_sb->s_dev);
			place->minor = MINOR(mapping->host->i_sb->s_dev);
			place->ino = mapping->host->i_ino;
			ret = true;
		}
		rcu_read_unlock();
	}
	folio_put(folio);
	return ret;
}

#ifdef CONFIG_PINWB_DEBUG
/*
 * More references than the page cache and page tables have: "it must be pinned".
 * Writeback's own, those of the filesystem, of a reader, of migration say no less.
 */
bool pinwb_guess_pinned(const struct folio *folio)
{
	return folio_ref_count(folio) >
	       folio_mapcount(folio) + folio_nr_pages(folio);
}
#endif

/* What filesystems call, through linux/pinwb.h, and is defined in Rust. */
#define EXPORT_RUST_SYMBOL_GPL(symbol) EXPORT_SYMBOL_GPL(symbol)

EXPORT_RUST_SYMBOL_GPL(__pinwb_folio_pinned);
EXPORT_RUST_SYMBOL_GPL(__pinwb_keep_dirty);
EXPORT_RUST_SYMBOL_GPL(__pinwb_mapping_has_pins);
EXPORT_RUST_SYMBOL_GPL(__pinwb_bounce_bio);
EXPORT_RUST_SYMBOL_GPL(__pinwb_unbounce_bio);
#ifdef CONFIG_PINWB_DEBUG
EXPORT_RUST_SYMBOL_GPL(pinwb_knockout_cow);
EXPORT_RUST_SYMBOL_GPL(pinwb_knockout_exclusion);
EXPORT_RUST_SYMBOL_GPL(pinwb_knockout_hole_alloc);
EXPORT_RUST_SYMBOL_GPL(pinwb_knockout_keep_unmapped);
EXPORT_RUST_SYMBOL_GPL(pinwb_knockout_sticky);
EXPORT_RUST_SYMBOL_GPL(pinwb_knockout_unwritten);
#endif
