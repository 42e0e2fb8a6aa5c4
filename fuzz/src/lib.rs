//! What the fuzz targets demand, apart from the fuzzer, so that ordinary tests run it too: the tests of fanfare-core
//! include these files by path.

pub mod frames;
pub mod session;
