//! Gives `evenkeel_fuzz::http_request` to libFuzzer.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| evenkeel_fuzz::http_request(data));
