// SPDX-License-Identifier: GPL-2.0
/*
 * What the ledger costs beside other ways to find out whether a page is pinned:
 *
 * - an xarray by PFN, with the count as the value of an entry,
 * - a client of page_ext with 8 bytes for each page of the machine,
 * - folio_maybe_dma_pinned(), which guesses from the reference count: it can't
 *   tell long-term pins from others, and takes many references for pins.
 *
 * Each has its own loop over PFNs, into which what it does for a page can be
 * inlined. The pages are ours, and half of them get a pin; dense ones lie in a
 * row, scattered ones are looked at in random order. Threads, one on each CPU,
 * share the store and have pages of their own.
 *
 * A line for each case and step, for the harness: nanoseconds that all pages of
 * a thread took, for each round, of the thread that took longest.
 */
#define pr_fmt(fmt) "pinwb: " fmt

#include <kunit/test.h>
#include <linux/bits.h>
#include <linux/completion.h>
#include <linux/cpumask.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/page_ext.h>
#include <linux/pinwb.h>
#include <linux/prandom.h>
#include <linux/slab.h>
#include <linux/timekeeping.h>
#include <linux/xarray.h>

#define BENCH_BLOCK_ORDER	10
#define BENCH_BLOCK_PAGES	BIT(BENCH_BLOCK_ORDER)
#define BENCH_BLOCKS		32
#define BENCH_PAGES		(8 * BENCH_BLOCK_PAGES)
#define BENCH_THREADS		2
#define BENCH_ROUNDS		41

/* A way to know which pages are pinned. */
struct bench_store {
	const char *name;
	int (*add)(const unsigned long *pfns, unsigned long nr, int pins);
	unsigned long (*lookup)(const unsigned long *pfns, unsigned long nr);
	unsigned long (*bytes)(void);	/* of memory, that pins or the machine cost */
	unsigned long (*bound)(const unsigned long *pfns, unsigned long nr);
	const bool *there;
};

/*
 * What the ledger may cost for these pages: 8 bytes each, and a leaf for each
 * region of 2 MiB that they touch.
 */
static unsigned long bench_ledger_bound(const unsigned long *pfns, unsigned long nr)
{
	unsigned long regions = 0;

	for (unsigned long i = 0; i < nr; i++) {
		bool seen = false;

		for (unsigned long j = 0; j < i && !seen; j++)
			seen = pfns[j] / PINWB_LEAF_ENTRIES == pfns[i] / PINWB_LEAF_ENTRIES;
		regions += !seen;
	}
	return nr * sizeof(u64) + regions * PINWB_LEAF_ENTRIES * sizeof(u64);
}

static DEFINE_XARRAY(bench_xa);

static int bench_xa_add_one(unsigned long pfn, int pins)
{
	XA_STATE(xas, &bench_xa, pfn);

	do {
		void *entry;
		long count;

		xas_lock(&xas);
		entry = xas_load(&xas);
		count = pins + (entry ? xa_to_value(entry) : 0);
		xas_store(&xas, count ? xa_mk_value(count) : NULL);
		xas_unlock(&xas);
	} while (xas_nomem(&xas, GFP_KERNEL));

	return xas_error(&xas);
}

static int bench_xa_add(const unsigned long *pfns, unsigned long nr, int pins)
{
	int ret = 0;

	for (unsigned long i = 0; i < nr && !ret; i++)
		ret = bench_xa_add_one(pfns[i], pins);
	return ret;
}

static unsigned long bench_xa_lookup(const unsigned long *pfns, unsigned long nr)
{
	unsigned long pinned = 0;

	for (unsigned long i = 0; i < nr; i++)
		pinned += !!xa_load(&bench_xa, pfns[i]);
	return pinned;
}

static bool bench_ext_wanted __ro_after_init;

static int __init bench_ext_setup(char *str)
{
	return kstrtobool(str, &bench_ext_wanted);
}
early_param("pinwb_bench_page_ext", bench_ext_setup);

static bool __init bench_ext_needed(void)
{
	return bench_ext_wanted;
}

struct page_ext_operations pinwb_bench_page_ext_ops = {
	.size = sizeof(atomic64_t),
	.need = bench_ext_needed,
};

static int bench_ext_add(const unsigned long *pfns, unsigned long nr, int pins)
{
	for (unsigned long i = 0; i < nr; i++) {
		struct page_ext *ext = page_ext_get(pfn_to_page(pfns[i]));
		atomic64_t *count;

		if (!ext)
			return -ENOENT;
		count = page_ext_data(ext, &pinwb_bench_page_ext_ops);
		atomic64_add(pins, count);
		page_ext_put(ext);
	}
	return 0;
}

static unsigned long bench_ext_lookup(const unsigned long *pfns, unsigned long nr)
{
	unsigned long pinned = 0;

	for (unsigned long i = 0; i < nr; i++) {
		struct page_ext *ext = page_ext_get(pfn_to_page(pfns[i]));
		atomic64_t *count;

		if (!ext)
			continue;
		count = page_ext_data(ext, &pinwb_bench_page_ext_ops);
		pinned += atomic64_read(count) > 0;
		page_ext_put(ext);
	}
	return pinned;
}

