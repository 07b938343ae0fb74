"""Launch digests by the Python package sev-snp-measure, the independent check: cases in JSON on standard input, one digest a line on standard output."""

import json
import sys

from sevsnpmeasure import guest, vcpu_types, vmm_types
from sevsnpmeasure.sev_mode import SevMode

for case in json.load(sys.stdin):
    digest = guest.calc_launch_digest(
        SevMode.SEV_SNP,
        case["vcpus"],
        vcpu_types.CPU_SIGS[case["type"]],
        case["ovmf"],
        case["kernel"],
        case["initramfs"],
        case["cmdline"],
        case["features"],
        vmm_type=vmm_types.VMMType[{"qemu": "QEMU"}.get(case["vmm"], case["vmm"])],
    )
    print(digest.hex())
