// SPDX-License-Identifier: GPL-2.0
/*
 * The parts of pinned writeback that have to be C: the boot parameter, messages
 * with file names, and steps made of static inlines and locks that have no Rust
 * abstraction.
 */
#define pr_fmt(fmt) "pinwb: " fmt

#include <linux/backing-dev.h>
#include <linux/blkdev.h>
#include <linux/dcache.h>
#include <linux/err.h>
#include <linux/export.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/hash.h>
#include <linux/init.h>
#include <linux/iversion.h>
#include <linux/mm.h>
#include <linux/pinwb.h>
#include <linux/printk.h>
#include <linux/ratelimit.h>
#include <linux/rmap.h>
#include <linux/sched/signal.h>
#include <linux/once.h>
#include <linux/sched/task.h>
#include <linux/siphash.h>
#include <linux/swap.h>
#include <linux/sysctl.h>
#include <linux/unaligned.h>
#include <linux/writeback.h>

#define CREATE_TRACE_POINTS
#define CREATE_RUST_TRACE_POINTS
#include <trace/events/pinwb.h>

bool pinwb_used __read_mostly;
EXPORT_SYMBOL_GPL(pinwb_used);

bool pinwb_on __ro_after_init = true;
EXPORT_SYMBOL_GPL(pinwb_on);

static int __init pinwb_setup(char *str)
{
	return kstrtobool(str, &pinwb_on);
}
early_param("pinwb", pinwb_setup);

bool pinwb_write_unchanged __read_mostly;

static const struct ctl_table pinwb_sysctls[] = {
	{
		.procname	= "pinned_write_unchanged",
		.data		= &pinwb_write_unchanged,
		.maxlen		= sizeof(bool),
		.mode		= 0644,
		.proc_handler	= proc_dobool,
	},
};

static int __init pinwb_sysctl_init(void)
{
	register_sysctl_init("vm", pinwb_sysctls);
	return 0;
}
late_initcall(pinwb_sysctl_init);

/**
 * pinwb_hash_page - hash the content of a page
 * @data: PAGE_SIZE bytes
 *
 * Context: process context.
 *
 * Return: the hash, by a key that nobody knows.
 */
u64 pinwb_hash_page(const void *data)
{
	static siphash_key_t key __read_mostly;

	get_random_once(&key, sizeof(key));
	return siphash(data, PAGE_SIZE, &key);
}

