//! System call filters, by libseccomp (its C interface: seccomp(3) manual pages).

use crate::error::{errno_text, Error, Result};
use crate::proto::grpc::{linux_syscall::ErrnoRet, LinuxSeccomp, LinuxSeccompArg, LinuxSyscall};
use nix::errno::Errno;
use std::ffi::{c_char, c_int, c_uint, c_void, CString};

#[repr(C)]
struct ArgCompare {
    arg: c_uint,
    op: c_int,
    datum_a: u64,
    datum_b: u64,
}

extern "C" {
    fn seccomp_init(default_action: u32) -> *mut c_void;
    fn seccomp_release(context: *mut c_void);
    fn seccomp_arch_add(context: *mut c_void, arch: u32) -> c_int;
    fn seccomp_arch_resolve_name(name: *const c_char) -> u32;
    fn seccomp_attr_set(context: *mut c_void, attribute: c_int, value: u32) -> c_int;
    fn seccomp_syscall_resolve_name(name: *const c_char) -> c_int;
    fn seccomp_rule_add_array(
        context: *mut c_void,
        action: u32,
        syscall: c_int,
        count: c_uint,
        compares: *const ArgCompare,
    ) -> c_int;
    fn seccomp_load(context: *const c_void) -> c_int;
}

const ATTR_CTL_NNP: c_int = 3;
const ATTR_CTL_TSYNC: c_int = 4;
const ATTR_CTL_LOG: c_int = 6;
const ATTR_CTL_SSB: c_int = 7;
const ATTR_CTL_OPTIMIZE: c_int = 8;
/// libseccomp's answer for a name that it does not know.
const NR_SCMP_ERROR: c_int = -1;

/// A compiled filter.
pub struct Filter(*mut c_void);

impl Drop for Filter {
    fn drop(&mut self) {
        unsafe { seccomp_release(self.0) }
    }
}

impl Filter {
    /// Compiles an OCI profile; None when it allows everything.
    pub fn compile(profile: &LinuxSeccomp) -> Result<Option<Self>> {
        if profile.default_action.is_empty() {
            return Ok(None);
        }
        let default = action(&profile.default_action, None)?;
        if profile.syscalls.is_empty() && default == action("SCMP_ACT_ALLOW", None)? {
            return Ok(None);
        }
        let context = unsafe { seccomp_init(default) };
        if context.is_null() {
            return Err(Error::invalid("seccomp: the default action is refused"));
        }
        let filter = Self(context);
        for name in &profile.architectures {
            filter.add_architecture(name)?;
        }
        // no_new_privs is the spec's to set. The binary tree keeps large filters fast.
        filter.attribute(ATTR_CTL_NNP, 0, "no_new_privs")?;
        let _ = unsafe { seccomp_attr_set(context, ATTR_CTL_OPTIMIZE, 2) };
        for flag in &profile.flags {
            match flag.as_str() {
                "SECCOMP_FILTER_FLAG_TSYNC" => filter.attribute(ATTR_CTL_TSYNC, 1, flag)?,
                "SECCOMP_FILTER_FLAG_LOG" => filter.attribute(ATTR_CTL_LOG, 1, flag)?,
                "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => filter.attribute(ATTR_CTL_SSB, 1, flag)?,
                _ => return Err(Error::invalid(format!("seccomp: the flag {flag:?} is not supported"))),
            }
        }
        for syscall in &profile.syscalls {
            filter.add_rule(syscall, default)?;
        }
        Ok(Some(filter))
    }

    /// Puts the filter into force for this process and what it becomes.
    pub fn load(&self) -> Result<()> {
        done(unsafe { seccomp_load(self.0) }, || "seccomp: load the filter".into())
    }

    fn attribute(&self, attribute: c_int, value: u32, name: &str) -> Result<()> {
        done(unsafe { seccomp_attr_set(self.0, attribute, value) }, || {
            format!("seccomp: set {name}")
        })
    }

    fn add_architecture(&self, name: &str) -> Result<()> {
        let short = name.strip_prefix("SCMP_ARCH_").unwrap_or(name).to_ascii_lowercase();
        let known = CString::new(short).map_err(|_| Error::invalid("seccomp: an architecture with a NUL byte"))?;
        let arch = unsafe { seccomp_arch_resolve_name(known.as_ptr()) };
        if arch == 0 {
            return Err(Error::invalid(format!("seccomp: there is no architecture {name:?}")));
        }
        match unsafe { seccomp_arch_add(self.0, arch) } {
            code if code == -libc::EEXIST => Ok(()),
            code => done(code, || format!("seccomp: add the architecture {name}")),
        }
    }

