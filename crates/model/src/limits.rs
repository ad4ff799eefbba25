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
        /// A name or an id. It becomes a part of a key in etcd and of a file's name, where 255 is the most.
        MAX_NAME: usize = 253, "characters";
        /// The weight of a resource. A million of the heaviest still add up within 64 bits.
        MAX_WEIGHT: u32 = 1_000_000, "payload";
        /// Labels of one resource or worker. Each choice may look at all of them.
        MAX_LABELS: usize = 64, "labels";
        /// A key or a value of a label. A name fits, since a set's name becomes the value of a label.
        MAX_LABEL: usize = 253, "characters";
        /// A spec, as canonical JSON. It is stored twice, with the resource and with the assignment, and etcd takes 1.5 MiB at once.
        MAX_SPEC: usize = 64 << 10, "bytes";
        /// Entries of `prefer`. Each choice asks all of them of each shape of worker.
        MAX_PREFERENCES: usize = 16, "preferences";
        /// The weight of a preference. As that of a resource, since it is worth payload.
        MAX_PREFERENCE: u32 = 1_000_000, "payload";
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
        /// A message by gRPC, or a body by HTTP. A resource with the largest spec and the largest rules fits well.
        MAX_MESSAGE: usize = 1 << 20, "bytes";
        /// Entries of one page.
        MAX_PAGE: usize = 5000, "entries";
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
        /// Silence on an HTTP/2 connection before it is asked for a sign of life. Proxies and firewalls forget connections after a minute or more.
        KEEP_ALIVE_S: u64 = 20, "seconds";
        /// How long that answer may take. It is given without the caller's doing, so it takes a round trip.
        KEEP_ALIVE_ANSWER_S: u64 = 10, "seconds";
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
        let page = include_str!("../../../docs/limits.md");
        let printed = page.split_once("\n## ").map(|(_, rest)| format!("\n## {rest}")).unwrap_or_default();
        assert_eq!(printed, to_markdown(), "docs/limits.md differs; after its first heading it is to be:\n{}", to_markdown());
    }
}
