//! `evenkeel get`: resources, where they run and how they are; once, or as they change.

use std::collections::BTreeMap;

use clap::Args;
use evenkeel_model::{Definition, FAILING, ResourceName, Selector, manifest};
use evenkeel_proto::v1::{GetResourceRequest, ListResourcesRequest, ResourceState, WatchResourcesRequest};
use serde_json::json;

use super::{
    ClientArgs, ClientError, Listing, convert, print_list, print_one, selector,
    session::{Breaks, Ended, Session},
    usage::{self, Usage},
};
use crate::output::{self, Format, Growing, Row, Tone, age, or_dash};

/// Resources in one page.
const PAGE: i32 = 1000;

#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// Only this one
    name: Option<ResourceName>,
    /// Only those whose labels match
    #[arg(short = 'l', long, value_name = "SELECTOR", value_parser = selector, conflicts_with = "name")]
    selector: Option<Selector>,
    /// Go on, and print each that changes
    #[arg(short, long)]
    watch: bool,
    #[command(flatten)]
    client: ClientArgs,
}

pub(crate) async fn run(args: GetArgs) -> Result<(), ClientError> {
    let format = args.client.output.output;
    let session = args.client.master.session();
    let selector = args.selector.map(|s| s.to_string()).unwrap_or_default();
    let name = args.name.map(|n| n.to_string()).unwrap_or_default();
    if args.watch && format == Format::Wide {
        return Err(ClientError::Usage("--watch shows no usage; leave -o wide out".to_owned()));
    }
    if args.watch {
        // A name that nobody knows is rather a mistake than something to wait for.
        if !name.is_empty() {
            one(&session, &name).await?;
        }
        return watch(&session, WatchResourcesRequest { selector, name }, format).await;
    }
    if !name.is_empty() {
        let state = one(&session, &name).await?;
        if format == Format::Yaml {
            return print_yaml(&[state]);
        }
        let value = convert::to_json("ResourceState", &state)?;
        let states = [state];
        let used = used(&session, &states, format).await;
        return print_one(format, &value, &name, || table(&states, used.as_ref()));
    }
    let states = list(&session, &selector).await?;
    if format == Format::Yaml {
        return print_yaml(&states);
    }
    if states.is_empty() && format.is_table() {
        eprintln!("no resources{}", if selector.is_empty() { "" } else { " match" });
        return Ok(());
    }
    let values = states.iter().map(|s| convert::to_json("ResourceState", s)).collect::<Result<_, _>>()?;
    let names = states.iter().map(name_of).collect();
    let used = used(&session, &states, format).await;
    print_list(format, Listing { values, names }, || table(&states, used.as_ref()))
}

/// What they use, where it is asked for.
async fn used(session: &Session, states: &[ResourceState], format: Format) -> Option<Usage> {
    if format == Format::Wide { Some(usage::of_resources(session, states).await) } else { None }
}

async fn one(session: &Session, name: &str) -> Result<ResourceState, ClientError> {
    let request = GetResourceRequest { name: name.to_owned() };
    let response = session.call(name, request, async |client, request| client.get_resource(request).await).await?;
    Ok(response.resource.unwrap_or_default())
}

/// All that match, page by page.
pub(crate) async fn list(session: &Session, selector: &str) -> Result<Vec<ResourceState>, ClientError> {
    let mut states = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListResourcesRequest { selector: selector.to_owned(), page_size: PAGE, page_token };
        let response = session.call("resources", request, async |client, request| client.list_resources(request).await).await?;
        states.extend(response.resources);
        page_token = response.next_page_token;
        if page_token.is_empty() {
            return Ok(states);
        }
    }
}

fn name_of(state: &ResourceState) -> &str {
    state.resource.as_ref().map(|r| r.name.as_str()).unwrap_or_default()
}

fn print_yaml(states: &[ResourceState]) -> Result<(), ClientError> {
    let definitions: Vec<Definition> =
        states.iter().filter_map(|s| s.resource.as_ref()).map(convert::to_definition).collect::<Result<_, _>>()?;
    Ok(output::write(manifest::to_yaml(&definitions).as_bytes())?)
}

const HEADERS: [&str; 8] = ["NAME", "KIND", "WEIGHT", "WORKER", "PHASE", "RESTARTS", "AGE", "REASON"];

/// The column for reasons is there only when there is one.
fn table(states: &[ResourceState], used: Option<&Usage>) -> String {
    table_at(states, used, output::now_ns(), output::colour())
}

