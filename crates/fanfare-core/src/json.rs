//! JSON objects whose fields keep their order and their text. This module does not interpret the fields.

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;
use std::fmt;

/// The fields of a JSON object in their original order, each value as its original text.
#[derive(Debug, Clone, Default)]
pub struct Object(pub Vec<(String, Box<RawValue>)>);

/// Returns the nesting depth of arrays and objects in a JSON text: 0 for a scalar.
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

/// Returns the text of a value that is a number; `None` for any other value.
pub fn number(raw: &RawValue) -> Option<&str> {
    let text = raw.get();
    text.starts_with(|c: char| c == '-' || c.is_ascii_digit()).then_some(text)
}

/// Removes a field from the text of a JSON object. Returns `None` if the text is not a JSON object.
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
    /// Returns the text of a field's value.
    pub fn get(&self, key: &str) -> Option<&RawValue> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| &**v)
    }

    /// Removes a field and returns its value.
    pub fn take(&mut self, key: &str) -> Option<Box<RawValue>> {
        let at = self.0.iter().position(|(k, _)| k == key)?;
        Some(self.0.remove(at).1)
    }
}

impl<'de> Deserialize<'de> for Object {
    /// Rejects duplicate fields: parsers disagree on which of the two values counts.
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
                        return Err(serde::de::Error::custom(format_args!("duplicate field {key:?}")));
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
    fn a_duplicate_field_is_rejected() {
        let error = serde_json::from_str::<Object>(r#"{"a":1,"b":2,"a":3}"#).expect_err("duplicate");
        assert!(error.to_string().contains("duplicate field \"a\""), "{error}");
    }
}
