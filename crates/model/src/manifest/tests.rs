//! What files become, and what is said of those that are wrong.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn file<'a>(label: &'a str, text: &'a str) -> File<'a> {
    File { label, bytes: text.as_bytes() }
}

fn names(text: &str) -> Vec<String> {
    match parse(file("f.yaml", text)) {
        Ok(entries) => entries.iter().map(|e| e.definition.name.to_string()).collect(),
        Err(errors) => panic!("{text:?}: {errors}"),
    }
}

fn error(bytes: &[u8]) -> String {
    match parse(File { label: "f.yaml", bytes }) {
        Ok(entries) => panic!("accepted {:?} as {entries:?}", String::from_utf8_lossy(bytes)),
        Err(errors) => errors.to_string(),
    }
}

#[test]
fn each_shape_is_read() {
    let cases: [(&str, &[&str]); 13] = [
        ("resources:\n- name: a\n- name: b\n", &["a", "b"]),
        ("resources: []\n", &[]),
        ("[]", &[]),
        ("- name: a\n- name: b\n", &["a", "b"]),
        ("name: a\n", &["a"]),
        ("name: a\n---\n- name: b\n---\nresources:\n  - name: c\n---\n", &["a", "b", "c"]),
        ("# only this\n---\nname: a\n...\n", &["a"]),
        (r#"{"resources": [{"name": "a", "weight": 2}]}"#, &["a"]),
        ("{\n\t\"name\": \"a\",\n\t\"kind\": \"noop\"\n}\n", &["a"]),
        ("\u{feff}name: a\r\nkind: noop\r\n", &["a"]),
        ("%YAML 1.2\n---\nname: a", &["a"]),
        ("- &base {name: a, kind: noop}\n- {<<: *base, name: b}\n", &["a", "b"]),
        ("name: '007'\nlabels: {on: \"yes\"}\n", &["007"]),
    ];
    for (text, expected) in cases {
        assert_eq!(names(text), expected, "{text:?}");
    }
}

#[test]
fn every_field_arrives() {
    let text = r#"
resources:
- name: douban_book_list
  kind: process
  weight: 2
  labels: {team: books}
  require: "gpu=true,zone in (a,b)"
  pin: worker-1
  prefer: [{selector: "disk=ssd", weight: 10}, {selector: gpu}]
  spread: zone
  together: "app=db"
  apart: "app=web"
  policy: least-payload
  rebalance: never
  ownership: available
  spec: {command: ["./crawl", "douban"], env: {A: b}, cwd: /srv, restart: always, stop_grace: 2s}
"#;
    let entries = parse(file("f.yaml", text)).expect("valid");
    let expected = json!({"name": "douban_book_list", "kind": "process", "weight": 2, "labels": {"team": "books"},
        "require": "gpu=true,zone in (a,b)", "pin": "worker-1", "ownership": "available",
        "prefer": [{"selector": "disk=ssd", "weight": 10}, {"selector": "gpu", "weight": 1}], "spread": "zone",
        "together": "app=db", "apart": "app=web", "policy": "least-payload", "rebalance": "never",
        "spec": {"command": ["./crawl", "douban"], "env": {"A": "b"}, "cwd": "/srv", "restart": "always", "stop_grace": "2s"}});
    assert_eq!(serde_json::to_value(entries[0].definition.to_draft()).expect("json"), expected);
}

#[test]
fn what_is_wrong_names_its_place_and_rule() {
    let cases = [
        ("", "f.yaml: has no document; write `resources: []` if no resource is meant"),
        ("# nothing\n", "f.yaml: has no document"),
        ("---\n---\n", "f.yaml: has no document"),
        ("hello", "f.yaml: document 1: must be a resource or a list of resources"),
        ("resources: 3", "f.yaml: document 1: resources: must be a list"),
        ("resources:", "f.yaml: document 1: resources: must be a list"),
        ("resources: []\nresource: 3", "f.yaml: document 1: unknown field \"resource\" beside `resources`"),
        ("- a\n- name: b", "f.yaml: document 1, entry 1: must be a resource, a map that has a name, not a text"),
        ("- - name: a", "f.yaml: document 1, entry 1: must be a resource, a map that has a name, not a list"),
        ("kind: noop", "f.yaml: document 1: name: is missing"),
        ("name: 7", "f.yaml: document 1: name: must be text, not a number; put it in quotes: \"7\""),
        ("name: true", "f.yaml: document 1: name: must be text, not a boolean; put it in quotes: \"true\""),
        ("name:", "f.yaml: document 1: name: has no value"),
        ("name: [a]", "f.yaml: document 1: name: must be text, not a list"),
        ("name: 007", "f.yaml: document 1: name: one reader of YAML takes this for 7"),
        (
            "name: a\n---\n- name: b\n- name: no",
            "f.yaml: document 2, entry 2: name: one reader of YAML takes this for \"no\", another for false",
        ),
        (
            "resources:\n- name: a\n  spec: {country: NO}",
            "f.yaml: document 1, entry 1: spec.country: one reader of YAML takes this for \"NO\"",
        ),
        ("name: a\nlabels: {debug: yes}", "f.yaml: document 1: labels.debug: one reader"),
        ("name: a\nlabels: {debug: true}", "f.yaml: document 1 (a): labels.debug: must be text, not a boolean; put it in quotes: \"true\""),
        ("name: a\nlabels: {level: 3}", "f.yaml: document 1 (a): labels.level: must be text, not a number; put it in quotes: \"3\""),
        ("name: a\nlabels: [a]", "f.yaml: document 1 (a): labels: must be a map of keys to texts, not a list"),
        ("name: a\nkind: process\nspec: {env: {PORT: 80}}", "f.yaml: document 1 (a): spec.env.PORT: must be text, not a number"),
        ("name: a\nkind: process\nspec: {command: [sleep, 5]}", "f.yaml: document 1 (a): spec.command[1]: must be text, not a number"),
        ("name: a\nspec: text", "f.yaml: document 1 (a): spec: must be a map, not a text"),
        ("name: a\nweight: two", "f.yaml: document 1 (a): weight: must be a whole number, 1 or more, not \"two\""),
        ("name: a\nweight: -1", "f.yaml: document 1 (a): weight: must be a whole number, 1 or more, not -1"),
        ("name: a\nweight: 1.5", "f.yaml: document 1 (a): weight: must be a whole number, 1 or more, not 1.5"),
        ("name: a\nweight: 0", "f.yaml: document 1 (a): weight: 0 is not within 1 to 1000000"),
        ("name: a\nwieght: 1", "f.yaml: document 1 (a): unknown field \"wieght\"; use one of name, kind"),
        ("name: a b", "f.yaml: document 1: name: \"a b\" has ' ' at position 2"),
        ("name: a\nrequire: \"a in b\"", "f.yaml: document 1 (a): require: selector \"a in b\": at character 6: expected '('"),
        ("name: a\nname: b", "f.yaml: line 2, column 1: duplicate mapping key: name"),
        ("name: a\nspec: {k: 1, k: 2}", "f.yaml: line 2, column 14: duplicate mapping key: k"),
        ("resources:\n\t- name: a", "f.yaml: line 2"),
        ("name: [", "f.yaml: line 1, column 7: unclosed bracket '['"),
        ("name: *a", "f.yaml: line 1, column 7: reference to unknown value"),
        ("&a [*a]", "f.yaml: line 1, column 5: Recursive reference"),
        ("name: !secret a", "f.yaml: line 1, column 15: unsupported tag `!secret`"),
        ("name: a\nspec: {x: .inf}", "f.yaml: line 2, column 11: value `.inf` is not a finite number"),
        ("name: a\nspec: {[b]: 2}", "f.yaml: line 2, column 8: expected string scalar"),
        ("name: a\nspec: {big: 9007199254740993}", "f.yaml: document 1 (a): spec: 9007199254740993 cannot be held exactly"),
    ];
    for (text, expected) in cases {
        let said = error(text.as_bytes());
        assert!(said.starts_with(expected), "{text:?}: {said}");
        assert!(!said.contains('\n'), "{text:?}: {said:?}");
    }
}

#[test]
fn what_is_no_text_is_refused() {
    assert_eq!(error(b"name: a\nkind: \xff"), "f.yaml: line 2 is not UTF-8; save the file as UTF-8");
    assert_eq!(error(b"name: a\nkind: \0"), "f.yaml: line 2 has a NUL character; is it a text file?");
    assert_eq!(error(b"\xff\xfen\0a\0"), "f.yaml: is UTF-16; save it as UTF-8");
    let large = vec![b' '; MAX_FILE + 1];
    assert_eq!(error(&large), "f.yaml: 67108865 bytes are more than 67108864; split the file");
}

#[test]
fn hostile_files_end_in_an_error() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..9 {
        let alias = format!("*a{}, ", n - 1).repeat(9);
        bomb.push_str(&format!("a{n}: &a{n} [{}]\n", alias.trim_end_matches(", ")));
    }
    let block: String = (0..500).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    let cases =
        ["[".repeat(200_000), "{a: ".repeat(5000), "- ".repeat(5000), block, "? ".repeat(5000), "&a ".repeat(5000), "!".repeat(5000), bomb];
    for text in cases {
        let said = error(text.as_bytes());
        assert!(said.starts_with("f.yaml: line "), "{said}");
    }
}

