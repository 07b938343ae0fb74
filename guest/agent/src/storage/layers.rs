//! A root file system from layers: read-only erofs devices below, a writable folder above, joined by overlayfs.

use super::partition::Partition;
use super::verity::{Layers, Opened, Verity};
use super::{block, btrfs, mount_at, overlay, scratch, undo, Entry};
use crate::error::{Context, Error, Result};
use crate::mountopts::Parsed;
use crate::proto::grpc::Storage;
use nix::mount::{mount, MsFlags};
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

const MULTI_LAYER: &str = "X-kata.multi-layer=true";
const LOWER: &str = "X-kata.overlay-lower";
const UPPER: &str = "X-kata.overlay-upper";
const PARTITION: &str = "X-kata.partition-number=";
/// As many as a disk has partitions; overlayfs takes 500.
const LOWERS_MAX: usize = 128;

fn has(storage: &Storage, option: &str) -> bool {
    storage.options.iter().any(|given| given == option)
}

/// Whether a storage is one of several that make up one mount point.
pub fn is_layer(storage: &Storage) -> bool {
    storage.driver == "erofs.multi-layer" || has(storage, MULTI_LAYER) || has(storage, LOWER) || has(storage, UPPER)
}

/// Mounts all layers of `storages` that belong to `point` and joins them there. The first lower layer is the topmost. Without an upper one
/// the container writes to the guest's memory.
pub async fn mount_all(
    owner: &str,
    point: &str,
    storages: &[Storage],
    run_dir: &Path,
    verity: &Layers,
) -> Result<Entry> {
    let layers = storages
        .iter()
        .filter(|storage| storage.mount_point == point && is_layer(storage));
    let (uppers, mut lowers): (Vec<_>, Vec<_>) = layers.partition(|storage| has(storage, UPPER));
    if lowers.is_empty() || lowers.len() > LOWERS_MAX || uppers.len() > 1 {
        let text = format!(
            "{} lower and {} upper layers (1 to {LOWERS_MAX} and at most 1)",
            lowers.len(),
            uppers.len()
        );
        return Err(Error::invalid(text));
    }
    lowers.sort_by_key(|storage| partition_number(storage).unwrap_or(0));
    let base = run_dir.join("layers").join(owner).join(folder_name(point));
    let mut entry = Entry {
        folders: vec![base.clone()],
        ..Entry::default()
    };
    let made = join(&mut entry, &base, point, &lowers, uppers.first().copied(), verity).await;
    if let Err(error) = made {
        let _ = undo(&entry);
        return Err(error);
    }
    Ok(entry)
}

async fn join(
    entry: &mut Entry,
    base: &Path,
    point: &str,
    lowers: &[&Storage],
    upper: Option<&Storage>,
    verity: &Layers,
) -> Result<()> {
    let mut folders = Vec::new();
    for (number, storage) in lowers.iter().enumerate() {
        let folder = base.join(format!("l{number}"));
        mount_layer(entry, storage, &folder, verity)
            .await
            .with_context(|| format!("layer {} of {}", number + 1, lowers.len()))?;
        folders.push(folder);
    }
    let writable = base.join("w");
    let upper_name = format!(
        "upper-{}",
        base.file_name()
            .map_or_else(Default::default, |name| name.to_string_lossy())
    );
    let shared = upper.and_then(scratch::inside).map(Path::new);
    let writable = match (shared, upper) {
        (Some(disk), _) => {
            btrfs::make_folder(disk, &upper_name)?;
            entry.inside = Some((disk.to_path_buf(), upper_name.clone()));
            disk.join(&upper_name)
        }
        (None, Some(storage)) => {
            match scratch::wanted(storage)? {
                Some(encrypted) => {
                    let point = writable.to_string_lossy().into_owned();
                    let own = Storage {
                        mount_point: point,
                        ..storage.clone()
                    };
                    entry.take(scratch::make(own, encrypted).await?);
                }
                None => mount_layer(entry, storage, &writable, verity).await?,
            }
            writable
        }
        (None, None) => {
            fs::create_dir_all(&writable).context("make the writable layer")?;
            mount(
                Some("tmpfs"),
                &writable,
                Some("tmpfs"),
                MsFlags::empty(),
                Some("mode=755"),
            )
            .context("mount the writable layer")?;
            entry.mounts.push(writable.clone());
            writable
        }
    };
    let (upper, work) = (writable.join("upper"), writable.join("work"));
    for folder in [&upper, &work] {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let point = PathBuf::from(point);
    fs::create_dir_all(&point).with_context(|| format!("make {}", point.display()))?;
    overlay::mount(&folders, &upper, &work, &point).context("join the layers")?;
    entry.mounts.push(point);
    Ok(())
}

async fn mount_layer(entry: &mut Entry, storage: &Storage, folder: &Path, verity: &Layers) -> Result<()> {
    let disk = block::find(&storage.source).await?;
    let partition = partition_number(storage);
    if let Some(verity_options) = Verity::from_options(&storage.options)? {
        return mount_verified(entry, storage, folder, &verity.open(&disk, partition, &verity_options)?);
    }
    let device = match partition {
        Some(number) => entry.keep_partition(Partition::open(&disk, number)?),
        None => disk,
    };
    mount_device(entry, storage, folder, &device)
}

/// Mounts an open layer. The mount reads the file system's beginning, which proves the root hash: a wrong one fails here.
pub fn mount_verified(entry: &mut Entry, storage: &Storage, folder: &Path, layer: &Rc<Opened>) -> Result<()> {
    let mounted = mount_device(entry, storage, folder, &layer.path());
    let explained = mounted.map_err(|error| match layer.damage() {
        Some(damage) => Error::damaged(format!("{damage} ({error})")),
        None => error,
    });
    entry.layers.push(layer.clone());
    explained
}

fn mount_device(entry: &mut Entry, storage: &Storage, folder: &Path, device: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let parsed = Parsed::from_options(&storage.options)?;
    mount_at(&device.to_string_lossy(), folder, &storage.fstype, &parsed)?;
    entry.mounts.push(folder.to_path_buf());
    Ok(())
}

fn partition_number(storage: &Storage) -> Option<u32> {
    storage
        .options
        .iter()
        .find_map(|option| option.strip_prefix(PARTITION)?.parse().ok())
}

/// A file name for a mount point: overlayfs's options split at colons and commas, so only plain characters stay.
fn folder_name(point: &str) -> String {
    point
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_becomes_a_plain_name() {
        assert_eq!(folder_name("/run/a:b,c/rootfs"), "_run_a_b_c_rootfs");
    }

    #[test]
    fn layers_are_known_by_their_options() {
        let plain = Storage {
            driver: "blk".into(),
            ..Storage::default()
        };
        assert!(!is_layer(&plain));
        assert!(is_layer(&Storage {
            options: vec![LOWER.into(), MULTI_LAYER.into()],
            ..plain
        }));
    }
}
