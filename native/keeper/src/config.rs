//! The one setting the keeper reads: `state_dir`. Everything else in the configuration is snpd's.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Where the configuration is when nobody names a file.
pub const DEFAULT_FILE: &str = "/etc/containerd-shim-snp/config.toml";
/// The environment variable that names another file.
pub const FILE_VARIABLE: &str = "CONTAINERD_SHIM_SNP_CONFIG";
/// The state folder when the configuration names none.
pub const DEFAULT_STATE_DIR: &str = "/run/containerd-shim-snp";
/// Longest state folder, in bytes: with the longest name below it, it must fit in a socket's address.
pub const MAX_STATE_DIR: usize = 48;
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The file that was named for this container, by the runtime options or else by the environment; nothing when none was.
pub fn named_file(config_path: &str, variable: Option<String>) -> Option<PathBuf> {
    let named = Some(config_path.to_owned()).filter(|path| !path.is_empty());
    named.or(variable.filter(|path| !path.is_empty())).map(PathBuf::from)
}

/// `state_dir` at the top of the file. Drop-ins are not looked at: snpd refuses the key there, and says so when `Create` comes,
/// as it does for a file that can't be read or parsed.
///
/// # Errors
/// A text when the folder is not absolute or too long, since no socket could be made in it.
pub fn state_dir(file: Option<&Path>) -> Result<PathBuf, String> {
    let file = file.unwrap_or(Path::new(DEFAULT_FILE));
    let Some(value) = read_key(file) else {
        return Ok(PathBuf::from(DEFAULT_STATE_DIR));
    };
    let trimmed = value.trim_end_matches('/');
    if !value.starts_with('/') || trimmed.is_empty() || trimmed.len() > MAX_STATE_DIR || trimmed.contains('\0') {
        return Err(format!(
            "state_dir {value:?} in {} can't be used: name an absolute folder of at most {MAX_STATE_DIR} bytes, such as {DEFAULT_STATE_DIR}",
            file.display()
        ));
    }
    Ok(PathBuf::from(trimmed))
}

fn read_key(file: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    fs::File::open(file)
        .ok()?
        .take(MAX_FILE_BYTES)
        .read_to_end(&mut bytes)
        .ok()?;
    let text = String::from_utf8_lossy(&bytes);
    match text.parse::<toml::Table>() {
        Ok(table) => table.get("state_dir")?.as_str().map(str::to_owned),
        Err(_) => scan(&text),
    }
}

/// The key in a file that is no TOML, if its line is whole: a mistake elsewhere must not make a second snpd in another folder.
fn scan(text: &str) -> Option<String> {
    let top = text.lines().take_while(|line| !line.trim_start().starts_with('['));
    top.filter(|line| line.trim_start().starts_with("state_dir"))
        .find_map(|line| {
            line.parse::<toml::Table>()
                .ok()?
                .get("state_dir")?
                .as_str()
                .map(str::to_owned)
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Folder, Random};

    #[test]
    fn takes_the_key_at_the_top_of_the_file_and_no_other() {
        let folder = Folder::new("config");
        let file = folder.path("config.toml");
        fs::create_dir(folder.path("config.toml.d")).unwrap();
        fs::write(folder.path("config.toml.d/10.toml"), "state_dir = '/run/b'").unwrap();
        assert_eq!(state_dir(Some(&file)).unwrap(), Path::new(DEFAULT_STATE_DIR));
        fs::write(&file, "# comment\nstate_dir = \"/run/a/\"\n[vm]\nstate_dir = \"/no\"\n").unwrap();
        assert_eq!(state_dir(Some(&file)).unwrap(), Path::new("/run/a"));
    }

    #[test]
    fn passes_over_what_it_can_not_use() {
        let folder = Folder::new("lenient");
        let file = folder.path("config.toml");
        for text in [
            "state_dir = 7",
            "state_dir = [",
            "",
            "\u{0}",
            "unknown = 1",
            "[a]\nstate_dir = '/x'",
        ] {
            fs::write(&file, text).unwrap();
            assert_eq!(
                state_dir(Some(&file)).unwrap(),
                Path::new(DEFAULT_STATE_DIR),
                "{text:?}"
            );
        }
    }

    #[test]
    fn finds_the_key_in_a_file_that_is_no_toml() {
        let folder = Folder::new("broken");
        let file = folder.path("config.toml");
        for (text, expected) in [
            ("state_dir = \"/run/a\" # ours\nthis is no TOML", "/run/a"),
            ("what?\n  state_dir='/run/b/'\n[log]\nlevel = ", "/run/b"),
            ("state_dir = '/run/a'\n[log]\nlevel = 1\nlevel = 2", "/run/a"),
            ("[broken\nstate_dir = '/run/a'", DEFAULT_STATE_DIR),
            ("state_dir = '/run/a\n", DEFAULT_STATE_DIR),
            ("state_dirs = '/run/a'\nno", DEFAULT_STATE_DIR),
            ("# state_dir = '/run/a'\nno", DEFAULT_STATE_DIR),
        ] {
            fs::write(&file, text).unwrap();
            assert_eq!(state_dir(Some(&file)).unwrap(), Path::new(expected), "{text:?}");
        }
        fs::write(&file, b"state_dir = '/run/a'\n# \xff\n]").unwrap();
        assert_eq!(state_dir(Some(&file)).unwrap(), Path::new("/run/a"));
    }

    #[test]
    fn refuses_folders_that_can_not_hold_a_socket() {
        let folder = Folder::new("refuse");
        let file = folder.path("config.toml");
        for value in [
            "relative".to_owned(),
            format!("/{}", "x".repeat(48)),
            "/".to_owned(),
            String::new(),
        ] {
            fs::write(&file, format!("state_dir = {value:?}")).unwrap();
            assert!(
                state_dir(Some(&file)).unwrap_err().contains(file.to_str().unwrap()),
                "{value}"
            );
        }
    }

    #[test]
    fn names_the_file() {
        assert_eq!(named_file("/a", Some("/b".into())), Some("/a".into()));
        assert_eq!(named_file("", Some("/b".into())), Some("/b".into()));
        assert_eq!(named_file("", Some(String::new())), None);
    }

    #[test]
    fn survives_random_files() {
        let folder = Folder::new("random");
        let file = folder.path("config.toml");
        let mut random = Random::new(5);
        for _ in 0..3000 {
            let mut text = b"state_dir = \"/run/x\"\n[a.b]\nc = [1, 2]\n".to_vec();
            for _ in 0..3 {
                let place = random.below(text.len());
                text[place] = random.below(128) as u8;
            }
            fs::write(&file, &text).unwrap();
            let _ = state_dir(Some(&file));
        }
    }
}
