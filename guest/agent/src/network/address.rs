//! Addresses as text and as bytes.

use crate::error::{Error, Result};
use std::fmt;
use std::net::IpAddr;

/// An IP address with its bytes at hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ip {
    address: IpAddr,
    bytes: Vec<u8>,
}

impl Ip {
    fn new(address: IpAddr) -> Self {
        let bytes = match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        Self { address, bytes }
    }

    /// From four or sixteen bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let v4 = <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
        let v6 = <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from);
        v4.or(v6).map(Self::new)
    }

    /// The bytes in network order.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether it has sixteen bytes.
    pub fn is_v6(&self) -> bool {
        self.address.is_ipv6()
    }

    /// The address family's number.
    pub fn family(&self) -> u8 {
        if self.is_v6() {
            libc::AF_INET6 as u8
        } else {
            libc::AF_INET as u8
        }
    }
}

impl fmt::Display for Ip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

/// Reads an address; one with a prefix length is not one.
pub fn parse_ip(text: &str) -> Result<Ip> {
    text.parse()
        .map(Ip::new)
        .map_err(|_| Error::invalid(format!("{text:?} is no IP address")))
}

/// Reads a prefix length ("24") or a mask ("255.255.255.0"); nothing means all bits.
pub fn prefix_length(text: &str, ip: &Ip) -> Result<u8> {
    let bits = (ip.bytes().len() * 8) as u8;
    if text.is_empty() {
        return Ok(bits);
    }
    let refuse = || Error::invalid(format!("{text:?} is no prefix length for {ip}"));
    if let Ok(mask) = text.parse::<IpAddr>() {
        let mask = Ip::new(mask);
        let ones: u32 = mask.bytes().iter().map(|byte| byte.count_ones()).sum();
        return if mask.bytes().len() == ip.bytes().len() {
            Ok(ones as u8)
        } else {
            Err(refuse())
        };
    }
    text.parse().ok().filter(|length| *length <= bits).ok_or_else(refuse)
}

/// Reads a hardware address: six bytes in hexadecimal, between colons.
pub fn parse_mac(text: &str) -> Result<Vec<u8>> {
    let bytes: Option<Vec<u8>> = text.split(':').map(|part| u8::from_str_radix(part, 16).ok()).collect();
    let refuse = || Error::invalid(format!("{text:?} is no hardware address"));
    bytes.filter(|bytes| bytes.len() == 6).ok_or_else(refuse)
}

/// Writes a hardware address.
pub fn mac_text(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<Vec<_>>()
        .join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_and_lengths_are_prefix_lengths() {
        let v4 = parse_ip("10.0.0.1").unwrap();
        assert_eq!(prefix_length("24", &v4).unwrap(), 24);
        assert_eq!(prefix_length("255.255.0.0", &v4).unwrap(), 16);
        assert_eq!(prefix_length("", &parse_ip("fe80::1").unwrap()).unwrap(), 128);
        assert!(prefix_length("33", &v4).is_err());
    }

    #[test]
    fn hardware_addresses_read_back() {
        let bytes = parse_mac("52:54:00:Ab:00:01").unwrap();
        assert_eq!(mac_text(&bytes), "52:54:00:ab:00:01");
        assert!(parse_mac("52:54").is_err());
    }
}
