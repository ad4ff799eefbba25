//! Gives `evenkeel_fuzz::guard_messages` to libFuzzer.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| evenkeel_fuzz::guard_messages(data));
