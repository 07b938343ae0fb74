//! Which devices a container may use: a BPF program on its cgroup (type BPF_PROG_TYPE_CGROUP_DEVICE of <linux/bpf.h>). Without it a
//! container that may make device nodes could read its neighbours' disks.

use crate::error::{Context, Error, Result};
use crate::proto::grpc::{LinuxDevice, LinuxDeviceCgroup, Spec};
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;
const ALL: i32 = MKNOD | READ | WRITE;
const BLOCK: i32 = 1;
const CHAR: i32 = 2;
/// Stands for every number.
const ANY: i64 = -1;
/// Rules that a spec may bring; the kernel takes 4096 instructions from a program, and a rule has at most 8.
const RULES_MAX: usize = 400;

/// One rule. The last one that matches an access decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    allow: bool,
    /// BLOCK, CHAR, or 0 for both.
    kind: i32,
    access: i32,
    major: i64,
    minor: i64,
}

/// Limits the cgroup to the devices that the spec's rules allow, those of every container, and making (not opening) any node. A spec without
/// rules, as Kata's shim sends it, means the devices that it names. A container whose rules end with "everything is allowed" (a privileged
/// one) is not limited; a capability alone is no sign of that.
pub fn limit(cgroup: BorrowedFd, spec: &Spec) -> Result<()> {
    match rules(spec)? {
        Some(rules) => attach(cgroup, &program(&rules)).context("limit the container's devices"),
        None => Ok(()),
    }
}

/// The rules of a spec; None when everything is allowed.
fn rules(spec: &Spec) -> Result<Option<Vec<Rule>>> {
    let linux = spec.linux.clone().unwrap_or_default();
    let given = linux.resources.unwrap_or_default().devices;
    let mut rules: Vec<Rule> = given.iter().map(from_spec).collect::<Result<_>>()?;
    if rules.last() == Some(&everything()) {
        return Ok(None);
    }
    if rules.is_empty() {
        rules.extend(linux.devices.iter().map(from_device));
    }
    if rules.len() > RULES_MAX {
        let text = format!(
            "the spec has {} device rules: at most {RULES_MAX} are taken",
            rules.len()
        );
        return Err(Error::invalid(text));
    }
    rules.extend(base());
    Ok(Some(rules))
}

fn everything() -> Rule {
    Rule {
        allow: true,
        kind: 0,
        access: ALL,
        major: ANY,
        minor: ANY,
    }
}

fn nothing() -> Rule {
    Rule {
        allow: false,
        ..everything()
    }
}

/// What every container may use, as runtimes agree: null, zero, full, random, urandom, tty, console, ptmx, terminals.
fn base() -> Vec<Rule> {
    let numbers = [
        (1, 3),
        (1, 5),
        (1, 7),
        (1, 8),
        (1, 9),
        (5, 0),
        (5, 1),
        (5, 2),
        (136, ANY),
    ];
    let usable = |(major, minor)| Rule {
        allow: true,
        kind: CHAR,
        access: ALL,
        major,
        minor,
    };
    let makeable = Rule {
        access: MKNOD,
        ..everything()
    };
    numbers.into_iter().map(usable).chain([makeable]).collect()
}

fn from_spec(rule: &LinuxDeviceCgroup) -> Result<Rule> {
    let kind = match rule.r#type.as_str() {
        "b" => BLOCK,
        "c" | "u" => CHAR,
        "a" | "" => 0,
        other => {
            return Err(Error::invalid(format!(
                "a device rule has the type {other:?}: use a, b or c"
            )))
        }
    };
    if rule.access.chars().any(|letter| !"rwm".contains(letter)) {
        let text = format!("a device rule has the access {:?}: use letters of rwm", rule.access);
        return Err(Error::invalid(text));
    }
    let bit = |letter, bit| if rule.access.contains(letter) { bit } else { 0 };
    let access = match rule.access.as_str() {
        "" => ALL,
        _ => bit('m', MKNOD) | bit('r', READ) | bit('w', WRITE),
    };
    // The protocol has no "absent" number: type "a" means all, and so does a negative one.
    let number = |value: i64| if kind == 0 || value < 0 { ANY } else { value };
    Ok(Rule {
        allow: rule.allow,
        kind,
        access,
        major: number(rule.major),
        minor: number(rule.minor),
    })
}

