//! What a task runs, as text: read from a file or from stdin, or made of a command. Under client::task. It sends nothing.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use evenkeel_model::limits::{MAX_SCRIPT, MAX_STDIN};

use crate::client::ClientError;

/// Stands for stdin where a file is asked for.
pub(super) const STDIN: &str = "-";

/// The script in a file, or in stdin.
pub(super) fn read(path: &str) -> Result<String, ClientError> {
    let text = text(path, MAX_SCRIPT, "let the script fetch what is larger")?;
    match text.contains('\0') {
        true => wrong(path, "has a NUL character; give a script, that is text"),
        false => Ok(text),
    }
}

/// What a script is to read from its standard input.
pub(super) fn read_input(path: &str) -> Result<String, ClientError> {
    text(path, MAX_STDIN, "let the script fetch what is larger")
}

fn wrong<T>(path: &str, why: &str) -> Result<T, ClientError> {
    let name = if path == STDIN { "stdin" } else { path };
    Err(ClientError::Usage(format!("{name}: {why}")))
}

fn text(path: &str, most: usize, way_out: &str) -> Result<String, ClientError> {
    let bytes = match bytes(path, most) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return wrong(path, "there is no such file; give the path of one, - for stdin, or a command after --");
        }
        Err(e) if e.kind() == io::ErrorKind::IsADirectory => return wrong(path, "is a folder; give the file in it that is to run"),
        Err(e) => return wrong(path, &format!("cannot be read: {e}")),
    };
    if bytes.len() > most {
        return wrong(path, &format!("has more than {most} bytes, which is the limit; {way_out}"));
    }
    String::from_utf8(bytes).or_else(|e| {
        let at = e.utf8_error().valid_up_to();
        wrong(path, &format!("is no UTF-8 text (byte {at}); let a script fetch what is none"))
    })
}

/// At most one byte more than there may be.
fn bytes(path: &str, most: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
    match path {
        STDIN => io::stdin().lock().take(limit).read_to_end(&mut bytes)?,
        _ => File::open(Path::new(path))?.take(limit).read_to_end(&mut bytes)?,
    };
    Ok(bytes)
}

/// A script that becomes the command.
pub(super) fn of_command(command: &[String]) -> String {
    let words: Vec<String> = command.iter().map(|word| quoted(word)).collect();
    format!("#!/bin/sh\nexec {}\n", words.join(" "))
}

/// A word as /bin/sh reads it back unchanged.
fn quoted(word: &str) -> String {
    // None of these means anything to a shell, also not at the start of a word.
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use super::*;

    #[test]
    fn a_command_is_quoted_for_the_shell() {
        let script = |words: &[&str]| of_command(&words.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(script(&["df", "-h", "/"]), "#!/bin/sh\nexec df -h /\n");
        assert_eq!(script(&["echo", "it's", "", "$HOME", "a b"]), "#!/bin/sh\nexec echo 'it'\\''s' '' '$HOME' 'a b'\n");
    }

    #[test]
    fn the_shell_reads_back_what_was_quoted() {
        let words = [
            "", " ", "a b", "'", "''", "\\", "$x", "`id`", "*", "~", "#", "!", "\"", "a\nb", "é", "-n", "a=b", ";", "&", "|", "{a,b}",
            "[a]",
        ];
        let command: Vec<String> = ["printf", "<%s>"].into_iter().chain(words).map(str::to_owned).collect();
        let output = Command::new("/bin/sh").arg("-c").arg(of_command(&command)).output().expect("a shell");
        let expected: String = words.iter().map(|word| format!("<{word}>")).collect();
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    }

    #[test]
    fn a_file_that_cannot_be_a_script_is_refused_with_a_way_out() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name).to_str().expect("a path").to_owned();
        let file = |name: &str, content: &[u8]| {
            fs::write(path(name), content).expect("written");
            path(name)
        };
        let most = "x".repeat(MAX_SCRIPT);
        let cases = [
            (path("none"), "there is no such file; give the path of one, - for stdin, or a command after --"),
            (path(""), "is a folder; give the file in it that is to run"),
            (
                file("large", format!("{most}x").as_bytes()),
                "has more than 65536 bytes, which is the limit; let the script fetch what is larger",
            ),
            (file("binary", b"ab\xff"), "is no UTF-8 text (byte 2); let a script fetch what is none"),
            (file("nul", b"a\0b"), "has a NUL character; give a script, that is text"),
        ];
        for (path, why) in cases {
            assert_eq!(read(&path).expect_err("refused").to_string(), format!("{path}: {why}"));
        }
        assert_eq!(read(&file("most", most.as_bytes())).expect("taken"), most);
        assert_eq!(read_input(&file("input", b"a\0b")).expect("taken"), "a\0b");
        assert!(read_input(&file("long", &vec![b'x'; MAX_STDIN + 1])).is_err());
    }
}
