"""The processors of the Raspberry Pi boards as Linux describes them.

Part numbers: Arm's Technical Reference Manuals (MIDR_EL1). Features: what those cores have as Linux names it in
HWCAP, Documentation/arch/arm64/elf_hwcaps.rst. The boards' cores have no cryptographic extension but the A76; QEMU's
have, and XNNPACK does not use it.
"""

from __future__ import annotations

from dataclasses import dataclass

_ARMV8_0 = "fp asimd evtstrm crc32 cpuid"
_ARMV8_2 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"


@dataclass(frozen=True)
class Core:
    """A core that QEMU emulates as ``-cpu name``."""

    name: str
    part: int
    features: str
    model: str

    def cpuinfo(self, count: int = 4) -> str:
        """What /proc/cpuinfo says on a board with ``count`` of them: LiteRT picks its kernels by that, and must find
        what QEMU emulates.
        """
        blocks = [
            f"processor\t: {index}\nBogoMIPS\t: 108.00\nFeatures\t: {self.features}\nCPU implementer\t: 0x41\n"
            f"CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0x{self.part:03x}\nCPU revision\t: 0\n"
            for index in range(count)
        ]
        return "\n".join([*blocks, f"Model\t\t: {self.model}, emulated by QEMU\n"])


CORES = {
    core.name: core
    for core in (
        Core("cortex-a53", 0xD03, _ARMV8_0, "Raspberry Pi 3 or Zero 2 W"),
        Core("cortex-a72", 0xD08, _ARMV8_0, "Raspberry Pi 4"),
        Core("cortex-a76", 0xD0B, _ARMV8_2, "Raspberry Pi 5"),
    )
}
CORE_OF_TARGET = {
    "raspberry-pi-3": "cortex-a53",
    "raspberry-pi-zero-2w": "cortex-a53",
    "raspberry-pi-4": "cortex-a72",
    "raspberry-pi-5": "cortex-a76",
}
