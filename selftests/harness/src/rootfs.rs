// SPDX-License-Identifier: GPL-2.0

//! The guest's root: an ext4 image of the host's own programs and their libraries.
//!
//! `selftests/rootfs/manifest` names what goes in, `selftests/rootfs/files` is copied over it. The
//! image's name holds a hash of all inputs, so it is made again only when one of them changes,
//! and guests that run from an older one keep it.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::{symlink, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{anyhow, bail, Context, Result};
use nix::fcntl::{Flock, FlockArg};

use crate::{cache, kselftests, programs};

/// Changed when the way an image is made changes.
const VERSION: u32 = 1;
/// Images that are kept: other runs may be about to boot from them.
const KEEP_IMAGES: usize = 4;
/// Directory of our own programs in the guest.
const OWN: &str = "/usr/lib/pinwb";

/// What an image is made of; keys are paths in the guest.
#[derive(Debug, Default, Hash)]
struct Contents {
    files: BTreeMap<PathBuf, PathBuf>,
    links: BTreeMap<PathBuf, PathBuf>,
    dirs: BTreeSet<PathBuf>,
}

/// What an image has beyond the ordinary one.
#[derive(Debug, Default)]
pub struct Extra {
    /// Another manifest.
    pub manifest: PathBuf,
    /// Directories that are copied over the image's root.
    pub overlays: Vec<PathBuf>,
    /// Single files: the path in the guest, and the host's file.
    pub files: Vec<(PathBuf, PathBuf)>,
}

/// Makes the image if it isn't there; returns its path.
pub fn image() -> Result<PathBuf> {
    image_with(None)
}

/// The same for an image with `extra` in it.
pub fn image_with(extra: Option<&Extra>) -> Result<PathBuf> {
    let contents = contents(extra)?;
    let mut hasher = DefaultHasher::new();
    (VERSION, &contents).hash(&mut hasher);
    for source in contents.files.values() {
        let meta = fs::metadata(source).with_context(|| format!("{}", source.display()))?;
        (meta.len(), meta.mtime(), meta.mtime_nsec(), meta.mode()).hash(&mut hasher);
    }
    let dir = cache::dir()?.join("rootfs");
    fs::create_dir_all(&dir)?;
    let image = dir.join(format!("{:016x}.img", hasher.finish()));
    if image.exists() {
        // The newest are kept, so this one is new again.
        let _ = fs::File::open(&image).map(|f| f.set_modified(std::time::SystemTime::now()));
        return Ok(image);
    }
    eprintln!("harness: making the guest's root image");
    build(&contents, &dir, &image)?;
    prune(&dir);
    Ok(image)
}

fn prune(dir: &Path) {
    let modified = |p: &PathBuf| fs::metadata(p).and_then(|m| m.modified()).ok();
    let mut images: Vec<PathBuf> = glob::glob(&dir.join("*.img").to_string_lossy())
        .into_iter()
        .flatten()
        .flatten()
        .collect();
    images.sort_by_key(modified);
    for old in images.iter().rev().skip(KEEP_IMAGES) {
        if lock(old, FlockArg::LockExclusiveNonblock).is_ok() {
            let _ = fs::remove_file(old);
        }
    }
}

/// Keeps an image until what is returned is dropped: for runs that boot from it again and again.
pub fn hold(image: &Path) -> Result<Flock<fs::File>> {
    lock(image, FlockArg::LockShared)
}

fn lock(image: &Path, how: FlockArg) -> Result<Flock<fs::File>> {
    let file = fs::File::open(image).with_context(|| format!("{}", image.display()))?;
    Flock::lock(file, how).map_err(|(_, errno)| errno.into())
}

/// `/bin`, `/sbin` and `/lib*` are links into `/usr` in the guest, whatever they are on the host.
fn merged(path: &Path) -> PathBuf {
    for top in ["bin", "sbin", "lib", "lib32", "lib64"] {
        if let Ok(rest) = path.strip_prefix(Path::new("/").join(top)) {
            return Path::new("/usr").join(top).join(rest);
        }
    }
    path.to_path_buf()
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = env::var("PATH").unwrap_or_default();
    let system = "/usr/sbin:/usr/bin:/sbin:/bin";
    system
        .split(':')
        .chain(path.split(':'))
        .map(|dir| Path::new(dir).join(name))
        .find(|p| p.is_file())
}

/// Adds what a manifest names to `all`, and the programs that are not on the host to `missing`.
fn read_manifest(manifest: &Path, all: &mut Contents, missing: &mut Vec<String>) -> Result<()> {
    let text =
        fs::read_to_string(manifest).with_context(|| format!("read {}", manifest.display()))?;
    for line in text.lines() {
        let mut words = line.split('#').next().unwrap_or("").split_whitespace();
        let Some(kind) = words.next() else { continue };
        match kind {
            "dir" => all.dirs.extend(words.map(PathBuf::from)),
            "link" => {
                let (Some(at), Some(to)) = (words.next(), words.next()) else {
                    bail!("manifest: {line:?}: link AT TO");
                };
                all.links.insert(at.into(), to.into());
            }
            "bin" | "opt" => {
                for name in words {
                    match on_path(name) {
                        Some(path) => {
                            let place = merged(&path);
                            all.files.insert(place, path);
                        }
                        None if kind == "opt" => {}
                        None => missing.push(name.to_string()),
                    }
                }
            }
            "files" => {
                for pattern in words {
                    for path in glob::glob(pattern)?.flatten().filter(|p| p.is_file()) {
                        all.files.insert(merged(&path), path);
                    }
                }
            }
            _ => bail!("manifest: {line:?}: unknown kind"),
        }
    }
    Ok(())
}