static void pinwb_refuse(struct vm_area_struct *vma, const char *reason)
{
	static DEFINE_RATELIMIT_STATE(limit, DEFAULT_RATELIMIT_INTERVAL,
				      DEFAULT_RATELIMIT_BURST);

	pinwb_count_refusal();
	trace_pinwb_refuse(file_inode(vma->vm_file), reason);
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

/* A page's entry, if it is in this leaf. */
static __always_inline atomic64_t *pinwb_leaf_entry(const struct pinwb_leaf *leaf,
						    const struct page *page)
{
	unsigned long nth = page_to_pfn(page) - leaf->first_pfn;

	return nth < PINWB_LEAF_ENTRIES ? &leaf->entries[nth] : NULL;
}

/**
 * pinwb_owner - who takes a pin
 *
 * Return: the process, as messages name it.
 */
u32 pinwb_owner(void)
{
	return task_tgid_nr(current);
}

/*
 * Leaves the upper half of the counts to Rust, which knows what to say when there
 * is no more room. Says in *set which of the bits for exempt folios are new.
 */
static __always_inline bool pinwb_count_one(atomic64_t *entry, u64 exempt,
					    u64 owner, u64 *set)
{
	s64 old = atomic64_read(entry);
	s64 new;

	do {
		if (likely(!(u32)old))
			new = old | exempt | owner | 1;
		else if (likely((u32)old <= PINWB_MAX_COUNT / 2))
			new = (old + 1) | exempt;
		else
			return false;
	} while (!atomic64_try_cmpxchg_relaxed(entry, &old, new));

	*set = exempt & ~old;
	return true;
}

/*
 * An entry counts no pins if its page is of a kind that is not counted, or if
 * nobody pinned it. The latter is for Rust, which complains. Says in *last whether
 * this was the last pin, and in *cleared whether the folio is to be taken off
 * NR_FILE_PINNED for that.
 */
static __always_inline bool pinwb_forget_one(atomic64_t *entry, bool *last,
					     u64 *cleared)
{
	s64 old = atomic64_read(entry);
	s64 new;

	do {
		if (likely((u32)old == 1))
			new = old & PINWB_IN_WB;
		else if (likely((u32)old))
			new = old - 1;
		else
			return false;
	} while (!atomic64_try_cmpxchg_release(entry, &old, new));

	*last = (u32)old == 1;
	*cleared = *last ? old & PINWB_IN_NODE : 0;
	return true;
}

/* Brings a folio back to the lists for reclaim, after its last pin was taken off. */
static __always_inline void pinwb_rescue(struct folio *folio)
{
	/*
	 * Either we see the flag, or who sets it sees that the pin has gone. The
	 * entry was changed by an atomic operation. Pairs with the barrier in
	 * folio_make_unevictable().
	 */
	smp_mb__after_atomic();
	if (unlikely(folio_test_unevictable(folio)))
		folio_rescue_unevictable(folio);
}

/* Folios with the same have the same memcg. */
static unsigned long pinwb_memcg_data(const struct folio *folio)
{
#ifdef CONFIG_MEMCG
	return folio->memcg_data;
#else
	return 0;
#endif
}

/*
 * Pages that are newly exempt, or no longer, to be added to the counters in one
 * go for each run of pages that count for the same node and memcg.
 */
struct pinwb_run {
	struct folio *first;
	long in_node;
};

static void pinwb_run_flush(struct pinwb_run *run)
{
	if (run->in_node)
		lruvec_stat_mod_folio(run->first, NR_FILE_PINNED, run->in_node);
	run->in_node = 0;
}

/* Called in an RCU read-side critical section, for the memcg. */
static __always_inline void pinwb_run_add(struct pinwb_run *run,
					  struct folio *folio, long nr)
{
	if (unlikely(pinwb_memcg_data(folio) != pinwb_memcg_data(run->first) ||
		     folio_nid(folio) != folio_nid(run->first))) {
		pinwb_run_flush(run);
		run->first = folio;
	}
	run->in_node += nr;
}

/*
 * Does a locked folio need nothing but to be counted? The mapping took pins a
 * moment ago, but it may have been opted out since, or be another one at the
 * same address.
 */
static bool pinwb_folio_ready(const struct folio *folio,
			      const struct address_space *mapping)
{
	const unsigned long look = BIT(PG_dirty) | BIT(PG_writeback);
	const unsigned long flags = BIT(AS_PINNED_WRITEBACK) | BIT(AS_WAS_PINNED);

	return folio->mapping == mapping &&
	       (READ_ONCE(folio->flags.f) & look) == BIT(PG_dirty) &&
	       (READ_ONCE(mapping->flags) & flags) == flags;
}

/*
 * Locks the folio of a small page if it needs nothing but to be counted. Returns
 * its entry then.
 */
static atomic64_t *pinwb_lock_ready(struct page *page,
				    const struct address_space *mapping,
				    const struct pinwb_leaf *leaf)
{
	struct folio *folio = (struct folio *)page;
	atomic64_t *entry = pinwb_leaf_entry(leaf, page);

	if (PageCompound(page) || !entry || !folio_trylock(folio))
		return NULL;
	if (pinwb_folio_ready(folio, mapping))
		return entry;
	folio_unlock(folio);
	return NULL;
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
	const u64 exempt = pinwb_knockout_exempt() ? 0 : PINWB_EXEMPT;
	const u64 owner = (u64)pinwb_owner() << PINWB_OWNER_SHIFT;
	struct wb_lock_cookie cookie = {};
	struct folio *folio, *next;
	struct bdi_writeback *wb;
	struct pinwb_run run;
	unsigned long i = 0;
	atomic64_t *entry;
	long in_wb = 0;
	u64 set;

	entry = nr_pages ? pinwb_lock_ready(pages[0], mapping, leaf) : NULL;
	if (!entry)
		return 0;
	folio = (struct folio *)pages[0];
	/* With blocks smaller than the page, dirty may mean dirty in part */
	if (mapping->host->i_blkbits < PAGE_SHIFT)
		goto out;

	/* One folio is locked all the time, and by that the inode and its wb stay */
	run = (struct pinwb_run){ .first = folio };
	rcu_read_lock();
	wb = unlocked_inode_to_wb_begin(mapping->host, &cookie);
	while (pinwb_count_one(entry, exempt, owner, &set)) {
		trace_pinwb_pin(folio, 1);
		if (likely(set & PINWB_IN_NODE))
			pinwb_run_add(&run, folio, 1);
		if (set & PINWB_IN_WB)
			in_wb++;
		if (++i == nr_pages)
			break;
		entry = pinwb_lock_ready(pages[i], mapping, leaf);
		if (!entry)
			break;
		next = (struct folio *)pages[i];
		folio_unlock(folio);
		folio = next;
	}
	pinwb_run_flush(&run);
	wb_stat_mod(wb, WB_PINNED, in_wb);
	unlocked_inode_to_wb_end(mapping->host, &cookie);
	rcu_read_unlock();
out:
	folio_unlock(folio);
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
	struct pinwb_run run = {
		.first = nr_pages ? (struct folio *)pages[0] : NULL,
	};
	unsigned long i;
	u64 cleared;
	bool last;

	rcu_read_lock();
	for (i = 0; i < nr_pages && pages[i]; i++) {
		struct folio *folio = (struct folio *)pages[i];
		atomic64_t *entry = pinwb_leaf_entry(leaf, pages[i]);

		/* A tail page's entry counts no pins */
		if (!entry || PageHead(pages[i]) ||
		    !pinwb_forget_one(entry, &last, &cleared))
			break;
		trace_pinwb_unpin(folio, 1);
		if (likely(cleared))
			pinwb_run_add(&run, folio, -1);
		if (likely(last))
			pinwb_rescue(folio);
	}
	pinwb_run_flush(&run);
	rcu_read_unlock();
	return i;
}

/**
 * pinwb_begin_writeback - may a file that was pinned be written now?
 * @mapping: its mapping
 * @wbc: the pass of writeback
 *
 * Freezing a filesystem writes everything, but pinned folios are dirty again,
 * and to write them would change what is frozen, and may need transactions. The
 * flusher gives up. So does sync(2), for which it works: both hold s_umount,
 * which the thaw needs, and which the freeze held when it set the state that we
 * look at. All others wait, as those who write do, and keep a freeze from going
 * on until they are done, unless there is nothing for them: a direct read calls
 * for writeback as well, of its range. They only try for the lock: page faults
 * take it before i_mmap_lock, which our caller may hold, and then writes, so that
 * no freeze has got this far.
 *
 * Context: process context, no folio lock, no transaction handle; may sleep.
 *
 * Return: PINWB_FROZEN if nothing may be written, and what is dirty stays so;
 * otherwise what pinwb_end_writeback() has to know.
 */
enum pinwb_gate pinwb_begin_writeback(struct address_space *mapping,
				      const struct writeback_control *wbc)
{
	struct super_block *sb = mapping->host->i_sb;

	if (pinwb_knockout_freeze())
		return PINWB_OPEN;
	if (wbc->for_sync)
		return READ_ONCE(sb->s_writers.frozen) >= SB_FREEZE_FS ?
			PINWB_FROZEN : PINWB_OPEN;

	while (!__sb_start_write_trylock(sb, SB_FREEZE_PAGEFAULT)) {
		if (wbc->sync_mode == WB_SYNC_NONE ||
		    fatal_signal_pending(current) ||
		    !filemap_range_needs_writeback(mapping, wbc->range_start,
						   wbc->range_end))
			return PINWB_FROZEN;
		schedule_timeout_uninterruptible(HZ / 50);
	}
	return PINWB_HELD;
}
EXPORT_SYMBOL_GPL(pinwb_begin_writeback);

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

	if (filemap_dirty_folio(mapping, folio)) {
		wb = unlocked_inode_to_wb_begin(mapping->host, &cookie);
		current->nr_dirtied -= nr;
		node_stat_mod_folio(folio, NR_DIRTIED, -nr);
		wb_stat_mod(wb, WB_DIRTIED, -nr);
		unlocked_inode_to_wb_end(mapping->host, &cookie);
	}
	pinwb_account_exempt(folio);
}

