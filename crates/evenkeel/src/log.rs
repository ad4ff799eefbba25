//! Where tracing goes: to stderr, as text or as JSON, by a writer that nobody waits for.

use std::io::{self, IsTerminal};

use evenkeel_worker::log_writer;
use tracing_subscriber::EnvFilter;

use crate::{
    listen::Note,
    settings::{CommonArgs, LogFormat},
};

/// Starts the log of a long-running process, and the thread that writes it.
///
/// # Errors
/// No thread can be had.
pub(crate) fn start(args: &CommonArgs) -> io::Result<()> {
    let writer = log_writer::stderr()?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(&args.log_level))
        .with_writer(move || writer.clone())
        .with_ansi(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()));
    // A second start would only find the first: tests of one process do that.
    let _ = match args.log_format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}

/// The names of the levels, from the least to the most.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// What is to be logged: one level for everything, and others for parts of it. The filter itself takes nearly any word, as the name of a
/// part, and then logs nothing of all the rest: so a log that nobody reads until it is needed would be empty.
///
/// # Errors
/// What is wrong, and what would be taken.
pub(crate) fn level(text: &str) -> Result<String, String> {
    let mut all = None;
    let mut parts = Vec::new();
    for item in text.split(',').map(str::trim) {
        match item.split_once('=') {
            None => {
                if all.replace(level_name(item)?).is_some() {
                    return Err(format!("{item:?} is a second level for everything; give a part its own by TARGET=LEVEL"));
                }
            }
            Some((target, level)) => parts.push(format!("{}={}", target_name(target)?, level_name(level)?)),
        }
    }
    let Some(all) = all else {
        return Err(format!(
            "{text:?} lacks the level of everything else, which would not be logged at all; write info,{}",
            parts.join(",")
        ));
    };
    parts.insert(0, all);
    Ok(parts.join(","))
}

fn level_name(text: &str) -> Result<String, String> {
    let name = text.to_ascii_lowercase();
    if LEVELS.contains(&name.as_str()) {
        return Ok(name);
    }
    Err(format!("unknown log level {text:?}; use one of {}, or a list such as info,evenkeel_store=debug", LEVELS.join(", ")))
}

fn target_name(text: &str) -> Result<&str, String> {
    let is_path = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | ':');
    if !text.is_empty() && text.chars().all(is_path) {
        return Ok(text);
    }
    Err(format!("invalid target {text:?}: a module of the program, such as evenkeel_store or evenkeel_master::control"))
}

/// Says what was found while the settings were read.
pub(crate) fn tell(notes: &[Note]) {
    for Note { warning, text } in notes {
        if *warning { tracing::warn!("{text}") } else { tracing::info!("{text}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_read_or_refused_and_never_silences_by_mistake() {
        let good = [
            ("info", "info"),
            ("OFF", "off"),
            ("Warn", "warn"),
            (" debug ", "debug"),
            ("info,evenkeel_store=debug", "info,evenkeel_store=debug"),
            ("evenkeel_master::control=trace, warn , h2=off", "warn,evenkeel_master::control=trace,h2=off"),
        ];
        for (text, expected) in good {
            assert_eq!(level(text).as_deref(), Ok(expected), "{text:?}");
            assert_eq!(EnvFilter::try_new(expected).map(|filter| filter.max_level_hint().is_some()).ok(), Some(true), "{expected}");
        }
        let unknown =
            |text: &str| format!("unknown log level {text:?}; use one of off, error, warn, info, debug, trace, or a list such as");
        let bad = [
            ("verbos", unknown("verbos")),
            ("warning", unknown("warning")),
            ("none", unknown("none")),
            ("", unknown("")),
            ("0", unknown("0")),
            ("9", unknown("9")),
            ("info,", unknown("")),
            ("info,evenkeel_store", unknown("evenkeel_store")),
            ("info,evenkeel_store=loud", unknown("loud")),
            ("info,evenkeel_store=", unknown("")),
            ("[span]=debug,info", "invalid target \"[span]\": a module".to_owned()),
            ("info,=debug", "invalid target \"\": a module".to_owned()),
            ("info,a b=debug", "invalid target \"a b\": a module".to_owned()),
            ("info,debug", "\"debug\" is a second level for everything; give a part its own by TARGET=LEVEL".to_owned()),
            (
                "evenkeel_stroe=debug",
                "\"evenkeel_stroe=debug\" lacks the level of everything else, which would not be logged at all; write info,evenkeel_stroe=debug"
                    .to_owned(),
            ),
        ];
        for (text, expected) in bad {
            let said = level(text).expect_err(text);
            assert!(said.starts_with(&expected), "{text:?}: {said}");
        }
    }
}
