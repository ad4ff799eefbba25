//! Answers that would be larger than a client takes, on real processes: they come in pages that a client with its defaults reads, and nothing
//! is missing.

mod support;

use std::collections::BTreeSet;

use evenkeel_proto::v1::{AddResourcesRequest, ListResourcesRequest, Resource};
use futures::stream;
use prost_types::{Struct, Value, value::Kind};
use support::Stage;

/// 45 kB of text, as a spec.
fn spec(n: usize) -> Struct {
    let text = Value { kind: Some(Kind::StringValue(format!("{n:05}").repeat(9000))) };
    Struct { fields: [("text".to_owned(), text)].into_iter().collect() }
}

#[tokio::test]
async fn large_resources_are_listed_page_by_page() {
    const COUNT: usize = 200;
    let mut stage = Stage::start().await;
    stage.masters(1, &[]).await;
    let mut client = stage.connect("master-1").await.expect("connected");
    let requests = (0..COUNT).map(|n| AddResourcesRequest {
        resource: Some(Resource { name: format!("r{n:03}"), kind: "archive".to_owned(), spec: Some(spec(n)), ..Resource::default() }),
        ..AddResourcesRequest::default()
    });
    let mut answers = client.add_resources(stream::iter(requests)).await.expect("accepted").into_inner();
    while let Some(answer) = answers.message().await.expect("answered") {
        assert_eq!((answer.code, answer.outcome.as_str()), (0, "created"), "{}", answer.message);
    }
    // A client takes 4 MiB unless it is told otherwise; all of them are nine.
    let (mut listed, mut pages, mut page_token) = (BTreeSet::new(), 0, String::new());
    loop {
        let request = ListResourcesRequest { page_size: 5000, page_token, ..ListResourcesRequest::default() };
        let page = client.list_resources(request).await.expect("a page that the client takes").into_inner();
        listed.extend(page.resources.into_iter().filter_map(|state| state.resource).map(|resource| resource.name));
        pages += 1;
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!((listed.len(), pages), (COUNT, 3));
    let printed = stage.cli("master-1", &["get", "-o", "name"]);
    assert_eq!(String::from_utf8_lossy(&printed.stdout).lines().count(), COUNT);
    let plan: serde_json::Value = serde_json::from_str(&stage.curl("master-1", "/v1/plan", &[])).expect("json");
    assert_eq!(plan["undone"].as_array().map(Vec::len), Some(COUNT), "every one of them is pending: {plan}");
}