fn contents(extra: Option<&Extra>) -> Result<Contents> {
    let rootfs = cache::selftests().join("rootfs");
    let mut all = Contents::default();
    let mut missing = Vec::new();
    read_manifest(&rootfs.join("manifest"), &mut all, &mut missing)?;
    if let Some(extra) = extra {
        read_manifest(&extra.manifest, &mut all, &mut missing)?;
    }
    if !missing.is_empty() {
        bail!(
            "the guest needs programs that are not installed here: {}",
            missing.join(" ")
        );
    }

    all.links
        .insert("/init".into(), Path::new(OWN).join(programs::INIT));
    let own = programs::guest_programs()?;
    for program in own.into_iter().chain(kselftests::built()?) {
        let name = program.file_name().context("a program has a name")?;
        all.files.insert(Path::new(OWN).join(name), program.clone());
    }
    if let Some(extra) = extra {
        all.files.extend(extra.files.iter().cloned());
    }
    let libraries = libraries(all.files.values())?;
    all.files.extend(libraries);

    let mut overlays = vec![rootfs.join("files")];
    overlays.extend(extra.into_iter().flat_map(|e| e.overlays.iter().cloned()));
    for overlay in overlays {
        for path in glob::glob(&overlay.join("**/*").to_string_lossy())?.flatten() {
            if path.is_file() {
                let place = Path::new("/").join(path.strip_prefix(&overlay)?);
                all.files.insert(place, path);
            }
        }
    }
    Ok(all)
}

/// The shared libraries that `programs` load, by ldd; keys are paths in the guest.
fn libraries<'a>(
    programs: impl Iterator<Item = &'a PathBuf>,
) -> Result<BTreeMap<PathBuf, PathBuf>> {
    let programs: Vec<&PathBuf> = programs.filter(|p| is_elf(p)).collect();
    let mut found = BTreeMap::new();
    // Fails for static programs, says so on stderr, and goes on with the next one.
    let out = Command::new("ldd")
        .args(&programs)
        .env("LC_ALL", "C")
        .output()
        .context("run ldd")?;
    for line in String::from_utf8_lossy(&out.stdout).lines() {
        let line = line.trim();
        if line.contains("=> not found") {
            bail!("ldd: {line}");
        }
        let path = match line.split_once("=> ") {
            Some((_, path)) => path,
            // The interpreter, or a header line.
            None => line,
        };
        let Some((path, _)) = path.split_once(" (0x") else {
            continue;
        };
        if path.starts_with('/') {
            found.insert(merged(Path::new(path)), PathBuf::from(path));
        }
    }
    if found.is_empty() {
        bail!("ldd: {}", String::from_utf8_lossy(&out.stderr));
    }
    Ok(found)
}

fn is_elf(path: &Path) -> bool {
    use std::io::Read;
    let mut magic = [0; 4];
    fs::File::open(path)
        .and_then(|mut f| f.read_exact(&mut magic))
        .is_ok_and(|()| magic == *b"\x7fELF")
}

fn build(contents: &Contents, dir: &Path, image: &Path) -> Result<()> {
    let stage = tempfile::tempdir_in(dir)?;
    let root = stage.path().join("root");
    let inside = |path: &Path| -> Result<PathBuf> {
        let relative = path
            .strip_prefix("/")
            .map_err(|_| anyhow!("{} is not absolute", path.display()))?;
        let place = root.join(relative);
        fs::create_dir_all(place.parent().unwrap_or(&root))?;
        Ok(place)
    };
    for top in ["bin", "sbin", "lib", "lib64"] {
        fs::create_dir_all(root.join("usr").join(top))?;
        symlink(Path::new("usr").join(top), root.join(top))?;
    }
    for path in &contents.dirs {
        fs::create_dir_all(inside(path)?)?;
    }
    let mut bytes = 0;
    for (place, source) in &contents.files {
        let place = inside(place)?;
        bytes += fs::copy(source, &place)
            .with_context(|| format!("copy {} to {}", source.display(), place.display()))?;
        let mode = fs::metadata(source)?.permissions().mode() & 0o755;
        fs::set_permissions(&place, fs::Permissions::from_mode(mode | 0o444))?;
    }
    for (at, to) in &contents.links {
        let at = inside(at)?;
        if fs::symlink_metadata(&at).is_err() {
            symlink(to, at)?;
        }
    }

    // Room for block rounding and metadata; the image is sparse and read-only.
    let mebibytes = bytes / (1 << 20) * 5 / 4 + 32;
    let new = stage.path().join("root.img");
    let mke2fs = on_path("mke2fs").context("mke2fs (e2fsprogs) is not installed")?;
    let out = Command::new(mke2fs)
        .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0"])
        .args(["-O", "^has_journal,^resize_inode,^metadata_csum"])
        .args(["-E", "root_owner=0:0"])
        .arg("-d")
        .arg(&root)
        .arg(&new)
        .arg(format!("{mebibytes}M"))
        .output()
        .context("run mke2fs")?;
    if !out.status.success() {
        bail!("mke2fs: {}", String::from_utf8_lossy(&out.stderr));
    }
    fs::rename(&new, image)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::merged;
    use std::path::Path;

    #[test]
    fn usr_is_merged() {
        assert_eq!(
            merged(Path::new("/lib64/ld.so")),
            Path::new("/usr/lib64/ld.so")
        );
        assert_eq!(merged(Path::new("/bin/bash")), Path::new("/usr/bin/bash"));
        assert_eq!(merged(Path::new("/etc/x")), Path::new("/etc/x"));
        assert_eq!(merged(Path::new("/library/x")), Path::new("/library/x"));
    }
}
