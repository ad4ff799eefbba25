//! Gives `evenkeel_fuzz::manifest` to libFuzzer.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| evenkeel_fuzz::manifest(data));
