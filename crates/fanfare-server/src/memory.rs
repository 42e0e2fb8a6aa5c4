//! The memory allocator's settings. The only unsafe code of the program.

/// Allocations of at least this size, in bytes, get their own pages, which return to the system when they are freed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE: libc::c_int = 128 << 10;

/// Fixes glibc's threshold for allocations with their own pages (mallopt(3)). By default glibc raises it to the size of
/// the largest allocation freed so far. Hashing one password (19 MiB) would raise it so far that growing tables leave
/// holes in the heap, and a connection would cost half as much memory again.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "a setting of the C library, which the standard library does not offer")]
pub(crate) fn set_mmap_threshold() {
    // SAFETY: the call takes two numbers by value, and no other thread runs yet. If it fails, nothing changes.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE) };
}

/// Other C libraries return large allocations to the system by themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) const fn set_mmap_threshold() {}