static unsigned long bench_ext_bytes(void)
{
	return get_num_physpages() * pinwb_bench_page_ext_ops.size;
}

static int bench_ref_add(const unsigned long *pfns, unsigned long nr, int pins)
{
	for (unsigned long i = 0; i < nr; i++)
		folio_ref_add(pfn_folio(pfns[i]), pins * (int)GUP_PIN_COUNTING_BIAS);
	return 0;
}

static unsigned long bench_ref_lookup(const unsigned long *pfns, unsigned long nr)
{
	unsigned long pinned = 0;

	for (unsigned long i = 0; i < nr; i++)
		pinned += folio_maybe_dma_pinned(pfn_folio(pfns[i]));
	return pinned;
}

static const struct bench_store bench_stores[] = {
	{
		.name = "ledger",
		.add = pinwb_bench_ledger_add,
		.lookup = pinwb_bench_ledger_lookup,
		.bytes = pinwb_bench_ledger_bytes,
		.bound = bench_ledger_bound,
	},
	{
		.name = "xarray",
		.add = bench_xa_add,
		.lookup = bench_xa_lookup,
	},
	{
		.name = "page_ext",
		.add = bench_ext_add,
		.lookup = bench_ext_lookup,
		.bytes = bench_ext_bytes,
		.there = &bench_ext_wanted,
	},
	{
		.name = "refcount",
		.add = bench_ref_add,
		.lookup = bench_ref_lookup,
	},
};

enum bench_step { BENCH_PIN, BENCH_LOOKUP, BENCH_UNPIN, BENCH_STEPS };

static const char * const bench_step_names[] = { "pin", "lookup", "unpin" };

/* The pages of one thread, and what it found. */
struct bench_thread {
	const struct bench_store *store;
	struct task_struct *task;
	struct completion done;
	atomic_t *arrived;
	int threads;
	unsigned long *pfns;		/* all */
	unsigned long *pinned;		/* every other one */
	unsigned long nr;
	u64 took[BENCH_STEPS][BENCH_ROUNDS];
	unsigned long wrong;
	int error;
};

/* Waits until all threads have come here, for the nth time. */
static void bench_meet(struct bench_thread *me, int nth)
{
	atomic_inc(me->arrived);
	while (atomic_read(me->arrived) < nth * me->threads)
		cond_resched();
}

static u64 bench_take_step(struct bench_thread *me, enum bench_step step)
{
	u64 start = ktime_get_ns();
	unsigned long found;
	int error = 0;

	switch (step) {
	case BENCH_PIN:
		error = me->store->add(me->pinned, me->nr / 2, 1);
		break;
	case BENCH_UNPIN:
		error = me->store->add(me->pinned, me->nr / 2, -1);
		break;
	default:
		found = me->store->lookup(me->pfns, me->nr);
		me->wrong += found != me->nr / 2;
		break;
	}
	me->error = me->error ?: error;
	return ktime_get_ns() - start;
}

static int bench_thread(void *data)
{
	struct bench_thread *me = data;
	int met = 0;

	for (int round = 0; round < BENCH_ROUNDS; round++) {
		for (int step = 0; step < BENCH_STEPS; step++) {
			bench_meet(me, ++met);
			me->took[step][round] = bench_take_step(me, step);
		}
	}
	me->wrong += me->store->lookup(me->pfns, me->nr) != 0;
	complete(&me->done);
	return 0;
}

/* The pages, in the order in which they are looked at. */
struct bench_pages {
	struct page *blocks[BENCH_BLOCKS];
	unsigned long *dense;
	unsigned long *scattered;
	unsigned long *pinned;
};

static void bench_pages_free(struct bench_pages *pages)
{
	for (int i = 0; i < BENCH_BLOCKS && pages->blocks[i]; i++)
		for (unsigned long nr = 0; nr < BENCH_BLOCK_PAGES; nr++)
			__free_page(pages->blocks[i] + nr);
	kvfree(pages->dense);
	kvfree(pages->scattered);
	kvfree(pages->pinned);
	kfree(pages);
}

static void bench_shuffle(unsigned long *pfns, unsigned long nr)
{
	struct rnd_state state;

	/* The same order each time. */
	prandom_seed_state(&state, 1);
	for (unsigned long i = nr - 1; i > 0; i--) {
		unsigned long other = prandom_u32_state(&state) % (i + 1);

		swap(pfns[i], pfns[other]);
	}
}

static struct bench_pages *bench_pages_new(void)
{
	struct bench_pages *pages = kzalloc_obj(*pages);
	const unsigned long stride = BENCH_BLOCKS * BENCH_BLOCK_PAGES / BENCH_PAGES;

	if (!pages)
		return NULL;
	pages->dense = kvmalloc_array(BENCH_PAGES, sizeof(long), GFP_KERNEL);
	pages->scattered = kvmalloc_array(BENCH_PAGES, sizeof(long), GFP_KERNEL);
	pages->pinned = kvmalloc_array(BENCH_PAGES / 2, sizeof(long), GFP_KERNEL);
	if (!pages->dense || !pages->scattered || !pages->pinned)
		goto fail;

