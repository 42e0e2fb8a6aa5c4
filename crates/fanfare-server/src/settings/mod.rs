//! What the server is set to: one table of settings, the sources they come from, and how they are shown.
//!
//! What somebody wrote ([`Sources`], text with its origin) becomes what runs ([`Settings`], parsed and consistent).

mod dotenv;
mod exposed;
pub(crate) mod kind;
mod load;
pub(crate) mod print;
mod sources;
mod table;

pub(crate) use exposed::Exposed;
pub(crate) use load::{Loaded, SettingsError, load};
pub(crate) use sources::Sources;
pub(crate) use table::{Setting, Settings, TABLE};
