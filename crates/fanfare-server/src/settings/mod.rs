//! The settings of the hub: a table of all settings, their sources, and how they are printed.
//!
//! [`Sources`] (texts with their origins) are loaded into [`Settings`] (parsed, and checked against each other).

mod database_url;
mod dotenv;
mod error;
mod exposed;
pub(crate) mod kind;
mod load;
pub(crate) mod print;
mod sources;
mod table;

pub(crate) use database_url::DatabaseUrl;
pub(crate) use error::SettingsError;
pub(crate) use exposed::Exposed;
pub(crate) use load::{Loaded, load};
pub(crate) use sources::Sources;
pub(crate) use table::{Setting, Settings, TABLE};
