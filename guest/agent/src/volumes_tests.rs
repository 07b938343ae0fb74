use super::*;
use crate::proto::extensions::{Folder, Remove};
use std::os::unix::fs::{symlink, MetadataExt, PermissionsExt};
use std::path::PathBuf;

struct Area(PathBuf);

impl Area {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("snp-agent-volumes-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn at(&self, path: &str) -> PathBuf {
        let volume = self.0.join("volumes/v");
        if path.is_empty() {
            volume
        } else {
            volume.join(path)
        }
    }

    fn change(&self, changes: &[(&str, What)]) -> Result<()> {
        self.change_of("volumes/v", changes)
    }

    fn change_of(&self, volume: &str, changes: &[(&str, What)]) -> Result<()> {
        let changes = changes.iter().map(|(path, what)| Change {
            path: path.as_bytes().to_vec(),
            what: Some(what.clone()),
        });
        let request = ChangeRequest {
            volume: self.0.join(volume).to_string_lossy().into_owned(),
            changes: changes.collect(),
        };
        change(&self.0, &request)
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn folder(mode: u32) -> What {
    What::Folder(Folder { mode, uid: 12, gid: 34 })
}

fn piece(offset: u64, data: &[u8], last: bool) -> What {
    What::File(Piece {
        offset,
        data: data.to_vec(),
        last,
        mode: 0o440,
        uid: 12,
        gid: 34,
        modified_ns: 1_500_000_000_000_000_000,
    })
}

fn link(target: &str) -> What {
    What::Link(Link {
        target: target.into(),
        uid: 12,
        gid: 34,
    })
}

#[test]
fn a_tree_gets_its_modes_owners_times_and_links() {
    let area = Area::new("tree");
    area.change(&[
        ("", folder(0o2770)),
        ("a", folder(0o500)),
        ("a/f", piece(0, b"abc", false)),
        ("a/f", piece(3, b"def", true)),
        ("a/g", What::HardLink(b"a/f".to_vec())),
        ("l", link("/etc/passwd")),
        ("e", piece(0, b"", true)),
    ])
    .unwrap();
    let status = |path: &str| fs::symlink_metadata(area.at(path)).unwrap();
    assert_eq!(fs::read(area.at("a/f")).unwrap(), b"abcdef");
    assert_eq!(status("").mode() & 0o7777, 0o2770);
    assert_eq!(status("a").mode() & 0o7777, 0o500);
    let file = status("a/f");
    assert_eq!((file.mode() & 0o7777, file.uid(), file.gid()), (0o440, 12, 34));
    assert_eq!((file.mtime(), file.ino()), (1_500_000_000, status("a/g").ino()));
    assert_eq!((status("l").uid(), status("l").gid()), (12, 34));
    assert_eq!(fs::read_link(area.at("l")).unwrap(), Path::new("/etc/passwd"));
    assert_eq!(status("e").len(), 0);
}

#[test]
fn a_name_is_replaced_in_one_step_and_what_is_old_goes() {
    let area = Area::new("swap");
    area.change(&[
        ("..1", folder(0o755)),
        ("..1/k", piece(0, b"old", true)),
        ("..data", link("..1")),
        ("k", link("..data/k")),
    ])
    .unwrap();
    area.change(&[
        ("..2", folder(0o755)),
        ("..2/k", piece(0, b"new", true)),
        ("..data_tmp", link("..2")),
        ("..data", What::Rename(b"..data_tmp".to_vec())),
        ("..1", What::Remove(Remove {})),
        ("missing", What::Remove(Remove {})),
    ])
    .unwrap();
    assert_eq!(fs::read(area.at("k")).unwrap(), b"new");
    let listed = list(&area.0, &area.0.join("volumes/v").to_string_lossy()).unwrap();
    let mut names: Vec<_> = listed
        .entries
        .iter()
        .map(|entry| (&entry.name[..], &entry.target[..]))
        .collect();
    names.sort();
    let wanted: [(&[u8], &[u8]); 3] = [(b"..2", b""), (b"..data", b"..2"), (b"k", b"..data/k")];
    assert!(listed.complete);
    assert_eq!(names, wanted);
}

#[test]
fn a_volume_may_be_one_file_and_goes_with_its_removal() {
    let area = Area::new("file");
    area.change(&[("", piece(0, b"x", true))]).unwrap();
    assert_eq!(fs::read(area.at("")).unwrap(), b"x");
    assert!(area.change(&[("", piece(0, b"x", true))]).is_err());
    area.change(&[("", What::Remove(Remove {}))]).unwrap();
    assert!(!area.at("").exists());
    assert!(
        !list(&area.0, &area.0.join("volumes/v").to_string_lossy())
            .unwrap()
            .complete
    );
}

#[test]
fn no_path_leads_out_of_the_volume() {
    let (area, outside) = (Area::new("out"), Area::new("outside"));
    fs::write(outside.0.join("kept"), "kept").unwrap();
    fs::set_permissions(&outside.0, fs::Permissions::from_mode(0o700)).unwrap();
    area.change(&[
        ("", folder(0o777)),
        ("d", folder(0o777)),
        ("d/own", piece(0, b"", true)),
    ])
    .unwrap();
    symlink(&outside.0, area.at("l")).unwrap();
    symlink(outside.0.join("new"), area.at("f")).unwrap();
    let kept = || What::Rename(b"l/kept".to_vec());
    for (path, what) in [
        ("../x", piece(0, b"x", true)),
        ("d/../../x", piece(0, b"x", true)),
        ("/etc/x", piece(0, b"x", true)),
        ("d\0", piece(0, b"x", true)),
        ("l/x", piece(0, b"x", true)),
        ("f", piece(0, b"x", true)),
        ("f", piece(1, b"x", true)),
        ("l", folder(0o777)),
        ("l/d", folder(0o777)),
        ("l/d", link("x")),
        ("l/kept", What::Remove(Remove {})),
        ("x", kept()),
        ("x", What::HardLink(b"l/kept".to_vec())),
        ("x", What::Rename(b"../../x".to_vec())),
        ("l/kept", What::Rename(b"d/own".to_vec())),
    ] {
        assert!(area.change(&[(path, what.clone())]).is_err(), "{path} {what:?}");
    }
    assert_eq!(fs::read_dir(&outside.0).unwrap().count(), 1);
    assert_eq!(fs::metadata(&outside.0).unwrap().mode() & 0o7777, 0o700);
    // A link is removed, not what it leads to; the same for a folder that has one in it.
    symlink(&outside.0, area.at("d/deep")).unwrap();
    area.change(&[("l", What::Remove(Remove {})), ("d", What::Remove(Remove {}))])
        .unwrap();
    assert_eq!(fs::read(outside.0.join("kept")).unwrap(), b"kept");
}

#[test]
fn a_volume_lies_in_its_area() {
    let area = Area::new("areas");
    for volume in [
        "",
        "volumes",
        "other/v",
        "volumes/../x/v",
        "../x",
        "shared/containers/c/rootfs",
        "sandbox/volumes/v",
    ] {
        assert!(area.change_of(volume, &[("", folder(0o755))]).is_err(), "{volume}");
    }
    let outside = Area::new("areas-outside");
    symlink(&outside.0, area.0.join("snp")).unwrap();
    assert!(area.change_of("snp/c1/v", &[("", folder(0o755))]).is_err());
    assert_eq!(fs::read_dir(&outside.0).unwrap().count(), 0);
    assert!(area.change_of("volumes/v", &[("", folder(0o755))]).is_ok());
    let mut many = ChangeRequest {
        volume: area.0.join("volumes/v").to_string_lossy().into_owned(),
        changes: vec![Change::default(); CHANGES_MAX + 1],
    };
    assert!(change(&area.0, &many).unwrap_err().text.contains("at most"));
    many.changes.truncate(1);
    assert!(change(&area.0, &many).unwrap_err().text.contains("does not know"));
}
