//! `evenkeel events`: who moved what, when and why.

use clap::Args;
use evenkeel_model::ResourceName;
use evenkeel_proto::v1::{Event, ListEventsRequest, WatchEventsRequest};

use super::{
    ClientArgs, ClientError, Listing, convert, print_list,
    session::{Breaks, Ended, Session},
};
use crate::output::{self, Format, Growing, Row, or_dash, time};

#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Only those of this resource
    name: Option<ResourceName>,
    /// Go on, and print what happens
    #[arg(short, long)]
    follow: bool,
    /// At most the N newest
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(i32).range(1..=5000))]
    limit: i32,
    #[command(flatten)]
    client: ClientArgs,
}

const HEADERS: [&str; 5] = ["TIME", "TYPE", "RESOURCE", "WORKER", "REASON"];

pub(crate) async fn run(args: EventsArgs) -> Result<(), ClientError> {
    let format = args.client.output.output;
    let session = args.client.master.session();
    let resource = args.name.map(|n| n.to_string()).unwrap_or_default();
    let request = ListEventsRequest { after: 0, page_size: args.limit, resource: resource.clone(), worker: String::new() };
    let events = session.call("events", request, async |client, request| client.list_events(request).await).await?.events;
    if args.follow {
        return follow(&session, events, &resource, format).await;
    }
    if events.is_empty() && format.is_table() {
        eprintln!("no events");
        return Ok(());
    }
    let values = events.iter().map(|e| convert::to_json("Event", e)).collect::<Result<_, _>>()?;
    let names = events.iter().map(|e| e.resource.as_str()).collect();
    print_list(format, Listing { values, names }, || table(&events))
}

/// The table of a list of events.
pub(super) fn table(events: &[Event]) -> String {
    output::table(&HEADERS, &events.iter().map(row).collect::<Vec<_>>(), output::colour())
}

fn row(event: &Event) -> Row {
    let worker = match (event.from.as_str(), event.worker.as_str()) {
        ("", worker) => or_dash(worker),
        (from, "") => from.to_owned(),
        (from, worker) if from == worker => worker.to_owned(),
        (from, worker) => format!("{from} -> {worker}"),
    };
    let about = match (event.resource.as_str(), event.task) {
        ("", 0) => "-".to_owned(),
        ("", task) => format!("task {task}"),
        (resource, _) => resource.to_owned(),
    };
    Row::from([time(event.time), event.r#type.clone(), about, worker, event.reason.clone()])
}

/// Where a stream of events stands.
struct Position<'a> {
    after: i64,
    resource: &'a str,
    format: Format,
    table: Growing,
}

/// Prints what there is, then what comes; after a break it goes on behind the last that was printed.
async fn follow(session: &Session, events: Vec<Event>, resource: &str, format: Format) -> Result<(), ClientError> {
    let mut position = Position { after: events.last().map_or(0, |e| e.sequence), resource, format, table: Growing::default() };
    position.print(&events)?;
    let mut breaks = Breaks::default();
    loop {
        let before = position.after;
        let Err(ended) = follow_once(session, &mut position).await;
        if position.after > before {
            breaks = Breaks::default();
        }
        breaks.wait(session, ended).await?;
    }
}

async fn follow_once(session: &Session, position: &mut Position<'_>) -> Result<std::convert::Infallible, Ended> {
    let ended = |status: &tonic::Status| Ended::by("events", status);
    let mut client = session.client().await.map_err(Ended::passing)?;
    let mut stream = client.watch_events(WatchEventsRequest { after: position.after }).await.map_err(|s| ended(&s))?.into_inner();
    while let Some(message) = stream.message().await.map_err(|s| ended(&s))? {
        let Some(event) = message.event else { continue };
        position.after = event.sequence.max(position.after);
        if position.resource.is_empty() || event.resource == position.resource {
            position.print(&[event]).map_err(Ended::For)?;
        }
    }
    Err(Ended::passing(ClientError::Failed("events: the master ended the stream".to_owned())))
}

impl Position<'_> {
    fn print(&mut self, events: &[Event]) -> Result<(), ClientError> {
        let text = match self.format {
            Format::Table | Format::Wide => self.table.more(&HEADERS, &events.iter().map(row).collect::<Vec<_>>(), output::colour()),
            Format::Name => events.iter().map(|e| format!("{}\n", e.resource)).collect(),
            Format::Json | Format::Yaml => {
                let values = events.iter().map(|e| convert::to_json("Event", e)).collect::<Result<Vec<_>, _>>()?;
                let text = |value| if self.format == Format::Json { format!("{value}\n") } else { format!("---\n{}", output::yaml(value)) };
                values.iter().map(text).collect()
            }
        };
        Ok(output::write(text.as_bytes())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_of_a_task_names_it() {
        let about = |resource: &str, task: u32| row(&Event { resource: resource.to_owned(), task, ..Event::default() }).cells[2].clone();
        assert_eq!([about("", 0), about("a", 0), about("", 7)], ["-", "a", "task 7"]);
    }
}
