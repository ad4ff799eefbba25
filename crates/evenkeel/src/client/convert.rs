//! The API's messages as JSON, and definitions from and to them, by the descriptors: one conversion for all that is printed and sent.
//!
//! The JSON is proto3's: camelCase, 64-bit integers as strings, fields that have their default left out, `spec` as plain JSON. That of tasks is
//! another: the names of the proto, numbers as numbers, every field.

use std::sync::LazyLock;

use evenkeel_model::{Definition, Draft};
use evenkeel_proto::v1::Resource;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, ReflectMessage, SerializeOptions};
use serde_json::{Number, Value};

/// Why a message cannot be converted: the two ends were not built from the same definitions.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConvertError {
    #[error("message {0} is not known")]
    Unknown(String),
    #[error("{name}: {reason}; is the other side of another version?")]
    Message { name: String, reason: String },
}

static POOL: LazyLock<Option<DescriptorPool>> = LazyLock::new(|| DescriptorPool::decode(evenkeel_proto::DESCRIPTORS).ok());

fn descriptor(name: &str) -> Result<MessageDescriptor, ConvertError> {
    let found = POOL.as_ref().and_then(|pool| pool.get_message_by_name(&format!("evenkeel.v1.{name}")));
    found.ok_or_else(|| ConvertError::Unknown(name.to_owned()))
}

/// A message of the API, by its name in `evenkeel.v1`, as JSON.
pub(crate) fn to_json<M: Message>(name: &str, message: &M) -> Result<Value, ConvertError> {
    let fail = |reason: String| ConvertError::Message { name: name.to_owned(), reason };
    let mut dynamic = DynamicMessage::new(descriptor(name)?);
    dynamic.transcode_from(message).map_err(|e| fail(e.to_string()))?;
    let mut value = serde_json::to_value(&dynamic).map_err(|e| fail(e.to_string()))?;
    whole_numbers(&mut value);
    Ok(value)
}

/// A message of the API, by its name in `evenkeel.v1`, as JSON with the names of the proto, numbers as numbers, and every field that has a value even
/// if it was left out.
pub(crate) fn to_whole_json<M: Message>(name: &str, message: &M) -> Result<Value, ConvertError> {
    let fail = |reason: String| ConvertError::Message { name: name.to_owned(), reason };
    let mut dynamic = DynamicMessage::new(descriptor(name)?);
    dynamic.transcode_from(message).map_err(|e| fail(e.to_string()))?;
    let options = SerializeOptions::new().use_proto_field_name(true).stringify_64_bit_integers(false).skip_default_fields(false);
    dynamic.serialize_with_options(serde_json::value::Serializer, &options).map_err(|e| fail(e.to_string()))
}

/// The numbers of a protobuf struct are doubles; people wrote `3` and want to read it.
fn whole_numbers(value: &mut Value) {
    match value {
        Value::Number(n) if n.is_f64() => {
            #[allow(clippy::cast_possible_truncation, reason = "the value is whole and within ±2^53")]
            let whole = n.as_f64().filter(|f| f.fract() == 0.0 && f.abs() <= 9_007_199_254_740_992.0).map(|f| f as i64);
            if let Some(whole) = whole {
                *value = Value::Number(Number::from(whole));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(whole_numbers),
        Value::Object(fields) => fields.values_mut().for_each(whole_numbers),
        _ => {}
    }
}

/// A definition as the API takes it.
pub(crate) fn to_resource(definition: &Definition) -> Result<Resource, ConvertError> {
    let name = definition.name.to_string();
    let fail = |reason: String| ConvertError::Message { name: name.clone(), reason };
    let draft = serde_json::to_value(definition.to_draft()).map_err(|e| fail(e.to_string()))?;
    let dynamic = DynamicMessage::deserialize(descriptor("Resource")?, draft).map_err(|e| fail(e.to_string()))?;
    debug_assert_eq!(dynamic.descriptor().name(), "Resource");
    dynamic.transcode_to().map_err(|e| fail(e.to_string()))
}

/// A definition as the API shows it. A master has taken it in, perhaps one of another version: it is not judged again.
pub(crate) fn to_definition(resource: &Resource) -> Result<Definition, ConvertError> {
    let fail = |reason: String| ConvertError::Message { name: resource.name.clone(), reason };
    let draft: Draft = serde_json::from_value(to_json("Resource", resource)?).map_err(|e| fail(e.to_string()))?;
    draft.stored().map_err(|e| fail(e.to_string()))
}

#[cfg(test)]
mod tests {
    use evenkeel_proto::v1::{MasterState, ResourceState};
    use serde_json::json;

    use super::*;

    fn definition() -> Definition {
        let draft = json!({"name": "a", "kind": "crawler", "weight": 2, "labels": {"team": "books"}, "require": "gpu=true", "pin": "worker-1",
            "ownership": "available", "spec": {"command": ["./a"], "n": 3, "half": 0.5, "none": null, "nested": {"list": [1, "x", {}]}}});
        serde_json::from_value::<Draft>(draft).expect("shape").check().expect("valid")
    }

    #[test]
    fn a_definition_survives_the_api() {
        let resource = to_resource(&definition()).expect("sent");
        assert_eq!(to_definition(&resource).expect("received"), definition());
        let plain = Definition::named("x".parse().expect("name"));
        assert_eq!(to_definition(&to_resource(&plain).expect("sent")).expect("received"), plain);
    }

    #[test]
    fn json_is_stable() {
        let state = ResourceState {
            resource: Some(to_resource(&definition()).expect("sent")),
            id: "1604066677018857472".to_owned(),
            creation_time: 1_671_274_272_579_882_000,
            worker: "worker-1".to_owned(),
            address: "127.0.0.1:9090".to_owned(),
            phase: "running".to_owned(),
            epoch: 42,
            restarts: 1,
            ..ResourceState::default()
        };
        let expected = json!({
            "resource": {"name": "a", "kind": "crawler", "weight": 2, "labels": {"team": "books"}, "require": "gpu=true", "pin": "worker-1",
                "ownership": "available",
                "spec": {"command": ["./a"], "n": 3, "half": 0.5, "none": null, "nested": {"list": [1, "x", {}]}}},
            "id": "1604066677018857472", "creationTime": "1671274272579882000", "worker": "worker-1", "address": "127.0.0.1:9090",
            "phase": "running", "epoch": "42", "restarts": 1,
        });
        assert_eq!(to_json("ResourceState", &state).expect("json"), expected);
        let standby = MasterState { id: "master-2".to_owned(), ..MasterState::default() };
        assert_eq!(to_json("MasterState", &standby).expect("json"), json!({"id": "master-2"}));
        assert!(to_json("Nothing", &standby).is_err());
    }
}
