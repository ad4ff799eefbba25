//! Where tracing goes: to stderr, as text or as JSON.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::{
    listen::Note,
    settings::{CommonArgs, LogFormat},
};

/// Starts the log of a long-running process.
pub(crate) fn start(args: &CommonArgs) {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(&args.log_level))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()));
    // A second start would only find the first: tests of one process do that.
    let _ = match args.log_format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}

/// Says what was found while the settings were read.
pub(crate) fn tell(notes: &[Note]) {
    for Note { warning, text } in notes {
        if *warning { tracing::warn!("{text}") } else { tracing::info!("{text}") }
    }
}
