//! Huge pages: reserved in the kernel's pool before they are needed, and given back after it.

use crate::error::{Code, Context, Error, Result};
use crate::proto::grpc::Storage;
use crate::uevent::Uevents;
use std::fs;
use std::time::Duration;

/// Memory that the host has just plugged in is there within this time.
const MEMORY_MAX: Duration = Duration::from_secs(3);

/// Pages of one size that somebody has reserved.
#[derive(Debug, PartialEq, Eq)]
pub struct Reserved {
    page_bytes: u64,
    count: u64,
}

/// Reserves what a storage of the driver `snp.hugepages` says: pages of `source` bytes for `size=` bytes.
pub async fn reserve_for(storage: &Storage) -> Result<Reserved> {
    let page_bytes = parse_size(&storage.source)
        .filter(|page| page.is_power_of_two())
        .ok_or_else(|| Error::invalid(format!("{:?} is no size of a page", storage.source)))?;
    let size = option(&storage.options, "size=").ok_or_else(|| Error::invalid("the storage has no size="))?;
    reserve(page_bytes, size).await
}

/// Reserves the pages that the options of a hugetlbfs call for (`pagesize=` and `size=`: bytes, or with K, M, G); none without both.
pub async fn reserve_by_options(options: &[String]) -> Result<Option<Reserved>> {
    match (option(options, "pagesize="), option(options, "size=")) {
        (Some(page), Some(size)) if page > 0 => reserve(page, size).await.map(Some),
        _ => Ok(None),
    }
}

/// Reserves pages on top of the present ones; all of them or none. The caller lets nobody else in meanwhile.
async fn reserve(page_bytes: u64, size: u64) -> Result<Reserved> {
    let reserved = Reserved {
        page_bytes,
        count: size.div_ceil(page_bytes),
    };
    // Listening begins before the first attempt: nothing is missed in between.
    let uevents = Uevents::open()?;
    let present = count(page_bytes)?;
    let wanted = present + reserved.count;
    let attempts = async {
        while set(page_bytes, wanted)? < wanted {
            uevents.added("memory").await?;
        }
        Ok::<(), Error>(())
    };
    let ended = tokio::time::timeout(MEMORY_MAX, attempts).await;
    let got = match ended {
        Ok(done) => {
            done?;
            wanted
        }
        Err(_) => set(page_bytes, wanted)?,
    };
    if got < wanted {
        set(page_bytes, present)?;
        let text = format!(
            "the guest has memory for {} of {} huge pages of {page_bytes} bytes",
            got.saturating_sub(present),
            reserved.count
        );
        return Err(Error::new(Code::ResourceExhausted, text));
    }
    Ok(reserved)
}

/// Gives pages back. Those that are still in use leave the pool when they are free.
pub fn give_back(reserved: &Reserved) -> Result<()> {
    let left = count(reserved.page_bytes)?.saturating_sub(reserved.count);
    set(reserved.page_bytes, left).map(|_| ())
}

fn pool(page_bytes: u64) -> String {
    format!("/sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages", page_bytes >> 10)
}

fn count(page_bytes: u64) -> Result<u64> {
    let file = pool(page_bytes);
    let text = fs::read_to_string(&file)
        .with_context(|| format!("find huge pages of {page_bytes} bytes, which this kernel may not have ({file})"))?;
    text.trim()
        .parse()
        .map_err(|_| Error::internal(format!("{file} has no number")))
}

/// Sets the pool's size; gives what it came to.
fn set(page_bytes: u64, wanted: u64) -> Result<u64> {
    fs::write(pool(page_bytes), wanted.to_string()).context("set the number of huge pages")?;
    count(page_bytes)
}

fn option(options: &[String], key: &str) -> Option<u64> {
    options.iter().find_map(|option| parse_size(option.strip_prefix(key)?))
}

fn parse_size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].to_ascii_uppercase().trim_end_matches(['B', 'I']) {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size("2097152"), Some(2 << 20));
        assert_eq!(parse_size("2M"), Some(2 << 20));
        assert_eq!(parse_size("1Gi"), Some(1 << 30));
        assert_eq!(parse_size("much"), None);
    }

    #[tokio::test]
    async fn what_is_no_reservation_is_refused() {
        let storage = |source: &str, options: &[&str]| Storage {
            source: source.into(),
            options: options.iter().map(|option| option.to_string()).collect(),
            ..Storage::default()
        };
        for bad in [
            storage("3000", &["size=1"]),
            storage("2097152", &[]),
            storage("", &["size=1"]),
        ] {
            assert!(reserve_for(&bad).await.is_err(), "{bad:?}");
        }
        assert_eq!(reserve_by_options(&["size=2M".into()]).await, Ok(None));
    }
}
