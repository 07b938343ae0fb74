//! `snp-layers`: makes layer files of the blobs of OCI layers, and disks of layer files. Each call does one thing and is safe to kill at any
//! instant: a file appears whole under its name or not at all.

mod blocks;
mod convert;
mod copy;
mod disk;
mod erofs;
mod error;
mod files;
mod gpt;
mod header;
mod input;
mod layer;
mod pax;
mod publish;
mod spool;
mod tar;
mod tree;
mod verity;
mod xattrs;

use error::{Attempt, Error, Result};
use input::Input;
use publish::Staged;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

const USAGE: &str = "usage: snp-layers convert --diff-id DIGEST [--digest DIGEST] [--input FILE] [--progress] --output FILE --staging FOLDER
       snp-layers disk --output FILE --staging FOLDER < ORDER
       snp-layers verify FILE
       snp-layers files --diff-id DIGEST [--digest DIGEST] [--input FILE] -- PATH...
convert makes a layer file of a layer's blob (tar, gzip, zstd; standard input unless --input names a file), disk a disk of layer files,
files gives what is in single files.
The last line of standard output is JSON. Exit status: 2 wrong call, 3 the layer or a file is at fault, 4 no space, 1 all else.";
const PROGRESS_PAUSE: Duration = Duration::from_millis(200);
/// What a sane order for a disk takes.
const ORDER_MAX_BYTES: u64 = 1024 * 1024;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    match run(&arguments) {
        Ok(line) => {
            say(&line);
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error}");
            ExitCode::from(error.status())
        }
    }
}

/// The last line was said.
static ENDED: AtomicBool = AtomicBool::new(false);

/// Says the last line. Whoever asked may be gone: the work counts all the same.
fn say(line: &str) {
    let mut output = std::io::stdout().lock();
    ENDED.store(true, Ordering::Relaxed);
    let _ = writeln!(output, "{line}");
}

fn run(arguments: &[String]) -> Result<String> {
    match arguments.split_first() {
        Some((command, rest)) if command == "convert" => convert(&Flags::parse(rest)?),
        Some((command, rest)) if command == "disk" => disk(&Flags::parse(rest)?),
        Some((command, [file])) if command == "verify" => verify(file),
        Some((command, rest)) if command == "files" => files(rest),
        Some((command, [])) if command == "--version" => Ok(format!("snp-layers {}", env!("CARGO_PKG_VERSION"))),
        _ => Err(Error::Usage(USAGE.into())),
    }
}

/// Flags with their values.
struct Flags(BTreeMap<String, String>);

impl Flags {
    fn parse(words: &[String]) -> Result<Self> {
        let mut flags = BTreeMap::new();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let value = match word.as_str() {
                "--progress" => Some(String::new()),
                "--diff-id" | "--digest" | "--input" | "--output" | "--staging" => words.next().cloned(),
                _ => None,
            };
            flags.insert(word.clone(), value.ok_or_else(|| Error::Usage(USAGE.into()))?);
        }
        Ok(Self(flags))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn need(&self, name: &str) -> Result<&str> {
        self.get(name)
            .ok_or_else(|| Error::Usage(format!("{name} is missing\n{USAGE}")))
    }

    fn expected(&self) -> Result<convert::Expected> {
        Ok(convert::Expected {
            diff: input::parse_digest(self.need("--diff-id")?)?,
            blob: self.get("--digest").map(input::parse_digest).transpose()?,
        })
    }

    fn output(&self) -> Result<(PathBuf, PathBuf)> {
        Ok((self.need("--output")?.into(), self.need("--staging")?.into()))
    }
}

