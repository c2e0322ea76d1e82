"""An ARM board made of files: Debian's arm64 packages and aarch64 wheels under QEMU. `make virtual-board` builds it."""