/* Counts a folio, or takes it off, where the bits of its entry that changed say. */
static void pinwb_account(struct folio *folio, struct bdi_writeback *wb,
			  u64 bits, long nr)
{
	if (bits & PINWB_IN_NODE)
		lruvec_stat_mod_folio(folio, NR_FILE_PINNED, nr);
	if (bits & PINWB_IN_WB)
		wb_stat_mod(wb, WB_PINNED, nr);
}

/**
 * pinwb_account_exempt - don't count a folio against the dirty limits
 * @folio: dirty and in its mapping, and kept so by the folio lock or by
 *	writeback; does nothing if there is no pin any more
 */
void pinwb_account_exempt(struct folio *folio)
{
	struct inode *inode = folio->mapping->host;
	struct wb_lock_cookie cookie = {};
	struct bdi_writeback *wb;

	/* Who switches the inode to another wb either waits, or sees the bits */
	wb = unlocked_inode_to_wb_begin(inode, &cookie);
	pinwb_account(folio, wb, pinwb_set_exempt(folio), folio_nr_pages(folio));
	unlocked_inode_to_wb_end(inode, &cookie);
}

/**
 * pinwb_unpinned - a folio is like others again
 * @folio: has just lost its last pin
 * @left_node: and the bit PINWB_IN_NODE: it counts against the dirty limits again
 *
 * Context: any.
 */