fn table_at(states: &[ResourceState], used: Option<&Usage>, now_ns: i64, colour: bool) -> String {
    let mut rows: Vec<Row> = states.iter().map(|state| row(state, now_ns)).collect();
    let mut headers = HEADERS.to_vec();
    let last = headers.len() - 1;
    if rows.iter().all(|row| row.cells.last().is_none_or(String::is_empty)) {
        headers.truncate(last);
        rows.iter_mut().for_each(|row| row.cells.truncate(last));
    }
    if let Some(used) = used {
        headers.splice(last..last, usage::HEADERS);
        for (row, state) in rows.iter_mut().zip(states) {
            row.cells.splice(last..last, used.of_resource(state));
        }
    }
    output::table(&headers, &rows, colour)
}

fn row(state: &ResourceState, now_ns: i64) -> Row {
    let resource = state.resource.clone().unwrap_or_default();
    let tone = match state.phase.as_str() {
        "pending" | "starting" | "stopping" | "unknown" => Tone::Waiting,
        "failed" | "backoff" => Tone::Trouble,
        _ if state.failures >= FAILING => Tone::Trouble,
        _ => Tone::Plain,
    };
    let reason = match (state.reason.as_str(), state.phase.as_str()) {
        ("", "failed" | "backoff" | "exited") => &state.message,
        _ => &state.reason,
    };
    let cells = vec![
        resource.name,
        or_dash(&resource.kind),
        resource.weight.unwrap_or(1).to_string(),
        or_dash(&state.worker),
        state.phase.clone(),
        state.restarts.to_string(),
        age(state.creation_time, now_ns),
        reason.clone(),
    ];
    Row { cells, tone }
}

/// Follows the changes. When a master goes away, another is asked; what was printed already is not printed again.
async fn watch(session: &Session, request: WatchResourcesRequest, format: Format) -> Result<(), ClientError> {
    // That nobody answers at all is said at once; later it may pass.
    session.client().await?;
    let mut shown = Shown::default();
    let mut breaks = Breaks::default();
    loop {
        let lists = shown.lists;
        let Err(ended) = follow(session, request.clone(), format, &mut shown).await;
        if shown.lists > lists {
            breaks = Breaks::default();
        }
        breaks.wait(session, ended).await?;
    }
}

/// What was printed last of each resource.
#[derive(Default)]
struct Shown {
    table: Growing,
    /// How many whole lists have come: one for each stream that worked.
    lists: u32,
    states: BTreeMap<String, ResourceState>,
}

async fn follow(
    session: &Session,
    request: WatchResourcesRequest,
    format: Format,
    shown: &mut Shown,
) -> Result<std::convert::Infallible, Ended> {
    let ended = |status: &tonic::Status| Ended::by("watch", status);
    let mut client = session.client().await.map_err(Ended::passing)?;
    let mut stream = client.watch_resources(request).await.map_err(|s| ended(&s))?.into_inner();
    // Until the list is whole, what is missing from it cannot be told from what comes later.
    let mut listed: Option<BTreeMap<String, ResourceState>> = Some(BTreeMap::new());
    loop {
        let Some(change) = stream.message().await.map_err(|s| ended(&s))? else {
            return Err(Ended::passing(ClientError::Failed("watch: the master ended it".to_owned())));
        };
        let state = change.resource.unwrap_or_default();
        let name = name_of(&state).to_owned();
        let changes = match (change.r#type.as_str(), &mut listed) {
            ("SYNCED", list) => whole(shown, list.take().unwrap_or_default()),
            (_, Some(list)) => {
                list.insert(name, state);
                continue;
            }
            ("DELETED", None) => vec![("DELETED", shown.states.remove(&name).unwrap_or(state))],
            (_, None) => shown.replace(name, state).into_iter().collect(),
        };
        print_changes(format, &changes, shown).map_err(Ended::For)?;
    }
}

impl Shown {
    fn replace(&mut self, name: String, state: ResourceState) -> Option<(&'static str, ResourceState)> {
        match self.states.insert(name, state.clone()) {
            Some(before) if before == state => None,
            Some(_) => Some(("MODIFIED", state)),
            None => Some(("ADDED", state)),
        }
    }
}

/// The changes that lead from what was shown to a whole list.
fn whole(shown: &mut Shown, list: BTreeMap<String, ResourceState>) -> Vec<(&'static str, ResourceState)> {
    shown.lists += 1;
    let gone: Vec<String> = shown.states.keys().filter(|name| !list.contains_key(*name)).cloned().collect();
    let gone = gone.iter().filter_map(|name| shown.states.remove(name)).map(|state| ("DELETED", state)).collect::<Vec<_>>();
    let come = list.into_iter().filter_map(|(name, state)| shown.replace(name, state)).collect::<Vec<_>>();
    gone.into_iter().chain(come).collect()
}

