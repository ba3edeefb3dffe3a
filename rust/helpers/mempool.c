// SPDX-License-Identifier: GPL-2.0

#include <linux/mempool.h>
#include <linux/sched/mm.h>

__rust_helper bool rust_helper_mempool_is_saturated(struct mempool *pool)
{
	return mempool_is_saturated(pool);
}

__rust_helper unsigned int rust_helper_memalloc_noio_save(void)
{
	return memalloc_noio_save();
}

__rust_helper void rust_helper_memalloc_noio_restore(unsigned int flags)
{
	memalloc_noio_restore(flags);
}
