//! Between the messages of the API and the types of the model. Nothing is decided here; what is wrong is named with its field.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use evenkeel_model::{
    Definition, DefinitionError, Draft, HistoryEntry, Preference,
    limits::{MAX_BODY_DEPTH, MAX_SPEC_DEPTH},
    shown::{sentence, shown},
};
use evenkeel_proto::v1;
use prost_reflect::{Kind as FieldKind, MessageDescriptor};
use prost_types::{ListValue, Struct, Value, value::Kind};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value as Json};
use tonic::Status;

/// Looks at a body of this message before it is parsed: how deep it is nested, and whether it gives anything twice.
#[allow(clippy::result_large_err, reason = "tonic's own error type")]
pub(crate) fn check_body(descriptor: &MessageDescriptor, body: &[u8]) -> Result<(), Status> {
    check_depth(body)?;
    match Keys(Some(descriptor.clone())).deserialize(&mut serde_json::Deserializer::from_slice(body)) {
        // Any JSON is data that this reads; what is no JSON is for the reader of the message to refuse.
        Err(error) if error.is_data() => Err(Status::invalid_argument(format!("body: {}", sentence(&error)))),
        _ => Ok(()),
    }
}

/// Reads over JSON and refuses a key that is given twice: of two values, one reader takes the first and another the last. A field of a
/// message has two names, so it goes by the message as long as there is one; a spec and labels are maps, where a key is only itself.
struct Keys(Option<MessageDescriptor>);

