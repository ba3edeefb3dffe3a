// SPDX-License-Identifier: GPL-2.0

#include <linux/backing-dev.h>
#include <linux/folio_batch.h>
#include <linux/pinwb.h>

__rust_helper bool
rust_helper_mapping_can_writeback(struct address_space *mapping)
{
	return mapping_can_writeback(mapping);
}

__rust_helper void
rust_helper_folio_batch_release(struct folio_batch *fbatch)
{
	folio_batch_release(fbatch);
}

#ifdef CONFIG_PINWB
__rust_helper bool
rust_helper_mapping_pinned_writeback(const struct address_space *mapping)
{
	return mapping_pinned_writeback(mapping);
}

__rust_helper void
rust_helper_mapping_set_was_pinned(struct address_space *mapping)
{
	mapping_set_was_pinned(mapping);
}

__rust_helper bool
rust_helper_pinwb_folio_is_counted(const struct folio *folio)
{
	return pinwb_folio_is_counted(folio);
}
#endif