#[test]
fn a_name_that_stands_twice_names_both_places() {
    let (one, two) = ("- name: a\n- name: b\n", "name: c\n---\nname: b\n");
    let error = read([file("one.yaml", one), file("two.yaml", two)]).expect_err("b stands twice");
    assert_eq!(
        error.to_string(),
        "two.yaml: document 2 (b): name: already exists in one.yaml: document 1, entry 2 (b); leave one of them out"
    );
}

#[test]
fn all_errors_are_told() {
    let bad = "- name: a\n  weight: 0\n- name: b c\n- name: d\n";
    let errors = read([file("one.yaml", bad), file("two.yaml", "[")]).expect_err("three errors");
    assert_eq!(errors.0.len(), 3);
    assert_eq!(errors.to_string(), "one.yaml: document 1, entry 1 (a): weight: 0 is not within 1 to 1000000 (and 2 more)");
}

fn any_definition() -> impl Strategy<Value = Definition> {
    let label = proptest::collection::btree_map("[a-z0-9][a-zA-Z0-9._/-]{0,6}", "([a-zA-Z0-9._/-]{0,6})|yes|off|007|1e3|null", 0..4);
    let texts = proptest::collection::btree_map("\\PC{1,6}", "(?s).{0,12}", 0..4);
    ("[a-zA-Z0-9][a-zA-Z0-9._-]{0,9}", "(crawler|noop|y|NO|0x1F|)", 1..1000_u32, label, texts, any::<i32>()).prop_map(|(name, kind, weight, labels, texts, number)| {
        let texts: BTreeMap<_, _> = texts.into_iter().map(|(k, v)| (k.replace('\0', ""), v.replace('\0', ""))).collect();
        let spec = json!({"env": texts, "number": number, "half": f64::from(number) / 2.0, "flag": number > 0, "none": null, "list": [[], {}, [number]]});
        let draft = Draft { name, kind, weight: Some(weight.into()), labels, spec: Some(spec), ..Draft::default() };
        draft.check().expect("valid")
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(definitions in proptest::collection::vec(any_definition(), 0..4)) {
        let set: BTreeMap<_, _> = definitions.into_iter().map(|d| (d.name.clone(), d)).collect();
        let text = to_yaml(set.values());
        prop_assert_eq!(read([file("f.yaml", &text)]).map_err(|e| format!("{e}\n{text}")), Ok(set));
    }

    #[test]
    fn no_text_makes_it_panic(text in "[ \n\t:{}\\[\\],&*!|>'\"%@#?a-c0-9-]{0,80}") {
        let _ = parse(file("f.yaml", &text));
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = parse(File { label: "f.yaml", bytes: &bytes });
    }
}
