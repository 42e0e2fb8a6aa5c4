//! The application's log filter, which an administrator can change at runtime.

use std::fmt;

/// Changes the application's log filter at runtime.
pub trait LogSwitch: Send + Sync + fmt::Debug + 'static {
    /// Checks that a filter is valid.
    ///
    /// # Errors
    /// If the filter is not valid: a sentence that states the expected syntax.
    fn check(&self, filter: &str) -> Result<(), String>;

    /// Applies a filter from now on. Must not block.
    fn set(&self, filter: &str);
}
