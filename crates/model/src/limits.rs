//! Every limit of input, in one place: name, value, unit and reason. `docs/limits.md` is this table, printed.
//!
//! The wheel: before it. A limit is judged where input comes in, and its refusal names it; what was stored is never judged again.

use std::fmt::Write;

/// One limit, as the docs print it.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// The constant's name.
    pub name: &'static str,
    /// How much of it is taken.
    pub value: u64,
    /// Of what.
    pub unit: &'static str,
    /// What is limited, and why at this value.
    pub reason: &'static str,
}

/// Limits that belong together.
#[derive(Clone, Copy, Debug)]
pub struct Section {
    /// What they limit, and how a refusal comes.
    pub title: &'static str,
    /// Each of them.
    pub limits: &'static [Limit],
}

macro_rules! limits {
    ($($title:literal { $($(#[doc = $reason:literal])+ $name:ident: $type:ty = $value:expr, $unit:literal;)+ })+) => {
        $($($(#[doc = $reason])+ pub const $name: $type = $value;)+)+

        /// All of them.
        pub const ALL: &[Section] = &[$(Section {
            title: $title,
            limits: &[$(Limit { name: stringify!($name), value: $name as u64, unit: $unit, reason: concat!($($reason),+) }),+],
        }),+];
    };
}

limits! {
    "Resources and workers (INVALID_ARGUMENT, which names the field and the limit)" {
        /// The name of a resource, a kind, a source, or the id of a worker or master. It becomes a part of a key in etcd and of a file's name, where 255 is the most.
        MAX_NAME: usize = 253, "characters";
        /// The weight of a resource. A million of the heaviest still add up within 64 bits.
        MAX_WEIGHT: u32 = 1_000_000, "payload";
        /// Labels of one resource or worker. Each choice may look at all of them.
        MAX_LABELS: usize = 64, "labels";
        /// A key or a value of a label. A name fits, since a set's name becomes the value of a label.
        MAX_LABEL: usize = 253, "characters";
        /// A spec, as canonical JSON. It is stored twice, with the resource and with the assignment, and etcd takes 1.5 MiB at once.
        MAX_SPEC: usize = 64 << 10, "bytes";
        /// Lists and maps within each other in a spec, the spec itself being the first. A level takes three in a protobuf struct, whose readers go
        /// down a hundred; files and JSON could hold more.
        MAX_SPEC_DEPTH: usize = 32, "levels";
        /// Entries of `prefer`. Each choice asks all of them of each shape of worker.
        MAX_PREFERENCES: usize = 16, "preferences";
        /// The weight of a preference. As that of a resource, since it is worth payload.
        MAX_PREFERENCE: u32 = 1_000_000, "payload";
        /// A record in etcd that a master acts on, as it would write it, with 10 KiB of room; a longer one is left alone, as one that cannot be read. It is written in one transaction with its
        /// assignment, which holds at most as much, and a transaction takes 1 MiB. A resource within all other limits has half of this.
        MAX_RECORD: usize = 480 << 10, "bytes";
    }
    "Selectors: `require`, `prefer`, `together`, `apart`, `-l`, `selector` (INVALID_ARGUMENT, which names the field and the limit)" {
        /// A selector, as it is written and as it is stored. One resource holds up to twenty, and `require` is stored twice: that is 164 kB of the 1 MiB
        /// of a transaction. Thirty of the longest values fit.
        MAX_SELECTOR: usize = 8192, "characters";
        /// Terms of one selector. One for each label that a worker may have.
        MAX_TERMS: usize = 64, "terms";
        /// Values of one selector, in all its terms together. A label is compared with each of them, for each shape of worker.
        MAX_VALUES: usize = 256, "values";
    }
    "Specs of kind `process` (INVALID_ARGUMENT, which names the field and the limit)" {
        /// Entries of `command`. Each costs execve a pointer and a NUL byte: with 64 KiB of text, all of these and all of the environment stay below
        /// the 128 KiB that Linux takes at least. A single argument may be as long as the spec, which is half of what execve takes of one.
        MAX_ARGUMENTS: usize = 4096, "arguments";
        /// Entries of `env`, and of `env_pass`. See the arguments.
        MAX_ENV: usize = 1024, "variables";
        /// `cwd`, and the program of `command`. Linux takes 4096 with the NUL byte at the end.
        MAX_PATH: usize = 4095, "bytes";
        /// `stop_grace`. While work is being stopped its name is taken, and a worker that leaves waits for it.
        MAX_GRACE: u64 = 3600, "seconds";
    }
    "What a worker says of itself (a worker beyond them runs nothing; `evenkeel workers` and `explain` say why)" {
        /// For how long one proof gives authority. A leader waits for no more than this, so that no registration can hold its resources for days.
        MAX_AUTHORITY: u64 = 3600, "seconds";
        /// The kinds that it has drivers for, each of which is a name.
        MAX_KINDS: usize = 64, "kinds";
        /// An address of one of its servers: the longest name of a host, a colon and a port, with room for an IPv6 zone. It is written into the record of each
        /// resource that runs there.
        MAX_ADDRESS: usize = 320, "characters";
        /// Its version, its containment, its boot id and its guard's id. The leader writes the last two into the admission.
        MAX_WORD: usize = 128, "characters";
    }
    "Tasks (INVALID_ARGUMENT, which names the field and the limit; RESOURCE_EXHAUSTED for what is kept)" {
        /// A script. It is read by each of its workers and kept with the task; what is larger is better fetched by the script.
        MAX_SCRIPT: usize = 64 << 10, "bytes";
        /// What it reads from its standard input. It is kept beside the script.
        MAX_STDIN: usize = 16 << 10, "bytes";
        /// Its arguments together, with one byte more for each. They stand in the definition, which each master holds.
        MAX_TASK_ARGS: usize = 4096, "bytes";
        /// Its environment together, with two bytes more for each variable. See the arguments.
        MAX_TASK_ENV: usize = 16 << 10, "bytes";
        /// Its references to secrets, each of which becomes a file.
        MAX_TASK_SECRETS: usize = 64, "references";
        /// The hosts of a task. Each costs an order, a result and a tail in etcd.
        MAX_HOSTS: usize = 10_000, "hosts";
        /// The hosts of a task as they are named, with three bytes more for each, and the text in which the original's door was given them. They stand in one
        /// key, beside which a transaction has room for the script.
        MAX_HOSTS_BYTES: usize = 512 << 10, "bytes";
        /// The title of a task, as the original has it.
        MAX_TITLE: usize = 255, "characters";
        /// Who asks, as they say, as the original has it.
        MAX_CREATOR: usize = 64, "characters";
        /// The account that a script runs as, as the original has it. Linux takes 32.
        MAX_ACCOUNT: usize = 64, "characters";
        /// The key by which a repetition is known. A UUID fits well.
        MAX_TASK_KEY: usize = 128, "characters";
        /// `timeout`, `grace` and `deliver`. For so long a result is kept.
        MAX_TASK_SPAN: u64 = 604_800, "seconds";
        /// Tasks that are kept. The oldest that are done make room; where so many go on, another is refused.
        MAX_TASKS: usize = 1000, "tasks";
        /// Hosts of all tasks that are kept, each of which has a result in the end. At 0.3 KiB they are 60 MiB in etcd and in each master.
        MAX_RESULTS: usize = 200_000, "hosts";
        /// Tails of output that are kept in etcd of all tasks, the oldest going first. An eighth of the space that etcd has unless told otherwise.
        MAX_TAILS: u64 = 256 << 20, "bytes";
        /// For how long a task is kept after it was done.
        KEEP_TASKS_S: u64 = 604_800, "seconds";
    }
    "Files of resources (an error with file and line)" {
        /// A file. A million resources of the usual size fit.
        MAX_FILE: usize = 64 << 20, "bytes";
        /// Keys, values, lists and maps of one file. A million resources of four fields fit.
        MAX_NODES: usize = 12_000_000, "nodes";
        /// The nesting of a file. Readers go down by recursion.
        MAX_DEPTH: usize = 64, "levels";
    }
    "Requests (INVALID_ARGUMENT or RESOURCE_EXHAUSTED; by HTTP 400, 413 or 429)" {
        /// A message by gRPC to a service of a master, or a body by HTTP. A resource with the largest spec and the largest rules fits well.
        MAX_MESSAGE: usize = 1 << 20, "bytes";
        /// A message by gRPC to a worker, to health or to reflection: a name of a few hundred characters, with room for what later versions ask.
        MAX_QUESTION: usize = 64 << 10, "bytes";
        /// Lists and maps within each other in the JSON of a body: those of a spec and of the messages around it. Beyond it the decoders give up.
        MAX_BODY_DEPTH: usize = 36, "levels";
        /// Entries of one page.
        MAX_PAGE: usize = 5000, "entries";
        /// One page, as it is encoded. gRPC clients take 4 MiB unless they are told otherwise, and a page ends before that.
        MAX_PAGE_BYTES: usize = 3 << 20, "bytes";
        /// Actions of a plan that a caller asks for, and resources assigned nowhere that it looks at. It is made while the leader waits: in some
        /// ten milliseconds.
        MAX_PLAN: usize = 5000, "entries";
        /// Plans that wait for their turn, one being made at a time.
        MAX_PLANS_WAITING: usize = 32, "calls";
        /// Lists and explanations that are being made. They give way to the leader between their steps, and share the processors with it.
        MAX_SEARCHES: usize = 16, "calls";
        /// Lists and explanations that wait for that.
        MAX_SEARCHES_WAITING: usize = 1024, "calls";
        /// Streams that watch resources or events, or follow output, over all callers. Each remembers what its caller was shown.
        MAX_WATCHES: usize = 1024, "streams";
        /// Calls that ask workers what work uses. Each asks sixteen workers at once, and one may answer with 4 MiB.
        MAX_USAGES: usize = 4, "calls";
        /// Requests to change something that are read and not yet answered, over all callers. A leader writes that many within
        /// a second.
        MAX_WAITING: usize = 8192, "requests";
        /// Of those, what all streams and sources may take together. Who asks for one thing finds a place beside them.
        MAX_WAITING_OF_STREAMS: usize = 1024, "requests";
        /// The requests that are read and not yet answered; all streams and sources together may take half of it. Two thousand of the largest
        /// specs.
        MAX_WAITING_BYTES: usize = 128 << 20, "bytes";
    }
    "Connections to a master or worker, gRPC and HTTP together (closed, or HTTP 408, 431 or 503; by gRPC DEADLINE_EXCEEDED)" {
        /// A request's headers, from their first byte to their last. They are small, and a caller that needs longer does not want an answer.
        HEADER_READ_S: u64 = 10, "seconds";
        /// A request's headers together. Browsers and proxies send 8 KiB at the most.
        MAX_HEADER: usize = 16 << 10, "bytes";
        /// Headers of a request. Twice what a browser behind two proxies sends.
        MAX_HEADERS: usize = 100, "headers";
        /// A request's body, from its headers to its last byte; a gRPC call that streams its requests has no such bound. The largest body at 1 Mbit/s takes 9 s.
        BODY_READ_S: u64 = 15, "seconds";
        /// A connection without a request in flight. It costs a file and some memory, and opening another one costs a round trip.
        IDLE_S: u64 = 60, "seconds";
        /// Connections to one process, or half (a worker: a quarter) of the files that it may open, if that is less. At the limit the one that has waited longest without a request is closed.
        MAX_CONNECTIONS: usize = 4096, "connections";
        /// Connections from one address that is not this machine's own. Browsers open 6, a proxy a few dozen.
        MAX_CONNECTIONS_OF_ADDRESS: usize = 256, "connections";
        /// Requests in flight on one HTTP/2 connection. RFC 9113 asks for no less than 100.
        MAX_STREAMS: u32 = 128, "streams";
        /// What one stream of an HTTP/2 connection may send that is not read yet. A round trip moves that much: at 1 ms 64 MB a second.
        STREAM_WINDOW: u32 = 64 << 10, "bytes";
        /// The same of all streams of one connection. All of them may be unread, so one that is holds up no other.
        CONNECTION_WINDOW: u32 = STREAM_WINDOW * MAX_STREAMS, "bytes";
        /// Streams that a standby passes on to the leader by one connection; it opens as many connections as `MAX_WATCHES` needs. Below
        /// `MAX_STREAMS`, beyond which a connection takes no further call, and no more than HTTP/2's clients begin before the server has named a limit.
        MAX_FORWARDED_STREAMS: usize = 100, "streams";
        /// Silence on an HTTP/2 connection before its liveness probe. Proxies and firewalls forget connections after a minute or more.
        KEEP_ALIVE_S: u64 = 20, "seconds";
        /// How long that answer may take. It is given without the caller's doing, so it takes a round trip.
        KEEP_ALIVE_ANSWER_S: u64 = 10, "seconds";
        /// Silence on a TCP connection before its keep-alive probes. They find a peer whose machine has gone, whatever it speaks.
        TCP_PROBE_S: u64 = 20, "seconds";
        /// From one such probe to the next.
        TCP_PROBE_AGAIN_S: u64 = 10, "seconds";
        /// Probes without an answer after which the connection is closed. Two may be lost.
        TCP_PROBES: u32 = 3, "probes";
        /// Requests of one HTTP/2 connection that were reset before they were taken up. More is an attack (CVE-2023-44487).
        MAX_PENDING_RESETS: usize = 20, "streams";
        /// Streams of one HTTP/2 connection that were reset for a fault of the caller's. More is an attack (CVE-2025-8671).
        MAX_LOCAL_RESETS: usize = 256, "streams";
    }
}

/// The table as Markdown.
#[must_use]
pub fn to_markdown() -> String {
    let mut text = String::new();
    for section in ALL {
        // Writing to a text cannot fail.
        let _ = write!(text, "\n## {}\n\n| limit | value | of what, and why this much |\n|---|---|---|\n", section.title);
        for Limit { name, value, unit, reason } in section.limits {
            let _ = writeln!(text, "| `{name}` | {value} {unit} | {} |", reason.trim());
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_docs_print_this_table() {
        let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/limits.md")).expect("the page");
        let printed = page.split_once("\n## ").map(|(_, rest)| format!("\n## {rest}")).unwrap_or_default();
        assert_eq!(printed, to_markdown(), "docs/limits.md differs; after its first heading it is to be:\n{}", to_markdown());
    }
}
