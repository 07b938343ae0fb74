//! The agent's capabilities, in a file without anything else: the bench's guest that does nothing (`bench/null-vmm`) announces the same.

/// What this agent takes beyond Kata's protocol (docs/contracts.md).
pub const FEATURES: &[&str] = &[
    "snp.streams.v1",
    "snp.limits.v1",
    "snp.files.v1",
    "snp.pidns.v1",
    "snp.forward.v1",
    "snp.volumes.v1",
    "snp.mounts.v1",
    "snp.pci.v1",
    "snp.hugepages.v1",
    "snp.verity.v1",
    "snp.scratch.v1",
    "snp.damage.v1",
    "snp.late-binding.v1",
];
