//! Gives `evenkeel_fuzz::process_spec` to libFuzzer.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| evenkeel_fuzz::process_spec(data));
