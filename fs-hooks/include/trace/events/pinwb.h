/* SPDX-License-Identifier: GPL-2.0 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM pinwb

#if !defined(_TRACE_PINWB_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_PINWB_H

#include <linux/bio.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/tracepoint.h>

/*
 * A folio, its place in its file, and a number of pins. A folio that has left its
 * file has dev 0:0 and ino 0. The caller need not keep it from leaving: inodes
 * and superblocks are freed after a grace period.
 */
DECLARE_EVENT_CLASS(pinwb_folio,

	TP_PROTO(struct folio *folio, unsigned long pins),

	TP_ARGS(folio, pins),

	TP_STRUCT__entry(
		__field(u64, ino)
		__field(unsigned long, index)
		__field(unsigned long, pfn)
		__field(unsigned long, pages)
		__field(unsigned long, pins)
		__field(dev_t, dev)
	),

	TP_fast_assign(
		struct address_space *mapping = READ_ONCE(folio->mapping);
		struct inode *inode = mapping ? mapping->host : NULL;

		__entry->dev = inode ? inode->i_sb->s_dev : 0;
		__entry->ino = inode ? inode->i_ino : 0;
		__entry->index = folio->index;
		__entry->pfn = folio_pfn(folio);
		__entry->pages = folio_nr_pages(folio);
		__entry->pins = pins;
	),

	TP_printk("dev %d:%d ino %llu index %lu pages %lu pfn 0x%lx pins %lu",
		  MAJOR(__entry->dev), MINOR(__entry->dev), __entry->ino,
		  __entry->index, __entry->pages, __entry->pfn, __entry->pins)
);

/* So many writable long-term pins were counted. */
DEFINE_EVENT(pinwb_folio, pinwb_pin,
	TP_PROTO(struct folio *folio, unsigned long pins),
	TP_ARGS(folio, pins)
);

/* So many were given back. */
DEFINE_EVENT(pinwb_folio, pinwb_unpin,
	TP_PROTO(struct folio *folio, unsigned long pins),
	TP_ARGS(folio, pins)
);

/* A pin waits until the folio is not under I/O any more. */
DEFINE_EVENT(pinwb_folio, pinwb_admit_wait,
	TP_PROTO(struct folio *folio, unsigned long pins),
	TP_ARGS(folio, pins)
);

/* A folio with so many pins is written, and stays dirty. */
DEFINE_EVENT(pinwb_folio, pinwb_keep_dirty,
	TP_PROTO(struct folio *folio, unsigned long pins),
	TP_ARGS(folio, pins)
);

/* A folio with so many pins leaves its file: what devices write is lost. */
DEFINE_EVENT(pinwb_folio, pinwb_orphan,
	TP_PROTO(struct folio *folio, unsigned long pins),
	TP_ARGS(folio, pins)
);

/* So many bytes of a bio are copies. */
TRACE_EVENT(pinwb_bounce,

	TP_PROTO(struct inode *inode, struct bio *bio, unsigned int copied),

	TP_ARGS(inode, bio, copied),

	TP_STRUCT__entry(
		__field(u64, ino)
		__field(u64, sector)
		__field(unsigned int, bytes)
		__field(unsigned int, copied)
		__field(dev_t, dev)
	),

	TP_fast_assign(
		__entry->dev = inode->i_sb->s_dev;
		__entry->ino = inode->i_ino;
		__entry->sector = bio->bi_iter.bi_sector;
		__entry->bytes = bio->bi_iter.bi_size;
		__entry->copied = copied;
	),

	TP_printk("dev %d:%d ino %llu sector %llu bytes %u copied %u",
		  MAJOR(__entry->dev), MINOR(__entry->dev), __entry->ino,
		  __entry->sector, __entry->bytes, __entry->copied)
);

/* A writable long-term pin of a file was refused. */
TRACE_EVENT(pinwb_refuse,

	TP_PROTO(struct inode *inode, const char *reason),

	TP_ARGS(inode, reason),

	TP_STRUCT__entry(
		__field(u64, ino)
		__field(dev_t, dev)
		__string(reason, reason)
	),

	TP_fast_assign(
		__entry->dev = inode->i_sb->s_dev;
		__entry->ino = inode->i_ino;
		__assign_str(reason);
	),

	TP_printk("dev %d:%d ino %llu: %s",
		  MAJOR(__entry->dev), MINOR(__entry->dev), __entry->ino,
		  __get_str(reason))
);

#endif /* _TRACE_PINWB_H */

/* This part must be outside protection */
#include <trace/define_trace.h>
