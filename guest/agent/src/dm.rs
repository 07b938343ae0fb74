//! The kernel's device mapper, by its ioctls (linux/dm-ioctl.h): devices of one target each.

use crate::error::{Context, Error, Result};
use nix::errno::Errno;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

const CONTROL: &str = "/dev/mapper/control";
/// `_IOWR(0xfd, command, struct dm_ioctl)`.
const IOCTL_BASE: u64 = (3 << 30) | ((HEADER_BYTES as u64) << 16) | (0xfd << 8);
const HEADER_BYTES: usize = 312;
const TARGET_BYTES: usize = 40;
const TYPE_BYTES_MAX: usize = 15;
/// Minor numbers that the kernel has.
const MINORS: u32 = 1 << 20;
/// Room for what TABLE_STATUS answers.
const STATUS_BYTES: usize = 4 << 10;
/// The version of the interface that has all that is used here (DM_DEFERRED_REMOVE came with 4.27).
const VERSION: [u32; 3] = [4, 27, 0];

const READONLY: u32 = 1;
const PERSISTENT_DEV: u32 = 1 << 3;
const SECURE_DATA: u32 = 1 << 15;
const DEFERRED_REMOVE: u32 = 1 << 17;

const DEV_CREATE: u64 = 3;
const DEV_REMOVE: u64 = 4;
const DEV_SUSPEND: u64 = 6;
const TABLE_LOAD: u64 = 9;
const TABLE_STATUS: u64 = 12;

/// `struct dm_ioctl` without its last seven bytes of filling, which are written apart.
#[repr(C)]
#[derive(Clone, Copy)]
struct Header {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_nr: u32,
    padding: u32,
    dev: u64,
    name: [u8; 128],
    uuid: [u8; 129],
    data: [u8; 7],
}

const _: () = assert!(std::mem::size_of::<Header>() == HEADER_BYTES);

/// What a device is made of.
pub struct Target<'a> {
    /// The target's name in the kernel: `verity`, `crypt`.
    pub kind: &'a str,
    /// Length in sectors of 512 bytes.
    pub sectors: u64,
    /// The target's own line of parameters.
    pub parameters: &'a str,
    pub readonly: bool,
    /// The parameters hold a key: the kernel wipes its copies.
    pub secret: bool,
}

/// A device that goes with its owner: at once, or with the last who has it open.
#[derive(Debug)]
pub struct Mapped {
    name: String,
    minor: u32,
}

impl Mapped {
    /// Makes a device. `what` becomes a part of its name. Names and numbers are not used again: what the kernel tells late of a device is of no other.
    pub fn create(what: &str, target: &Target) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let minor = NEXT.fetch_add(1, Ordering::Relaxed) % MINORS;
        let name = format!("snp-{what}-{minor}");
        let control = open_control()?;
        let flags = if target.readonly { READONLY } else { 0 };
        let mut message = Message::new(&name, flags | PERSISTENT_DEV, 0);
        message.header_mut().dev = encoded(minor);
        message.call(&control, DEV_CREATE).context("make a device")?;
        // From here on a failure removes it.
        let made = Self { name, minor };
        let secret = if target.secret { SECURE_DATA } else { 0 };
        let mut message = Message::with_target(&made.name, flags | secret, target)?;
        let loaded = message.call(&control, TABLE_LOAD);
        message.wipe();
        loaded.with_context(|| format!("set up the target {}", target.kind))?;
        let mut message = Message::new(&made.name, flags, 0);
        message.call(&control, DEV_SUSPEND).context("start a device")?;
        Ok(made)
    }

    /// The device file.
    pub fn path(&self) -> PathBuf {
        format!("/dev/{}", self.kernel_name()).into()
    }

    /// The name in /sys and in uevents.
    pub fn kernel_name(&self) -> String {
        format!("dm-{}", self.minor)
    }

    /// What the target says of its state (admin-guide/device-mapper of the kernel has what it means).
    pub fn status(&self) -> Result<String> {
        let mut message = Message::new(&self.name, 0, STATUS_BYTES);
        message.call(&open_control()?, TABLE_STATUS).context("ask a device")?;
        let text = message.payload().get(TARGET_BYTES..).unwrap_or_default();
        let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
        Ok(String::from_utf8_lossy(&text[..end]).into_owned())
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let mut message = Message::new(&self.name, DEFERRED_REMOVE, 0);
        let removed = open_control().and_then(|control| Ok(message.call(&control, DEV_REMOVE)?));
        if let Err(error) = removed {
            crate::warn!("the device {} stays: {error}", self.name);
        }
    }
}

