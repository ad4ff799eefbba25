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
        /// One page, as it is encoded. gRPC clients take 4 MiB unless they are told otherwise, and a page ends before that.
        MAX_PAGE_BYTES: usize = 3 << 20, "bytes";
        /// Actions of a plan that a caller asks for, and resources assigned nowhere that it looks at. It is made while the leader waits: in some
        /// ten milliseconds.
        MAX_PLAN: usize = 5000, "entries";
        /// Plans and explanations that wait for their turn, one being made at a time.
        MAX_PLANS_WAITING: usize = 32, "calls";
        /// Streams that watch resources or events, or follow output, over all callers. Each remembers what its caller was shown.
        MAX_WATCHES: usize = 1024, "streams";
        /// Requests to change something that are read and not yet answered, over all callers. A leader writes that many within
        /// a second.
        MAX_WAITING: usize = 8192, "requests";
        /// Of those, what all streams and sources may take together. Who asks for one thing finds a place beside them.
        MAX_WAITING_OF_STREAMS: usize = 1024, "requests";
        /// The requests that are read and not yet answered. Two thousand of the largest specs.
        MAX_WAITING_BYTES: usize = 128 << 20, "bytes";
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