	for (int i = 0; i < BENCH_BLOCKS; i++) {
		pages->blocks[i] = alloc_pages(GFP_KERNEL, BENCH_BLOCK_ORDER);
		if (!pages->blocks[i])
			goto fail;
		split_page(pages->blocks[i], BENCH_BLOCK_ORDER);
	}
	for (unsigned long i = 0; i < BENCH_PAGES; i++) {
		unsigned long far = i * stride;

		pages->dense[i] = page_to_pfn(pages->blocks[i / BENCH_BLOCK_PAGES]) +
				  i % BENCH_BLOCK_PAGES;
		pages->scattered[i] = page_to_pfn(pages->blocks[far / BENCH_BLOCK_PAGES]) +
				      far % BENCH_BLOCK_PAGES;
	}
	bench_shuffle(pages->scattered, BENCH_PAGES);
	return pages;
fail:
	bench_pages_free(pages);
	return NULL;
}

static void bench_report(struct kunit *test, const struct bench_store *store,
			 const char *order, const struct bench_thread *threads,
			 int nr_threads)
{
	char *line = kunit_kzalloc(test, 1024, GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, line);
	for (int step = 0; step < BENCH_STEPS; step++) {
		int len = 0;

		for (int round = 0; round < BENCH_ROUNDS; round++) {
			u64 took = 0;

			for (int i = 0; i < nr_threads; i++)
				took = max(took, threads[i].took[step][round]);
			len += scnprintf(line + len, 1024 - len, " %llu", took);
		}
		kunit_info(test, "bench\t%s-%s-%d\t%s\t%s\n", store->name, order,
			   nr_threads, bench_step_names[step], line + 1);
	}
	/* What was allocated for one thread is still there for two. */
	if (store->bytes && nr_threads == 1)
		kunit_info(test, "bench\t%s-%s\tbytes\t%lu\n", store->name, order,
			   store->bytes());
	if (store->bound && nr_threads == 1)
		kunit_info(test, "bench\tbound-%s\tbytes\t%lu\n", order,
			   store->bound(threads[0].pinned, threads[0].nr / 2));
}

static void bench_run(struct kunit *test, const struct bench_store *store,
		      struct bench_pages *pages, const char *order,
		      unsigned long *pfns, int nr_threads)
{
	const unsigned long each = BENCH_PAGES / BENCH_THREADS;
	struct bench_thread *threads;
	atomic_t arrived = ATOMIC_INIT(0);

	threads = kunit_kcalloc(test, nr_threads, sizeof(*threads), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, threads);
	for (unsigned long i = 0; i < BENCH_PAGES / 2; i++)
		pages->pinned[i] = pfns[2 * i];

	for (int i = 0; i < nr_threads; i++) {
		threads[i] = (struct bench_thread) {
			.store = store,
			.arrived = &arrived,
			.threads = nr_threads,
			.pfns = pfns + i * each,
			.pinned = pages->pinned + i * each / 2,
			.nr = each,
		};
		init_completion(&threads[i].done);
		threads[i].task = kthread_create(bench_thread, &threads[i], "pinwb_bench");
		if (IS_ERR(threads[i].task)) {
			/* They have not begun yet. */
			while (i--)
				kthread_stop(threads[i].task);
			KUNIT_FAIL(test, "no memory for threads");
			return;
		}
		kthread_bind(threads[i].task, i);
	}
	for (int i = 0; i < nr_threads; i++)
		wake_up_process(threads[i].task);
	for (int i = 0; i < nr_threads; i++) {
		wait_for_completion(&threads[i].done);
		KUNIT_EXPECT_EQ(test, threads[i].error, 0);
		KUNIT_EXPECT_EQ(test, threads[i].wrong, 0);
	}
	bench_report(test, store, order, threads, nr_threads);
}

static void bench_stores_with_threads(struct kunit *test)
{
	const struct bench_store *store = test->param_value;
	const int most = min_t(int, BENCH_THREADS, num_online_cpus());
	struct bench_pages *pages;

	if (store->there && !*store->there)
		kunit_skip(test, "boot with pinwb_bench_page_ext=1");

	pages = bench_pages_new();
	KUNIT_ASSERT_NOT_NULL(test, pages);
	for (int nr = 1; nr <= most; nr++) {
		bench_run(test, store, pages, "dense", pages->dense, nr);
		bench_run(test, store, pages, "scattered", pages->scattered, nr);
	}
	bench_pages_free(pages);
}

KUNIT_ARRAY_PARAM_DESC(bench_store, bench_stores, name);

static void bench_end(struct kunit_suite *suite)
{
	pr_info("bench\tend\n");
}

static struct kunit_case bench_cases[] = {
	KUNIT_CASE_PARAM(bench_stores_with_threads, bench_store_gen_params),
	{}
};

static struct kunit_suite bench_suite = {
	.name = "pinwb_bench",
	.test_cases = bench_cases,
	.suite_exit = bench_end,
};

kunit_test_suite(bench_suite);
