//! JSON objects whose fields keep their order and their text. Knows nothing of what the fields mean.

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;
use std::fmt;

/// The fields of a JSON object in the order they came, each value as the text that it was.
#[derive(Debug, Clone, Default)]
pub struct Object(pub Vec<(String, Box<RawValue>)>);

/// How deep arrays and objects are nested in a JSON text: 0 for a plain value.
pub fn depth(text: &str) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0usize, 0, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// The digits of a value that is a number, as they were written.
pub fn number(raw: &RawValue) -> Option<&str> {
    let text = raw.get();
    text.starts_with(|c: char| c == '-' || c.is_ascii_digit()).then_some(text)
}

/// A JSON object without one of its fields; `None` if the text is not one.
pub fn without(text: &[u8], field: &str) -> Option<Vec<u8>> {
    let mut object: Object = serde_json::from_slice(text).ok()?;
    object.take(field);
    let mut out = Vec::with_capacity(text.len());
    for (key, value) in &object.0 {
        out.push(if out.is_empty() { b'{' } else { b',' });
        serde_json::to_writer(&mut out, key).ok()?;
        out.push(b':');
        out.extend_from_slice(value.get().as_bytes());
    }
    if out.is_empty() {
        out.push(b'{');
    }
    out.push(b'}');
    Some(out)
}

impl Object {
    /// The text of a field's value.
    pub fn get(&self, key: &str) -> Option<&RawValue> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| &**v)
    }

    /// Takes a field out.
    pub fn take(&mut self, key: &str) -> Option<Box<RawValue>> {
        let at = self.0.iter().position(|(k, _)| k == key)?;
        Some(self.0.remove(at).1)
    }
}

impl<'de> Deserialize<'de> for Object {
    /// Refuses a field that stands twice: which of the two counts would depend on the reader.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut object = Object::default();
                let mut seen = hashbrown::HashSet::with_hasher(foldhash::fast::RandomState::default());
                while let Some((key, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    if !seen.insert(key.clone()) {
                        return Err(serde::de::Error::custom(format_args!("the field {key:?} stands twice")));
                    }
                    object.0.push((key, value));
                }
                Ok(object)
            }
        }

        deserializer.deserialize_map(Fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_counts_brackets_outside_strings() {
        for (text, deep) in [("1", 0), ("{}", 1), ("[[1],[2]]", 2), (r#"{"a":"[[[{","b":[]}"#, 2), (r#"["\"[["]"#, 1)] {
            assert_eq!(depth(text), deep, "{text}");
        }
    }

    #[test]
    fn fields_keep_their_order_and_text() {
        let object: Object =
            serde_json::from_str(r#"{"z": 1.0, "a": 12345678901234567890123, "m": [ 1 ]}"#).expect("valid");
        let fields: Vec<_> = object.0.iter().map(|(k, v)| (k.as_str(), v.get())).collect();
        assert_eq!(fields, [("z", "1.0"), ("a", "12345678901234567890123"), ("m", "[ 1 ]")]);
    }

    // attack: an event with a duplicate field that readers may understand differently => rejected
    #[test]
    fn a_field_that_stands_twice_is_refused() {
        let error = serde_json::from_str::<Object>(r#"{"a":1,"b":2,"a":3}"#).expect_err("twice");
        assert!(error.to_string().contains("\"a\" stands twice"), "{error}");
    }
}