impl<'de> DeserializeSeed<'de> for Keys {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Keys {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen: HashMap<String, String> = HashMap::new();
        while let Some(key) = map.next_key::<String>()? {
            let field = self.0.as_ref().and_then(|m| m.get_field_by_name(&key).or_else(|| m.get_field_by_json_name(&key)));
            let inner = field.as_ref().and_then(|field| match field.kind() {
                FieldKind::Message(m) if !m.is_map_entry() && !m.full_name().starts_with("google.protobuf.") => Some(m),
                _ => None,
            });
            let name = field.map_or_else(|| key.clone(), |field| field.name().to_owned());
            if let Some(before) = seen.insert(name, key.clone()) {
                let names = if before == key { shown(&key) } else { format!("{} as {}", shown(&before), shown(&key)) };
                return Err(A::Error::custom(format!("{names} is given twice; give it once")));
            }
            map.next_value_seed(Keys(inner))?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(Keys(self.0.clone()))?.is_some() {}
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
}

/// Looks at how deep a body is nested before it is parsed, since the decoders of JSON and protobuf speak of their own limits only.
#[allow(clippy::result_large_err, reason = "tonic's own error type")]
fn check_depth(body: &[u8]) -> Result<(), Status> {
    let (mut depth, mut is_text, mut is_escaped) = (0_usize, false, false);
    for byte in body {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_text => is_escaped = true,
            b'"' => is_text = !is_text,
            b'[' | b'{' if !is_text => depth += 1,
            b']' | b'}' if !is_text => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_BODY_DEPTH {
            let rule =
                format!("body: is nested deeper than {MAX_BODY_DEPTH} levels, of which a spec may have {MAX_SPEC_DEPTH}; make it flatter");
            return Err(Status::invalid_argument(rule));
        }
    }
    Ok(())
}

/// Checks a resource of a request.
#[allow(clippy::result_large_err, reason = "tonic's own error type")]
pub(crate) fn definition(resource: Option<v1::Resource>) -> Result<Definition, Status> {
    let resource = resource.ok_or_else(|| Status::invalid_argument("resource: is missing"))?;
    draft(resource)?.check().map_err(|e: DefinitionError| Status::invalid_argument(e.to_string()))
}

#[allow(clippy::result_large_err, reason = "tonic's own error type")]
fn draft(resource: v1::Resource) -> Result<Draft, Status> {
    let spec = resource.spec.map(object).transpose()?;
    let prefer = |p: v1::Preference| Json::from_iter([("selector", Json::from(p.selector)), ("weight", Json::from(p.weight.unwrap_or(1)))]);
    Ok(Draft {
        name: resource.name,
        kind: resource.kind,
        weight: resource.weight.map(u64::from),
        labels: resource.labels.into_iter().collect(),
        require: resource.require,
        prefer: resource.prefer.into_iter().map(prefer).collect(),
        pin: resource.pin,
        spread: resource.spread,
        together: resource.together,
        apart: resource.apart,
        policy: resource.policy,
        rebalance: resource.rebalance,
        ownership: resource.ownership,
        spec,
    })
}

/// A definition as the API shows it.
pub(crate) fn resource(definition: &Definition) -> v1::Resource {
    let draft = definition.to_draft();
    v1::Resource {
        name: draft.name,
        kind: draft.kind,
        weight: Some(definition.weight),
        labels: draft.labels.into_iter().collect(),
        require: draft.require,
        pin: draft.pin,
        ownership: draft.ownership,
        prefer: definition.rules().prefer.iter().map(preference).collect(),
        spread: draft.spread,
        together: draft.together,
        apart: draft.apart,
        policy: draft.policy,
        rebalance: draft.rebalance,
        spec: draft.spec.and_then(|spec| match spec {
            Json::Object(fields) => Some(structure(fields)),
            _ => None,
        }),
    }
}

fn preference(preference: &Preference) -> v1::Preference {
    v1::Preference { selector: preference.selector.to_string(), weight: i32::try_from(preference.weight).ok() }
}

pub(crate) fn event(sequence: i64, entry: &HistoryEntry) -> v1::Event {
    v1::Event {
        sequence,
        time: entry.time,
        r#type: entry.kind.as_str().to_owned(),
        resource: entry.resource.clone(),
        worker: entry.worker.clone(),
        from: entry.from.clone(),
        reason: entry.reason.clone(),
        master: entry.master.clone(),
        epoch: entry.epoch.0,
        task: entry.task.0,
    }
}

/// It goes as deep as the decoder of protobuf has gone, which has a limit of its own; the check of the spec has a lower one.
#[allow(clippy::result_large_err, reason = "tonic's own error type")]
fn object(fields: Struct) -> Result<Json, Status> {
    let fields: Result<Map<String, Json>, Status> = fields.fields.into_iter().map(|(k, v)| Ok((k, json(v)?))).collect();
    Ok(Json::Object(fields?))
}

#[allow(clippy::result_large_err, reason = "tonic's own error type")]
fn json(value: Value) -> Result<Json, Status> {
    Ok(match value.kind {
        None | Some(Kind::NullValue(_)) => Json::Null,
        Some(Kind::BoolValue(b)) => Json::Bool(b),
        Some(Kind::StringValue(s)) => Json::String(s),
        Some(Kind::NumberValue(n)) => {
            let number = serde_json::Number::from_f64(n);
            Json::Number(number.ok_or_else(|| Status::invalid_argument(format!("spec: {n} is not a finite number")))?)
        }
        Some(Kind::StructValue(fields)) => object(fields)?,
        Some(Kind::ListValue(list)) => Json::Array(list.values.into_iter().map(json).collect::<Result<_, _>>()?),
    })
}

fn structure(fields: Map<String, Json>) -> Struct {
    let fields: BTreeMap<String, Value> = fields.into_iter().map(|(key, value)| (key, proto(value))).collect();
    Struct { fields }
}

fn proto(value: Json) -> Value {
    let kind = match value {
        Json::Null => Kind::NullValue(0),
        Json::Bool(b) => Kind::BoolValue(b),
        // A spec holds no number that a double cannot: Spec::from_value has seen to that.
        Json::Number(n) => Kind::NumberValue(n.as_f64().unwrap_or_default()),
        Json::String(s) => Kind::StringValue(s),
        Json::Array(items) => Kind::ListValue(ListValue { values: items.into_iter().map(proto).collect() }),
        Json::Object(fields) => Kind::StructValue(structure(fields)),
    };
    Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_definition_survives_the_api() {
        let draft: Draft = serde_json::from_value(json!({"name": "a", "kind": "crawler", "weight": 3, "labels": {"team": "books"},
            "require": "gpu=true", "pin": "w", "ownership": "available", "prefer": [{"selector": "disk=ssd", "weight": 10}], "spread": "zone",
            "together": "app=db", "apart": "app=web", "policy": "pack", "rebalance": "never",
            "spec": {"command": ["a", "b"], "n": 1, "f": 1.5, "deep": {"null": null, "list": [true, []]}}}))
        .expect("draft");
        let checked = draft.check().expect("valid");
        assert_eq!(definition(Some(resource(&checked))).expect("valid"), checked);
    }

    #[test]
    fn what_no_json_can_hold_is_refused() {
        let spec = |n: f64| Struct { fields: [("n".to_owned(), Value { kind: Some(Kind::NumberValue(n)) })].into_iter().collect() };
        let refused = definition(Some(v1::Resource { name: "a".into(), spec: Some(spec(f64::NAN)), ..Default::default() }));
        assert_eq!(refused.expect_err("refused").message(), "spec: NaN is not a finite number");
        let mut deep = Value { kind: None };
        for _ in 0..100 {
            deep = Value { kind: Some(Kind::ListValue(ListValue { values: vec![deep] })) };
        }
        let spec = Struct { fields: [("deep".to_owned(), deep)].into_iter().collect() };
        let refused = definition(Some(v1::Resource { name: "a".into(), spec: Some(spec), ..Default::default() }));
        assert_eq!(
            refused.expect_err("refused").message(),
            "spec: is nested deeper than 32 levels; make it flatter, or write a part of it as text"
        );
        let nested = |levels: usize| format!("{}\"]]\\\"[[\"{}", "[".repeat(levels), "]".repeat(levels));
        assert!(check_depth(nested(MAX_BODY_DEPTH).as_bytes()).is_ok() && check_depth("[]".repeat(100).as_bytes()).is_ok());
        let refused = check_depth(nested(MAX_BODY_DEPTH + 1).as_bytes()).expect_err("refused");
        assert_eq!(refused.message(), "body: is nested deeper than 36 levels, of which a spec may have 32; make it flatter");
        assert_eq!(definition(None).expect_err("refused").message(), "resource: is missing");
    }
}
