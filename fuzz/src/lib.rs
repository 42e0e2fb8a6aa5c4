//! The checks of the fuzz targets, without the fuzzer. The tests of fanfare-core include these files by path, so that
//! ordinary tests run the checks too.

pub mod frames;
pub mod session;