    fn add_rule(&self, rule: &LinuxSyscall, default: u32) -> Result<()> {
        let errno = rule.errno_ret.as_ref().map(|ErrnoRet::Errnoret(number)| *number);
        let action = action(&rule.action, errno)?;
        if action == default {
            return Ok(());
        }
        for name in &rule.names {
            let known = CString::new(name.as_str()).map_err(|_| Error::invalid("seccomp: a name with a NUL byte"))?;
            let number = unsafe { seccomp_syscall_resolve_name(known.as_ptr()) };
            // Profiles name calls that other kernels have: those can't be made here.
            if number == NR_SCMP_ERROR {
                continue;
            }
            for compares in groups(&rule.args)? {
                let code = unsafe {
                    seccomp_rule_add_array(self.0, action, number, compares.len() as c_uint, compares.as_ptr())
                };
                done(code, || format!("seccomp: add a rule for {name}"))?;
            }
        }
        Ok(())
    }
}

/// Conditions that libseccomp takes in one rule. It knows one comparison per argument: a rule with two on the same argument
/// means "either", and becomes one rule for each.
fn groups(arguments: &[LinuxSeccompArg]) -> Result<Vec<Vec<ArgCompare>>> {
    let repeated = arguments
        .iter()
        .enumerate()
        .any(|(at, arg)| arguments[..at].iter().any(|other| other.index == arg.index));
    let compares = arguments.iter().map(compare).collect::<Result<Vec<_>>>()?;
    Ok(if repeated {
        compares.into_iter().map(|one| vec![one]).collect()
    } else {
        vec![compares]
    })
}

fn compare(argument: &LinuxSeccompArg) -> Result<ArgCompare> {
    const OPERATORS: [&str; 7] = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"];
    let short = argument.op.strip_prefix("SCMP_CMP_").unwrap_or(&argument.op);
    let op = OPERATORS.iter().position(|known| *known == short);
    let op = op.ok_or_else(|| Error::invalid(format!("seccomp: there is no operator {:?}", argument.op)))?;
    if argument.index > 5 {
        return Err(Error::invalid(format!(
            "seccomp: a system call has no argument {}",
            argument.index
        )));
    }
    Ok(ArgCompare {
        arg: argument.index as c_uint,
        op: op as c_int + 1,
        datum_a: argument.value,
        datum_b: argument.value_two,
    })
}

/// The number of an action as <linux/seccomp.h> has it.
fn action(name: &str, errno: Option<u32>) -> Result<u32> {
    let data = errno.unwrap_or(libc::EPERM as u32) & 0xffff;
    Ok(match name {
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => 0,
        "SCMP_ACT_KILL_PROCESS" => 0x8000_0000,
        "SCMP_ACT_TRAP" => 0x0003_0000,
        "SCMP_ACT_ERRNO" => 0x0005_0000 | data,
        "SCMP_ACT_TRACE" => 0x7ff0_0000 | data,
        "SCMP_ACT_LOG" => 0x7ffc_0000,
        "SCMP_ACT_ALLOW" => 0x7fff_0000,
        _ => return Err(Error::invalid(format!("seccomp: the action {name:?} is not supported"))),
    })
}

fn done(code: c_int, what: impl FnOnce() -> String) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    Err(Error::internal(format!(
        "{}: {}",
        what(),
        errno_text(Errno::from_raw(-code))
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_with_comparisons_compiles() {
        let rule = LinuxSyscall {
            names: vec!["personality".into(), "no_such_call".into()],
            action: "SCMP_ACT_ERRNO".into(),
            args: vec![LinuxSeccompArg {
                index: 0,
                value: 8,
                value_two: 0,
                op: "SCMP_CMP_EQ".into(),
            }],
            errno_ret: Some(ErrnoRet::Errnoret(38)),
        };
        let profile = LinuxSeccomp {
            default_action: "SCMP_ACT_ALLOW".into(),
            architectures: vec!["SCMP_ARCH_X86_64".into(), "SCMP_ARCH_X86".into()],
            flags: vec![],
            syscalls: vec![rule],
        };
        assert!(Filter::compile(&profile).unwrap().is_some());
    }

    #[test]
    fn an_unknown_action_is_named() {
        let profile = LinuxSeccomp {
            default_action: "SCMP_ACT_DANCE".into(),
            ..LinuxSeccomp::default()
        };
        let error = Filter::compile(&profile).err().unwrap();
        assert!(error.text.contains("SCMP_ACT_DANCE"));
    }
}
