//! Gives `evenkeel_fuzz::stored_values` to libFuzzer.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| evenkeel_fuzz::stored_values(data));
