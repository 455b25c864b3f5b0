#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dragonwire::fuzzing::directory_answers(data));
