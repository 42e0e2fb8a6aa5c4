//! Tests of the benchmark's pure parts, under `cargo test`.

#![allow(dead_code, reason = "the benchmark uses these, and this target only tests them")]

mod args;
mod event;
#[path = "../../src/bench/frame.rs"]
mod frame;
mod stats;

mod args_tests {
    use crate::args::*;

    fn parse(line: &str) -> anyhow::Result<Options> {
        Options::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn options_are_read() {
        let options = parse("--only quiet --json out.json --bench").unwrap();
        assert!(options.bench && options.wants("quiet") && !options.wants("publish"));
        assert_eq!(options.json, Some("out.json".into()));
        assert!(parse("").unwrap().wants("publish"));
    }

    #[test]
    fn wrong_options_are_named() {
        for (line, expected) in [("--only", "needs a value"), ("--only x", "one of quiet"), ("--fast", "--fast")] {
            assert!(parse(line).unwrap_err().to_string().contains(expected), "{line}");
        }
    }

    #[test]
    fn values_are_read_by_name() {
        let values = Values::parse(["a=1", "b=x=y"].map(str::to_owned).into_iter()).unwrap();
        assert_eq!((values.get::<u8>("a").ok(), values.get::<String>("b").ok()), (Some(1), Some("x=y".to_owned())));
        assert!(values.get::<u8>("b").is_err() && values.get::<u8>("c").is_err());
    }
}

mod event_tests {
    use crate::event::*;

    #[test]
    fn an_event_is_json_of_a_fixed_length_and_parses() {
        let json = write(42, 123_456_789);
        assert_eq!(json.len(), LENGTH);
        assert!(serde_json::from_slice::<serde_json::Value>(&json).is_ok());
        assert_eq!((counter(&json), sent_ns(&json)), (Some(42), Some(123_456_789)));
    }

    #[test]
    fn a_modified_event_is_rejected() {
        for at in [0, 30, 150, LENGTH - 1] {
            let mut json = write(1, 1);
            json[at] = b'!';
            assert_eq!(counter(&json), None, "{at}");
        }
        assert_eq!(counter(&write(1, 1)[1..]), None);
    }

    #[test]
    fn a_batch_is_an_array_of_its_events() {
        let events: Vec<_> = (1..=3).map(|n| write(n, 0)).collect();
        let json = batch(events.iter().cloned());
        let read: Vec<&serde_json::value::RawValue> = serde_json::from_slice(&json).unwrap();
        assert!(read.iter().map(|event| event.get().as_bytes()).eq(events.iter().map(Vec::as_slice)));
    }
}

mod frame_tests {
    use crate::frame::*;

    #[test]
    fn frames_of_every_length_form_are_read() {
        for size in [0, 1, 125, 126, 200, 65_535] {
            let payload = vec![b'x'; size];
            let mut bytes = unmasked(TEXT, &payload);
            let length = bytes.len();
            bytes.extend_from_slice(b"next");
            assert_eq!(parse(&bytes), Ok(Some(Frame { opcode: TEXT, payload: &payload, length })), "{size}");
        }
        let mut long = vec![0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0];
        long.resize(10 + 65_536, 7);
        assert_eq!(parse(&long).map(|frame| frame.map(|f| (f.opcode, f.length))), Ok(Some((2, 10 + 65_536))));
    }

    #[test]
    fn an_incomplete_frame_is_buffered() {
        let bytes = unmasked(TEXT, &[b'x'; 300]);
        assert!((0..bytes.len()).all(|end| parse(&bytes[..end]) == Ok(None)));
    }

    #[test]
    fn masked_fragmented_and_extended_frames_are_rejected() {
        for first_two in [[0x81, 0x80], [0x01, 0x00], [0xc1, 0x00]] {
            assert!(parse(&first_two).is_err(), "{first_two:?}");
        }
    }

    #[test]
    fn a_client_frame_has_the_mask_bit_and_key() {
        assert_eq!(masked(PONG, b"hi"), [0x8a, 0x82, 0, 0, 0, 0, b'h', b'i']);
    }
}

mod stats_tests {
    use crate::stats::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let values: Vec<u64> = (1..=200).collect();
        assert_eq!([0, 1, 50, 99, 100].map(|p| percentile(&values, p)), [1, 2, 100, 198, 200]);
        assert_eq!(percentile(&[7], 99), 7);
        assert_eq!(percentile(&[], 50), 0);
    }

    #[test]
    fn a_median_lies_in_the_middle() {
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(spread(&[4.0, 1.0]).map(|s| s.median), Some(2.5));
        assert_eq!(spread(&[]), None);
    }
}