fn open_control() -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(CONTROL)
        .with_context(|| format!("open {CONTROL}: does the kernel have CONFIG_BLK_DEV_DM?"))
}

/// A minor number in the kernel's 64-bit form of device numbers; the major number is the kernel's choice.
fn encoded(minor: u32) -> u64 {
    u64::from(minor & 0xff) | u64::from(minor & !0xff) << 12
}

/// A call's buffer: the header and what follows it, aligned as the kernel's structures are.
struct Message(Vec<u64>);

impl Message {
    fn new(name: &str, flags: u32, payload_bytes: usize) -> Self {
        let bytes = HEADER_BYTES + payload_bytes.next_multiple_of(8);
        let mut message = Self(vec![0; bytes / 8]);
        let header = message.header_mut();
        header.version = VERSION;
        header.data_size = bytes as u32;
        header.data_start = HEADER_BYTES as u32;
        header.flags = flags;
        // The names are made above and short.
        header.name[..name.len()].copy_from_slice(name.as_bytes());
        message
    }

    fn with_target(name: &str, flags: u32, target: &Target) -> Result<Self> {
        if target.kind.len() > TYPE_BYTES_MAX || target.parameters.as_bytes().contains(&0) {
            return Err(Error::invalid(
                "a target's name or parameters that the kernel can't take",
            ));
        }
        let bytes = (TARGET_BYTES + target.parameters.len() + 1).next_multiple_of(8);
        let mut message = Self::new(name, flags, bytes);
        message.header_mut().target_count = 1;
        // struct dm_target_spec: sector_start, length, status, next, target_type[16]; then the parameters.
        let payload = message.payload_mut();
        payload[8..16].copy_from_slice(&target.sectors.to_ne_bytes());
        payload[20..24].copy_from_slice(&(bytes as u32).to_ne_bytes());
        payload[24..24 + target.kind.len()].copy_from_slice(target.kind.as_bytes());
        payload[TARGET_BYTES..TARGET_BYTES + target.parameters.len()].copy_from_slice(target.parameters.as_bytes());
        Ok(message)
    }

    fn header_mut(&mut self) -> &mut Header {
        unsafe { &mut *self.0.as_mut_ptr().cast() }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * 8) }
    }

    fn payload(&self) -> &[u8] {
        let bytes: &[u8] = unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * 8) };
        &bytes[HEADER_BYTES..]
    }

    fn payload_mut(&mut self) -> &mut [u8] {
        &mut self.bytes_mut()[HEADER_BYTES..]
    }

    fn call(&mut self, control: &File, command: u64) -> std::result::Result<(), Errno> {
        let request = IOCTL_BASE | command;
        Errno::result(unsafe { libc::ioctl(control.as_raw_fd(), request as _, self.0.as_mut_ptr()) }).map(drop)
    }

    /// Overwrites what may be a key.
    fn wipe(&mut self) {
        for byte in self.bytes_mut() {
            unsafe { std::ptr::write_volatile(byte, 0) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_stands_behind_the_header_with_its_parameters() {
        let target = Target {
            kind: "verity",
            sectors: 80,
            parameters: "1 254:1 254:1",
            readonly: true,
            secret: false,
        };
        let mut message = Message::with_target("snp-verity-0", READONLY, &target).unwrap();
        assert_eq!(message.header_mut().target_count, 1);
        assert_eq!(message.header_mut().data_size as usize, HEADER_BYTES + 56);
        let payload = message.payload();
        assert_eq!(payload[8..16], 80u64.to_ne_bytes());
        assert_eq!(payload[20..24], 56u32.to_ne_bytes());
        assert_eq!(&payload[24..31], b"verity\0");
        assert_eq!(&payload[40..54], b"1 254:1 254:1\0");
    }

    #[test]
    fn a_parameter_with_a_nul_is_refused() {
        let target = Target {
            kind: "verity",
            sectors: 8,
            parameters: "1\0",
            readonly: true,
            secret: false,
        };
        assert!(Message::with_target("a", 0, &target).is_err());
    }

    #[test]
    fn minor_numbers_are_in_two_parts() {
        assert_eq!(encoded(7), 7);
        assert_eq!(encoded(0x102), 0x0010_0002);
    }
}