void pinwb_unpinned(struct folio *folio, bool left_node)
{
	if (left_node)
		lruvec_stat_mod_folio(folio, NR_FILE_PINNED,
				      -folio_nr_pages(folio));
	pinwb_rescue(folio);
}

void __pinwb_account_cleaned(struct folio *folio, struct bdi_writeback *wb)
{
	pinwb_account(folio, wb, pinwb_clear_exempt(folio),
		      -folio_nr_pages(folio));
}

void __pinwb_account_moved(struct folio *folio, struct address_space *mapping)
{
	__pinwb_account_cleaned(folio, inode_to_wb(mapping->host));
}

void __pinwb_account_switched(struct folio *folio, struct bdi_writeback *old_wb,
			      struct bdi_writeback *new_wb)
{
	long nr = folio_nr_pages(folio);

	if (pinwb_exempt_bits(folio) & PINWB_IN_WB) {
		wb_stat_mod(old_wb, WB_PINNED, -nr);
		wb_stat_mod(new_wb, WB_PINNED, nr);
	}
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

unsigned int pinwb_bio_max_bytes(const struct inode *inode,
				 struct block_device *bdev)
{
	const struct queue_limits *limits = bdev_limits(bdev);
	unsigned int block = i_blocksize(inode);
	unsigned int pages = min(limits->max_segments,
				 limits->max_sectors >> PAGE_SECTORS_SHIFT);

	if (pages && pages < PINWB_BIO_MAX_PAGES)
		pages = rounddown(PINWB_BIO_MAX_PAGES, pages);
	else
		pages = PINWB_BIO_MAX_PAGES;
	return max(round_down(pages << PAGE_SHIFT, block), block);
}
EXPORT_SYMBOL_GPL(pinwb_bio_max_bytes);

/* A reference to the folio with this head page, if there is still such a folio. */
static struct folio *pinwb_get_folio(unsigned long pfn)
{
	struct page *page = pfn_to_online_page(pfn);
	struct folio *folio;

	if (!page)
		return NULL;
	folio = page_folio(page);
	if (!folio_try_get(folio))
		return NULL;
	if (page_folio(page) == folio)
		return folio;
	folio_put(folio);
	return NULL;
}

/* The inode of a folio, to be used until rcu_read_unlock(): it is freed later. */
static struct inode *pinwb_folio_inode(struct folio *folio)
{
	struct address_space *mapping;

