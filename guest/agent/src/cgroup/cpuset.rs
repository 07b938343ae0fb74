//! Lists of processors and memory nodes, such as "0-3,7" (cpuset(7), "Formats"). Pure.

use crate::error::{Error, Result};

/// Above every number that a kernel counts to.
const NUMBER_MAX: u32 = 1 << 16;

/// Whether something of `wanted` is not in `most`.
///
/// # Errors
/// When `wanted` is not a list.
pub fn missing(wanted: &str, most: &str) -> Result<bool> {
    let wrong = || Error::invalid(format!("{wanted:?} is not a list of numbers, such as \"0-3,7\""));
    let ranges = parse(wanted).ok_or_else(wrong)?;
    let most = parse(most).unwrap_or_default();
    let inside = |number: u32| most.iter().any(|(first, last)| (*first..=*last).contains(&number));
    Ok(!ranges.into_iter().all(|(first, last)| (first..=last).all(inside)))
}

/// The ranges of a list, both ends included; None when it is not one.
fn parse(list: &str) -> Option<Vec<(u32, u32)>> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse().ok()?, last.parse().ok()?);
        (first <= last && last < NUMBER_MAX).then_some((first, last))
    };
    list.trim().split(',').map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_compared_number_by_number() {
        assert_eq!(missing("0", "0-3"), Ok(false));
        assert_eq!(missing("1-2,5", "0-3,5"), Ok(false));
        assert_eq!(missing("1-2,5", "0-3"), Ok(true));
        assert_eq!(missing("3-4", "0-3,5"), Ok(true));
        assert_eq!(missing("0", ""), Ok(true));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for list in ["a", "1-", "-1", "3-2", "0,,1", "0-4294967295", "1-2-3"] {
            assert!(missing(list, "0-3").is_err(), "{list}");
        }
    }
}