fn convert(flags: &Flags) -> Result<String> {
    let (output, staging) = flags.output()?;
    let expected = flags.expected()?;
    let _lock = publish::lock(&lock_path(&staging, &expected.diff))?;
    let name = output.display().to_string();
    if let Ok(file) = File::open(&output) {
        return Ok(line("layer", &layer::Description::read(&file, &name)?, true));
    }
    let blob = input::open(flags.get("--input").unwrap_or("-"))?;
    let total = blob.metadata().map_or(0, |metadata| metadata.len());
    let input = Input::new(blob);
    if flags.get("--progress").is_some() {
        tell_progress(input.progress(), total);
    }
    let staged = Staged::new(&staging, "layer")?;
    let file = Arc::new(staged.file.try_clone().attempt("making the image")?);
    let spool = Staged::new(&staging, "spool")?;
    let spool_file = spool.file.try_clone().attempt("making the spool")?;
    let description = convert::convert(input, &expected, &file, spool_file)?;
    staged.publish(&output)?;
    Ok(line("layer", &description, false))
}

fn files(words: &[String]) -> Result<String> {
    let mut parts = words.splitn(2, |word| word == "--");
    let flags = Flags::parse(parts.next().unwrap_or_default())?;
    let paths = parts.next().ok_or_else(|| Error::Usage(USAGE.into()))?;
    let expected = flags.expected()?;
    let input = Input::new(input::open(flags.get("--input").unwrap_or("-"))?);
    Ok(serde_json::json!({ "files": files::read(input, &expected, paths)? }).to_string())
}

fn disk(flags: &Flags) -> Result<String> {
    let (output, staging) = flags.output()?;
    let mut text = String::new();
    let read = std::io::stdin().take(ORDER_MAX_BYTES).read_to_string(&mut text);
    read.attempt("reading the order")?;
    let order: disk::Order =
        serde_json::from_str(&text).map_err(|error| Error::Usage(format!("the order for a disk is wrong: {error}")))?;
    let name = output.display().to_string();
    let key = input::hex(&sha2::Digest::finalize(sha2::Digest::chain_update(
        <sha2::Sha256 as sha2::Digest>::new(),
        name.as_bytes(),
    )));
    let _lock = publish::lock(&staging.join(format!("{}.lock", &key[..2])))?;
    if let Ok(file) = File::open(&output) {
        let found = disk::Description::read(&file, &name)?;
        let found = found.ok_or_else(|| Error::Layer(format!("{name} is no disk of layers")))?;
        return Ok(line("disk", &found, true));
    }
    let staged = Staged::new(&staging, "disk")?;
    let description = disk::assemble(order, &staged.file)?;
    staged.publish(&output)?;
    Ok(line("disk", &description, false))
}

fn verify(name: &str) -> Result<String> {
    let file = File::open(name).attempt(&format!("opening {name}"))?;
    if let Some(found) = disk::Description::read(&file, name)? {
        found.verify(&file, name)?;
        return Ok(line("disk", &found, true));
    }
    let found = layer::Description::read(&file, name)?;
    disk::verify_part(&file, 0, found.data_bytes, &found.root_hash, None, name)?;
    Ok(line("layer", &found, true))
}

/// One line of JSON: what a file holds, and whether it was there before.
fn line(kind: &str, description: &impl serde::Serialize, cached: bool) -> String {
    serde_json::json!({ kind: description, "cached": cached }).to_string()
}

/// One of a few files, so that locks of layers that nobody wants any more do not pile up.
fn lock_path(staging: &Path, diff: &input::Hash) -> PathBuf {
    staging.join(format!("{}.lock", input::hex(&diff[..1])))
}

fn tell_progress(done: Arc<AtomicU64>, total: u64) {
    thread::spawn(move || loop {
        thread::sleep(PROGRESS_PAUSE);
        let done = done.load(Ordering::Relaxed);
        let line = serde_json::json!({ "progress": { "done": done, "total": total } });
        let mut output = std::io::stdout().lock();
        // The lock keeps both in order: nothing comes behind the last line.
        if !ENDED.load(Ordering::Relaxed) {
            let _ = writeln!(output, "{line}");
        }
    });
}