	mapping = folio_test_anon(folio) ? NULL : folio_mapping(folio);
	return mapping ? mapping->host : NULL;
}

/**
 * pinwb_file_id - what tells a file from others
 * @inode: its inode
 *
 * Also from a file that had the same number, or the memory of its inode, before:
 * those differ in i_generation, and after mkfs in the UUID. Files of btrfs
 * subvolumes, which may have all of these in common, have inodes of their own.
 * A file that leaves memory is another one when it is back.
 *
 * Return: a number of which the upper bits depend on everything.
 */
u64 pinwb_file_id(const struct inode *inode)
{
	u64 id = get_unaligned((const u64 *)inode->i_sb->s_uuid.b);

	id = hash_64(id ^ inode->i_generation, 64);
	id = hash_64(id ^ inode->i_ino, 64);
	return hash_64(id ^ (unsigned long)inode, 64);
}

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
	struct folio *folio = pinwb_get_folio(pfn);
	struct inode *inode;

	place->nr_pages = 0;
	if (!folio)
		return false;

	place->nr_pages = folio_nr_pages(folio);
	place->index = folio->index;
	rcu_read_lock();
	inode = pinwb_folio_inode(folio);
	place->inode = inode;
	if (inode) {
		place->major = MAJOR(inode->i_sb->s_dev);
		place->minor = MINOR(inode->i_sb->s_dev);
		place->ino = inode->i_ino;
		place->file_id = pinwb_file_id(inode);
	}
	rcu_read_unlock();
	folio_put(folio);
	return inode;
}

/**
 * pinwb_folio_path - a name of the file that a folio is in
 * @pfn: its head page, which was pinned at some time
 * @of: the inode that it was in
 * @buf: for the name
 * @len: bytes in @buf
 *
 * Context: process context.
 *
 * Return: its path from the root of the filesystem, in @buf; NULL if the file
 * has no name that is in memory, or the folio is elsewhere by now.
 */
const char *pinwb_folio_path(unsigned long pfn, const struct inode *of,
			     char *buf, int len)
{
	struct folio *folio = pinwb_get_folio(pfn);
	struct dentry *dentry;
	struct inode *inode;
	char *path = NULL;

	if (!folio)
		return NULL;
	/* Without references to inode and dentry, which unmounting would find */
	rcu_read_lock();
	inode = pinwb_folio_inode(folio);
	dentry = inode && inode == of ? d_find_alias_rcu(inode) : NULL;
	if (dentry)
		path = dentry_path_raw(dentry, buf, len);
	rcu_read_unlock();
	folio_put(folio);
	return IS_ERR(path) ? NULL : path;
}

int __pinwb_remount_ro(struct super_block *sb)
{
	struct task_struct *task;
	struct pinwb_pins pins;

	pinwb_pins_on(MAJOR(sb->s_dev), MINOR(sb->s_dev), &pins);
	if (!pins.nr_pages)
		return 0;

	rcu_read_lock();
	task = find_task_by_pid_ns(pins.owner, &init_pid_ns);
	pr_warn("%s on %s can't be remounted read-only: %lu pages of its files are pinned for writing by %s[%u]\n",
		sb->s_type->name, sb->s_id, pins.nr_pages,
		task ? task->comm : "a process that has gone", pins.owner);
	rcu_read_unlock();
	return -EBUSY;
}

int __pinwb_swapon(struct address_space *mapping)
{
	if (pinwb_exclude_pins(mapping))
		return 0;
	mapping_set_pinned_writeback(mapping);
	pr_warn("inode %llu on %s can't be swap space: a device has pinned pages of the file\n",
		(u64)mapping->host->i_ino, mapping->host->i_sb->s_id);
	return -EBUSY;
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

EXPORT_RUST_SYMBOL_GPL(__pinwb_folio_exempt);
EXPORT_RUST_SYMBOL_GPL(__pinwb_folio_pinned);
EXPORT_RUST_SYMBOL_GPL(__pinwb_folio_unchanged);
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