fn print_changes(format: Format, changes: &[(&'static str, ResourceState)], shown: &mut Shown) -> Result<(), ClientError> {
    if format.is_table() {
        let now_ns = output::now_ns();
        let rows = changes.iter().map(|(kind, state)| {
            let mut row = row(state, now_ns);
            if *kind == "DELETED" {
                "deleted".clone_into(&mut row.cells[4]);
            }
            row
        });
        let text = shown.table.more(&HEADERS, &rows.collect::<Vec<_>>(), output::colour());
        return Ok(output::write(text.as_bytes())?);
    }
    for (kind, state) in changes {
        let value = json!({"type": kind, "resource": convert::to_json("ResourceState", state)?});
        let text = match format {
            Format::Name => format!("{}\n", name_of(state)),
            Format::Yaml => format!("---\n{}", output::yaml(&value)),
            _ => format!("{value}\n"),
        };
        output::write(text.as_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use evenkeel_proto::v1::Resource;

    use super::*;

    fn state(name: &str, worker: &str, phase: &str, reason: &str) -> ResourceState {
        let resource = Resource { name: name.to_owned(), weight: (name == "heavy").then_some(12), ..Resource::default() };
        ResourceState {
            resource: Some(resource),
            worker: worker.to_owned(),
            phase: phase.to_owned(),
            reason: reason.to_owned(),
            creation_time: 1_000_000_000,
            ..ResourceState::default()
        }
    }

    #[test]
    fn the_table_reads_like_this() {
        let well = [state("a", "worker-1", "running", ""), state("heavy", "worker-2", "running", "")];
        let expected = "\
NAME    KIND   WEIGHT   WORKER     PHASE     RESTARTS   AGE
a       -           1   worker-1   running          0   5s
heavy   -          12   worker-2   running          0   5s
";
        assert_eq!(table_at(&well, None, 6_000_000_000, false), expected);
        let mut failing = state("b", "worker-1", "backoff", "");
        failing.message = "exit status 3".to_owned();
        failing.restarts = 4;
        let mut finished = state("c", "worker-1", "exited", "");
        finished.message = "exit status 0".to_owned();
        let ill = [
            state("a", "", "pending", "no worker has gpu=true"),
            failing,
            finished,
            state("d", "worker-2", "backoff", "failing on worker-2: exit status 1, 12 times in a row"),
        ];
        let expected = "\
NAME   KIND   WEIGHT   WORKER     PHASE     RESTARTS   AGE   REASON
a      -           1   -          pending          0   5s    no worker has gpu=true
b      -           1   worker-1   backoff          4   5s    exit status 3
c      -           1   worker-1   exited           0   5s    exit status 0
d      -           1   worker-2   backoff          0   5s    failing on worker-2: exit status 1, 12 times in a row
";
        assert_eq!(table_at(&ill, None, 6_000_000_000, false), expected);
        let expected = "\
NAME   KIND   WEIGHT   WORKER     PHASE     RESTARTS   AGE   CPU   MEMORY   PROCESSES   REASON
a      -           1   -          pending          0   5s      -        -           -   no worker has gpu=true
b      -           1   worker-1   backoff          4   5s      -        -           -   exit status 3
c      -           1   worker-1   exited           0   5s      -        -           -   exit status 0
d      -           1   worker-2   backoff          0   5s      -        -           -   failing on worker-2: exit status 1, 12 times in a row
";
        assert_eq!(table_at(&ill, Some(&Usage::default()), 6_000_000_000, false), expected);
    }

    #[test]
    fn a_new_list_prints_only_what_differs() {
        let mut shown = Shown::default();
        let list = |states: &[ResourceState]| states.iter().map(|s| (name_of(s).to_owned(), s.clone())).collect::<BTreeMap<_, _>>();
        let kinds = |changes: Vec<(&'static str, ResourceState)>| {
            changes.into_iter().map(|(k, s)| format!("{k} {}", name_of(&s))).collect::<Vec<_>>()
        };
        let (a, b) = (state("a", "w", "running", ""), state("b", "w", "running", ""));
        assert_eq!(kinds(whole(&mut shown, list(&[a.clone(), b.clone()]))), ["ADDED a", "ADDED b"]);
        assert_eq!(kinds(whole(&mut shown, list(&[a.clone(), b]))), [""; 0]);
        let moved = state("a", "v", "running", "");
        assert_eq!(kinds(whole(&mut shown, list(&[moved, state("c", "w", "running", "")]))), ["DELETED b", "MODIFIED a", "ADDED c"]);
    }
}
