//! The loads: puts on etcd alone, AddResource, and AddResources as a stream. Each caller waits for its answer before it asks again.

use std::time::{Duration, Instant};

use evenkeel_model::limits::MAX_STREAMS;
use evenkeel_proto::v1::{AddResourceRequest, AddResourcesRequest, Resource};
use futures::StreamExt;
use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::task::JoinSet;

use super::stage::Stage;

/// The value that a raw put writes: as long as the record of a resource.
const RECORD: &str =
    r#"{"ID":"1604066677018857472","Name":"bench-000000000","AssignedNode":"bench-0|127.0.0.1:10000","CreationTime":1671274272579882000}"#;

/// What one load gave.
#[derive(Debug, Serialize)]
pub(super) struct Sample {
    pub(super) per_second: f64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    pub(super) calls: u64,
}

impl Sample {
    fn of(histogram: &Histogram<u64>, took: Duration) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        Self { per_second: histogram.len() as f64 / took.as_secs_f64(), p50_us: at(0.5), p99_us: at(0.99), calls: histogram.len() }
    }
}

fn histogram() -> Result<Histogram<u64>, String> {
    // From a nanosecond up to a minute, to three digits.
    Histogram::new_with_bounds(1, 60_000_000_000, 3).map_err(|e| e.to_string())
}

/// Runs callers side by side until the time is up. `make` gives each its own call.
async fn load<F, Fut>(callers: u32, seconds: u32, mut make: impl FnMut() -> F) -> Result<Sample, String>
where
    F: FnMut() -> Fut + Send + 'static,
    Fut: Future<Output = Result<(), String>> + Send,
{
    let began = Instant::now();
    let end = began + Duration::from_secs(u64::from(seconds));
    let mut tasks = JoinSet::new();
    for _ in 0..callers {
        let mut call = make();
        tasks.spawn(async move {
            let mut took = histogram()?;
            while Instant::now() < end {
                let sent = Instant::now();
                call().await?;
                took.saturating_record(u64::try_from(sent.elapsed().as_nanos()).unwrap_or(u64::MAX));
            }
            Ok::<_, String>(took)
        });
    }
    let mut all = histogram()?;
    while let Some(done) = tasks.join_next().await {
        let took = done.map_err(|e| e.to_string())??;
        all.add(took).map_err(|e| e.to_string())?;
    }
    Ok(Sample::of(&all, began.elapsed()))
}

/// Puts on etcd alone.
pub(super) async fn raw_put(stage: &Stage, callers: u32, seconds: u32) -> Result<Sample, String> {
    let client = stage.raw()?;
    let names: Vec<String> = (0..callers).map(|_| stage.fresh_name()).collect();
    let mut names = names.into_iter();
    load(callers, seconds, || {
        let (client, caller) = (client.clone(), names.next().unwrap_or_default());
        let mut number = 0_u64;
        move || {
            let client = client.clone();
            number += 1;
            let key = format!("/raw/{caller}-{number}");
            async move { client.put(key, RECORD).await.map(drop).map_err(|e| e.to_string()) }
        }
    })
    .await
}

/// AddResource, one by one. Each connection carries as many callers as a master answers on one at a time.
pub(super) async fn add_resource(stage: &Stage, callers: u32, seconds: u32) -> Result<Sample, String> {
    let mut clients = Vec::new();
    for _ in 0..callers.div_ceil(MAX_STREAMS) {
        clients.push(stage.connect().await?);
    }
    let mut clients = clients.into_iter().cycle();
    let caller = stage.fresh_name();
    let mut callers_made = 0_u32;
    load(callers, seconds, || {
        callers_made += 1;
        let (client, caller) = (clients.next(), format!("{caller}-{callers_made}"));
        let mut number = 0_u64;
        move || {
            let client = client.clone();
            number += 1;
            let resource = Some(Resource { name: format!("{caller}-{number}"), ..Resource::default() });
            async move {
                let mut client = client.ok_or("there is no connection")?;
                client.add_resource(AddResourceRequest { resource }).await.map(drop).map_err(|e| e.to_string())
            }
        }
    })
    .await
}

/// AddResources: one stream that is never waited for.
pub(super) async fn add_resources(stage: &Stage, seconds: u32) -> Result<Sample, String> {
    let mut client = stage.connect().await?;
    let caller = stage.fresh_name();
    let began = Instant::now();
    let end = began + Duration::from_secs(u64::from(seconds));
    let requests = futures::stream::iter(0_u64..).take_while(move |_| std::future::ready(Instant::now() < end)).map(move |number| {
        AddResourcesRequest {
            resource: Some(Resource { name: format!("{caller}-{number}"), ..Resource::default() }),
            ..AddResourcesRequest::default()
        }
    });
    let mut answers = client.add_resources(requests).await.map_err(|e| e.to_string())?.into_inner();
    let mut took = histogram()?;
    let mut last = Instant::now();
    while let Some(answer) = answers.next().await {
        let answer = answer.map_err(|e| e.to_string())?;
        if answer.code != 0 {
            return Err(format!("{}: {}", answer.name, answer.message));
        }
        took.saturating_record(u64::try_from(last.elapsed().as_nanos()).unwrap_or(u64::MAX));
        last = Instant::now();
    }
    Ok(Sample::of(&took, began.elapsed()))
}