fn from_device(device: &LinuxDevice) -> Rule {
    let kind = if device.r#type == "b" { BLOCK } else { CHAR };
    Rule {
        allow: true,
        kind,
        access: ALL,
        major: device.major,
        minor: device.minor,
    }
}

/// One instruction: operation, registers (target in the low half), jump offset, constant.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    constant: i32,
}

const LOAD_WORD: u8 = 0x61;
const MOVE_REGISTER: u8 = 0xbc;
const MOVE: u8 = 0xb4;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const JUMP_UNEQUAL: u8 = 0x55;
const JUMP_UNEQUAL_REGISTER: u8 = 0x5d;
const JUMP_EQUAL: u8 = 0x15;
const EXIT: u8 = 0x95;

/// The context has three words: access << 16 | kind, major, minor. They go to registers 2 (kind), 3 (access), 4, 5.
fn program(rules: &[Rule]) -> Vec<Instruction> {
    let op = |code, target: u8, source: u8, offset, constant| Instruction {
        code,
        registers: target | source << 4,
        offset,
        constant,
    };
    let mut out = vec![
        op(LOAD_WORD, 2, 1, 0, 0),
        op(MOVE_REGISTER, 3, 2, 0, 0),
        op(AND, 2, 0, 0, 0xffff),
        op(SHIFT_RIGHT, 3, 0, 0, 16),
        op(LOAD_WORD, 4, 1, 4, 0),
        op(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let mut part = Vec::new();
        if rule.kind != 0 {
            part.push(op(JUMP_UNEQUAL, 2, 0, 0, rule.kind));
        }
        if rule.access != ALL {
            part.extend([op(MOVE_REGISTER, 1, 3, 0, 0), op(AND, 1, 0, 0, rule.access)]);
            // Allowed: all that is asked. Denied: any of it.
            part.push(if rule.allow {
                op(JUMP_UNEQUAL_REGISTER, 1, 3, 0, 0)
            } else {
                op(JUMP_EQUAL, 1, 0, 0, 0)
            });
        }
        for (register, number) in [(4, rule.major), (5, rule.minor)] {
            if number != ANY {
                part.push(op(JUMP_UNEQUAL, register, 0, 0, number as i32));
            }
        }
        part.extend([op(MOVE, 0, 0, 0, rule.allow.into()), op(EXIT, 0, 0, 0, 0)]);
        let length = part.len();
        for (at, instruction) in part.iter_mut().enumerate() {
            if matches!(instruction.code, JUMP_UNEQUAL | JUMP_UNEQUAL_REGISTER | JUMP_EQUAL) {
                instruction.offset = (length - at - 1) as i16;
            }
        }
        out.extend(part);
        // The kernel refuses a program with instructions that it can't reach.
        if *rule == everything() || *rule == nothing() {
            return out;
        }
    }
    out.extend([op(MOVE, 0, 0, 0, 0), op(EXIT, 0, 0, 0, 0)]);
    out
}

/// Loads the program and ties it to the cgroup, which keeps it.
fn attach(cgroup: BorrowedFd, program: &[Instruction]) -> Result<()> {
    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        rest: [u64; 4],
    }
    #[repr(C)]
    struct Attach {
        target: u32,
        program: u32,
        place: u32,
        flags: u32,
    }
    const PROG_LOAD: i32 = 5;
    const PROG_ATTACH: i32 = 8;
    const TYPE_CGROUP_DEVICE: u32 = 15;
    const PLACE_CGROUP_DEVICE: u32 = 6;
    const ALLOW_MULTI: u32 = 2;
    let load = Load {
        kind: TYPE_CGROUP_DEVICE,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        rest: [0; 4],
    };
    let fd = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const load, std::mem::size_of::<Load>()) };
    if fd < 0 {
        return Err(Errno::last()).context("load the BPF program");
    }
    let loaded = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let tie = Attach {
        target: cgroup.as_raw_fd() as u32,
        program: loaded.as_raw_fd() as u32,
        place: PLACE_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    let code = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_ATTACH,
            &raw const tie,
            std::mem::size_of::<Attach>(),
        )
    };
    if code < 0 {
        return Err(Errno::last()).context("attach the BPF program");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::grpc::{Linux, LinuxResources};

    /// What the program answers, step by step as the kernel would.
    fn decide(program: &[Instruction], kind: i32, access: i32, major: i32, minor: i32) -> bool {
        let mut registers = [0i64; 16];
        let context = [access << 16 | kind, major, minor];
        let mut at = 0;
        loop {
            let step = program[at];
            let (target, source) = ((step.registers & 15) as usize, (step.registers >> 4) as usize);
            let mut jump = false;
            match step.code {
                LOAD_WORD => registers[target] = context[step.offset as usize / 4].into(),
                MOVE_REGISTER => registers[target] = registers[source],
                MOVE => registers[target] = step.constant.into(),
                AND => registers[target] &= i64::from(step.constant),
                SHIFT_RIGHT => registers[target] >>= step.constant,
                JUMP_UNEQUAL => jump = registers[target] != i64::from(step.constant),
                JUMP_EQUAL => jump = registers[target] == i64::from(step.constant),
                JUMP_UNEQUAL_REGISTER => jump = registers[target] != registers[source],
                EXIT => return registers[0] == 1,
                other => panic!("instruction {other:#x}"),
            }
            at += 1 + if jump { step.offset as usize } else { 0 };
        }
    }

    fn spec(devices: Vec<LinuxDeviceCgroup>) -> Spec {
        let resources = Some(LinuxResources {
            devices,
            ..LinuxResources::default()
        });
        Spec {
            linux: Some(Linux {
                resources,
                ..Linux::default()
            }),
            ..Spec::default()
        }
    }

    #[test]
    fn an_ordinary_container_reads_null_and_no_disk() {
        let program = program(&rules(&spec(vec![])).unwrap().unwrap());
        assert!(decide(&program, CHAR, READ | WRITE, 1, 3));
        assert!(decide(&program, CHAR, READ, 136, 7));
        assert!(decide(&program, BLOCK, MKNOD, 254, 0));
        assert!(!decide(&program, BLOCK, READ, 254, 0));
        assert!(!decide(&program, CHAR, READ, 1, 1));
    }

    #[test]
    fn the_last_matching_rule_decides() {
        let rule = |allow, kind: &str, major, access: &str| LinuxDeviceCgroup {
            allow,
            r#type: kind.into(),
            major,
            minor: ANY,
            access: access.into(),
        };
        let given = vec![
            rule(false, "a", ANY, "rwm"),
            rule(true, "b", 8, "rwm"),
            rule(false, "b", 8, "w"),
        ];
        let program = program(&rules(&spec(given)).unwrap().unwrap());
        assert!(decide(&program, BLOCK, READ, 8, 0));
        assert!(!decide(&program, BLOCK, READ | WRITE, 8, 0));
        assert!(!decide(&program, BLOCK, READ, 9, 0));
    }

    fn allow_all(kind: &str, access: &str) -> LinuxDeviceCgroup {
        LinuxDeviceCgroup {
            allow: true,
            r#type: kind.into(),
            access: access.into(),
            ..LinuxDeviceCgroup::default()
        }
    }

    #[test]
    fn a_privileged_container_is_not_limited() {
        assert_eq!(rules(&spec(vec![allow_all("a", "rwm")])), Ok(None));
        assert_eq!(rules(&spec(vec![allow_all("", "")])), Ok(None));
        assert!(rules(&spec(vec![allow_all("a", "rw")])).unwrap().is_some());
    }

    #[test]
    fn rules_of_no_meaning_are_refused() {
        for (kind, access) in [("p", "rwm"), ("a", "rx")] {
            let error = rules(&spec(vec![allow_all(kind, access)])).unwrap_err();
            assert!(error.text.contains("device rule"), "{error}");
        }
        let many = vec![allow_all("b", "r"); RULES_MAX + 1];
        assert!(rules(&spec(many)).unwrap_err().text.contains("401"));
    }
}
