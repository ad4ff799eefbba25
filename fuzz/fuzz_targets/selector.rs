//! Gives `evenkeel_fuzz::selector` to libFuzzer.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| evenkeel_fuzz::selector(data));
