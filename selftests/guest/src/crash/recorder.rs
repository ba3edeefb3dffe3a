// SPDX-License-Identifier: GPL-2.0

//! Keeps the books of a workload: what each file may look like at each mark of the log, and between that
//! mark and the next.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;

use super::model::{Allowed, File};
use crate::logwrites::{self, Log};

/// A file's place in the books.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id(usize);

/// What all files may look like at some time.
pub type Snapshot = Vec<Allowed>;

struct Books {
    files: Vec<File>,
    /// Right after each mark.
    at_marks: Vec<Snapshot>,
    /// From each mark to the next, whenever in between.
    between: Vec<Snapshot>,
    labels: Vec<String>,
    /// What the names of the marks begin with: the log may have marks of an earlier workload.
    prefix: String,
}

impl Books {
    fn mark(&self, number: usize) -> String {
        format!("{}{number}", self.prefix)
    }

    fn snapshot(&self) -> Snapshot {
        self.files.iter().map(File::allowed).collect()
    }
}

/// The books while the workload runs. Devices and syncs may be in threads of their own.
pub struct Recorder {
    books: Mutex<Books>,
    /// One sync with its mark after the other.
    sync: Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Recorder {
    /// Opens the books of a filesystem that is mounted and on the disk, and sets mark 0.
    pub fn start() -> Result<Self> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let books = Books {
            files: Vec::new(),
            at_marks: vec![Vec::new()],
            between: Vec::new(),
            labels: vec!["mounted".to_owned()],
            prefix: format!("{:x}.", since.map_or(0, |time| time.as_nanos())),
        };
        logwrites::mark(&books.mark(0))?;
        Ok(Self {
            books: Mutex::new(books),
            sync: Mutex::new(()),
        })
    }

    /// One more file.
    pub fn add(&self, file: File) -> Id {
        let mut books = lock(&self.books);
        books.files.push(file);
        Id(books.files.len() - 1)
    }

    /// To be called before a change that the disk may then see, and after it.
    pub fn note<T>(&self, id: Id, change: impl FnOnce(&mut File) -> T) -> T {
        change(&mut lock(&self.books).files[id.0])
    }

    /// Calls what makes `files` durable, and sets a mark when it has returned.
    pub fn sync(&self, label: &str, files: &[Id], call: impl FnOnce() -> Result<()>) -> Result<()> {
        let _one = lock(&self.sync);
        {
            let mut books = lock(&self.books);
            for id in files {
                books.files[id.0].sync_begins();
            }
        }
        call()?;
        let mark = {
            let books = lock(&self.books);
            books.mark(books.at_marks.len())
        };
        logwrites::mark(&mark)?;
        let mut books = lock(&self.books);
        let before = books.snapshot();
        books.between.push(before);
        for id in files {
            books.files[id.0].sync_ends();
        }
        let at = books.snapshot();
        books.at_marks.push(at);
        books.labels.push(label.to_owned());
        Ok(())
    }

    /// Closes the books.
    pub fn finish(self) -> History {
        let mut books = self
            .books
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let last = books.snapshot();
        books.between.push(last);
        History { books }
    }
}

/// Closed books.
pub struct History {
    books: Books,
}

impl History {
    /// The name of the last mark.
    pub fn last_mark(&self) -> String {
        self.books.mark(self.books.at_marks.len() - 1)
    }

    /// How many entries of the log there are up to each mark.
    pub fn marks(&self, log: &Log) -> Vec<usize> {
        log.marks()
            .filter(|(_, name)| name.starts_with(&self.books.prefix))
            .map(|(entries, _)| entries)
            .collect()
    }

    /// What the sync before a mark was.
    pub fn label(&self, mark: usize) -> &str {
        &self.books.labels[mark]
    }

    /// The files, and what each may look like at a mark or, without `exactly`, from it to the next. A file
    /// that was not in the books yet may look like anything.
    pub fn expected(&self, mark: usize, exactly: bool) -> impl Iterator<Item = (&File, &Allowed)> {
        let snapshots = match exactly {
            true => &self.books.at_marks,
            false => &self.books.between,
        };
        self.books.files.iter().zip(&snapshots[mark])
    }
}
