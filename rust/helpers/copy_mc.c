// SPDX-License-Identifier: GPL-2.0

#include <linux/mm.h>
#include <linux/uaccess.h>

#ifndef copy_mc_to_kernel
__rust_helper unsigned long
rust_helper_copy_mc_to_kernel(void *dst, const void *src, size_t cnt)
{
	return copy_mc_to_kernel(dst, src, cnt);
}
#endif

#ifndef CONFIG_MEMORY_FAILURE
__rust_helper void rust_helper_memory_failure_queue(unsigned long pfn,
						    int flags)
{
	memory_failure_queue(pfn, flags);
}
#endif
