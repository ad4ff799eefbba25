//! How a value that is refused is shown: in quotes, without what a terminal would obey, and never more of it than a line takes. It judges
//! nothing.

/// The most characters of a value that are shown.
pub const SHOWN: usize = 80;

/// A text in quotes: control characters escaped, and cut where it is long.
#[must_use]
pub fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}...", &text[..end]),
    }
}

/// The same without quotes: the name of a field that somebody has given.
#[must_use]
pub fn bare(text: &str) -> String {
    cut(text.escape_debug().to_string())
}

/// A long text around one of its characters, counted from 0, in the same way.
#[must_use]
pub fn shown_around(text: &str, position: usize) -> String {
    let start = position.saturating_sub(SHOWN / 2);
    let piece: String = text.chars().skip(start).take(SHOWN).collect();
    let is_cut = text.chars().nth(start + SHOWN).is_some();
    format!("{}{piece:?}{}", if start > 0 { "..." } else { "" }, if is_cut { "..." } else { "" })
}

/// A text as it is, cut where it is long: for what cannot hold a control character.
#[must_use]
pub fn cut(text: String) -> String {
    cut_at(text, SHOWN)
}

/// What another library says of a fault, which may quote all of what it was given: as much of it as a line takes.
#[must_use]
pub fn sentence(fault: &impl ToString) -> String {
    let text: String = fault.to_string().chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    cut_at(text, 3 * SHOWN)
}

fn cut_at(mut text: String, most: usize) -> String {
    if let Some((end, _)) = text.char_indices().nth(most) {
        text.truncate(end);
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_shown_than_a_line_takes_and_nothing_that_a_terminal_obeys() {
        assert_eq!(shown("a\u{1b}[2J\n"), "\"a\\u{1b}[2J\\n\"");
        assert_eq!(shown(&"é".repeat(80)), format!("\"{}\"", "é".repeat(80)));
        assert_eq!(shown(&"é".repeat(81)), format!("\"{}\"...", "é".repeat(80)));
        assert_eq!((bare("a=b"), bare("a\u{1b}\n").as_str()), ("a=b".to_owned(), "a\\u{1b}\\n"));
        assert_eq!(cut("x".repeat(81)), format!("{}...", "x".repeat(80)));
        let long = format!("{}!{}", "a".repeat(1000), "b".repeat(1000));
        assert_eq!(shown_around(&long, 1000), format!("...\"{}!{}\"...", "a".repeat(40), "b".repeat(39)));
        assert_eq!(shown_around("a b", 2), "\"a b\"");
    }
}
