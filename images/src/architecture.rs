// SPDX-License-Identifier: Apache-2.0
//! Names of processor architectures.

/// Rust's name, Go's (which images use: OCI image-spec v1.1 image-index.md) and Debian's.
const NAMES: [(&str, &str, &str); 11] = [
    ("x86_64", "amd64", "amd64"),
    ("aarch64", "arm64", "arm64"),
    ("arm", "arm", "armhf"),
    ("x86", "386", "i386"),
    (
        "powerpc64",
        if cfg!(target_endian = "little") {
            "ppc64le"
        } else {
            "ppc64"
        },
        "ppc64el",
    ),
    ("s390x", "s390x", "s390x"),
    ("riscv64", "riscv64", "riscv64"),
    ("loongarch64", "loong64", "loong64"),
    (
        "mips64",
        if cfg!(target_endian = "little") {
            "mips64le"
        } else {
            "mips64"
        },
        "mips64el",
    ),
    (
        "mips",
        if cfg!(target_endian = "little") {
            "mipsle"
        } else {
            "mips"
        },
        "mipsel",
    ),
    ("sparc64", "sparc64", "sparc64"),
];

/// Returns the architecture of this machine as images name it.
pub fn host_architecture() -> &'static str {
    let host = std::env::consts::ARCH;
    NAMES
        .iter()
        .find(|(rust, ..)| *rust == host)
        .map_or(host, |(_, go, _)| go)
}

/// Returns Debian's name of an architecture that is given as images name it.
pub(crate) fn debian_name(architecture: &str) -> &str {
    NAMES
        .iter()
        .find(|(_, go, _)| *go == architecture)
        .map_or(architecture, |(.., debian)| debian)
}
