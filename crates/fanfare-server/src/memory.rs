//! How the C library keeps what is freed. The one place of the program that is not checked by the compiler.

/// What is at least so large has pages of its own, which go back to the system when it is freed, in bytes.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE: libc::c_int = 128 << 10;

/// Has the C library give large pieces pages of their own for good (mallopt(3)). By itself it raises what is large to the
/// largest piece ever freed: the 19 MiB of a single password's hash, after which each table that grows leaves a hole
/// behind where it was, and a connection costs half as much memory again.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "a setting of the C library, which the standard library does not offer")]
pub(crate) fn set_mmap_threshold() {
    // SAFETY: it takes two numbers by value, and this is the only thread so far. Where it fails, all stays as it is.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE) };
}

/// Other C libraries give back what is large.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) const fn set_mmap_threshold() {}
