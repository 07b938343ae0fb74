//! SEV-SNP. Reports come from the kernel's configfs (`Documentation/ABI/testing/configfs-tsm-report`), or from /dev/sev-guest (`Documentation/virt/coco/sev-guest.rst`) where
//! that is missing. Written after these documents: it has not run on hardware.

use super::report::REPORT_BYTES;
use super::{Attested, REPORT_DATA_BYTES};
use crate::error::{Context, Error, Result};
use crate::options::Options;
use nix::errno::Errno;
use nix::mount::{mount, MsFlags};
use std::fs::{self, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// The kernel makes this device when the processor says that SEV-SNP is active (MSR SEV_STATUS, which the host can't change).
const PLATFORM_DEVICE: &str = "/sys/devices/platform/sev-guest";
const DEVICE: &str = "/dev/sev-guest";
const CONFIGFS: &str = "/sys/kernel/config";
const REPORTS: &str = "/sys/kernel/config/tsm/report";
const PROVIDER: &str = "sev_guest";

/// `SNP_GET_REPORT`: _IOWR('S', 0, struct snp_guest_request_ioctl).
const SNP_GET_REPORT: libc::c_ulong = 0xc020_5300;
const MESSAGE_VERSION: u8 = 1;
/// In the answer (MSG_REPORT_RSP) the report's size and the report come at these places.
const ANSWER_BYTES: usize = 4000;
const ANSWER_SIZE: usize = 4;
const ANSWER_REPORT: usize = 32;

/// The guest's firmware interface.
pub struct Snp;

/// struct snp_report_req of the kernel.
#[repr(C)]
struct ReportRequest {
    user_data: [u8; REPORT_DATA_BYTES],
    vmpl: u32,
    reserved: [u8; 28],
}

/// struct snp_guest_request_ioctl of the kernel.
#[repr(C)]
struct GuestRequest {
    message_version: u8,
    request: u64,
    answer: u64,
    /// The firmware's error below, the VMM's above.
    error: u64,
}

impl Snp {
    pub const PLATFORM: &'static str = "snp";

    /// Whether this guest runs under SEV-SNP. A process on a host is none.
    pub fn find(options: &Options) -> Option<Self> {
        let active = options.init && (Path::new(PLATFORM_DEVICE).exists() || Path::new(DEVICE).exists());
        active.then_some(Self)
    }

    pub fn announce(&self) {
        crate::info!("this guest is confidential: SEV-SNP");
    }

    pub fn report(&self, report_data: &[u8; REPORT_DATA_BYTES]) -> Result<Attested> {
        if !Path::new(REPORTS).exists() {
            // Another mount of it, or a kernel without: the next step tells.
            let _ = mount(
                Some("configfs"),
                CONFIGFS,
                Some("configfs"),
                MsFlags::empty(),
                None::<&str>,
            );
        }
        if Path::new(REPORTS).exists() {
            return from_configfs(Path::new(REPORTS), report_data);
        }
        from_device(report_data)
    }
}

/// A folder of configfs, gone when it is dropped.
struct Request(PathBuf);

impl Request {
    fn new(reports: &Path) -> Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let path = reports.join(format!("snp-agent-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Self(path))
    }

    fn read(&self, name: &str) -> Result<Vec<u8>> {
        fs::read(self.0.join(name)).with_context(|| format!("read {name} of the report"))
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// Input to `inblob`, the report from `outblob`; `generation` counts the writes, so that nobody else's answer is taken.
fn from_configfs(reports: &Path, report_data: &[u8; REPORT_DATA_BYTES]) -> Result<Attested> {
    let request = Request::new(reports)?;
    let provider = String::from_utf8_lossy(&request.read("provider")?).trim().to_string();
    if provider != PROVIDER {
        return Err(Error::internal(format!(
            "the kernel's reports are of {provider:?}, not of {PROVIDER:?}"
        )));
    }
    fs::write(request.0.join("inblob"), report_data).context("ask for a report")?;
    let generation = request.read("generation")?;
    let bytes = request.read("outblob")?;
    let certificates = request.read("auxblob").ok().filter(|table| !table.is_empty());
    if request.read("generation")? != generation {
        return Err(Error::internal("another request came between"));
    }
    // Kernels have given the report with what the firmware leaves behind it.
    let bytes = bytes.get(..REPORT_BYTES).map(<[u8]>::to_vec).unwrap_or(bytes);
    Ok(Attested { bytes, certificates })
}

fn from_device(report_data: &[u8; REPORT_DATA_BYTES]) -> Result<Attested> {
    let device = OpenOptions::new().read(true).write(true).open(DEVICE);
    let device = device.with_context(|| format!("open {DEVICE}"))?;
    let request = ReportRequest {
        user_data: *report_data,
        vmpl: 0,
        reserved: [0; 28],
    };
    let mut answer = vec![0u8; ANSWER_BYTES];
    let mut call = GuestRequest {
        message_version: MESSAGE_VERSION,
        request: &raw const request as u64,
        answer: answer.as_mut_ptr() as u64,
        error: 0,
    };
    let code = unsafe { libc::ioctl(device.as_raw_fd(), SNP_GET_REPORT as _, &raw mut call) };
    if code < 0 {
        let error = call.error;
        return Err(Errno::last()).with_context(|| format!("ask the firmware for a report (error {error:#x})"));
    }
    Ok(Attested {
        bytes: from_answer(&answer)?,
        certificates: None,
    })
}

/// MSG_REPORT_RSP: status, size (both 32 bits), 24 bytes reserved, the report.
fn from_answer(answer: &[u8]) -> Result<Vec<u8>> {
    let word = |at: usize| {
        answer
            .get(at..at + 4)
            .and_then(|bytes| Some(u32::from_le_bytes(bytes.try_into().ok()?)))
    };
    let size = word(ANSWER_SIZE).unwrap_or(0) as usize;
    match (word(0), answer.get(ANSWER_REPORT..ANSWER_REPORT + size)) {
        (Some(0), Some(report)) if size == REPORT_BYTES => Ok(report.to_vec()),
        (status, _) => Err(Error::internal(format!(
            "the firmware's answer has the status {} and {size} bytes",
            status.unwrap_or_default()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_have_the_kernel_s_sizes() {
        assert_eq!(size_of::<ReportRequest>(), 96);
        assert_eq!(size_of::<GuestRequest>(), 32);
    }

    #[test]
    fn a_report_is_taken_out_of_the_firmware_s_answer() {
        let mut answer = vec![0u8; ANSWER_BYTES];
        answer[4..8].copy_from_slice(&(REPORT_BYTES as u32).to_le_bytes());
        answer[32] = 3;
        assert_eq!(from_answer(&answer).unwrap()[0], 3);
        answer[0] = 0x16;
        assert!(from_answer(&answer).unwrap_err().text.contains("status 22"));
        answer[0] = 0;
        answer[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(from_answer(&answer).is_err());
    }

    #[test]
    fn a_process_on_a_host_is_not_confidential() {
        let options = Options {
            init: false,
            ..Options::from_kernel("")
        };
        assert!(Snp::find(&options).is_none());
    }
}
