//! Reads a log from a point on, across generations, and goes on where files come and go.
//!
//! The wheel: under worker::server. It writes nothing, and keeps no more than one piece in memory.

use std::{fs::File, os::unix::fs::FileExt};

use evenkeel_model::{Epoch, ResourceName};

use super::place::{Generation, Place, PlaceError, Position};

/// One piece: what a message of a stream holds.
const PIECE: usize = 64 * 1024;

/// Where reading begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    /// With the oldest that is kept.
    Start,
    /// So many lines before the end of what is kept.
    Tail(usize),
    /// Where an earlier reader was.
    Position(Position),
    /// Where the output of this epoch begins, or of a later one; with what comes, if there is none yet.
    Epoch(Epoch),
}

/// Reads one log.
#[derive(Debug)]
pub(crate) struct Reader {
    place: Place,
    name: ResourceName,
    /// None: there is no file to read from yet.
    file: Option<(File, Generation)>,
    offset: u64,
    /// Nothing that is older than this one is read.
    after: Option<Generation>,
}

impl Reader {
    /// Finds where to begin.
    pub(super) fn begin(place: Place, name: ResourceName, from: From) -> Result<Self, PlaceError> {
        let mut reader = Self { place, name, file: None, offset: 0, after: None };
        let kept = reader.place.kept(&reader.name)?;
        match from {
            From::Start => reader.file = kept.into_iter().next(),
            From::Tail(lines) => reader.seek_lines(kept, lines)?,
            From::Position(position) => reader.seek(kept, position),
            From::Epoch(epoch) => match reader.place.mark(&reader.name)? {
                Some((marked, position)) if marked >= epoch => reader.seek(kept, position),
                _ => reader.seek_end(kept)?,
            },
        }
        Ok(reader)
    }

    /// Whether there is a log.
    pub(crate) fn has_file(&self) -> bool {
        self.file.is_some()
    }

    /// Where it is; none before the first file.
    pub(crate) fn position(&self) -> Option<Position> {
        self.file.as_ref().map(|(_, generation)| Position { generation: *generation, offset: self.offset })
    }

    fn failed(&self, error: &std::io::Error) -> PlaceError {
        PlaceError::reading(self.place.of(&self.name), error)
    }

    fn seek(&mut self, kept: Vec<(File, Generation)>, at: Position) {
        self.after = Some(at.generation);
        for (file, generation) in kept {
            if generation == at.generation {
                (self.file, self.offset) = (Some((file, generation)), at.offset);
                return;
            }
            if generation.is_after(at.generation) {
                self.file = Some((file, generation));
                return;
            }
        }
    }

    fn seek_end(&mut self, kept: Vec<(File, Generation)>) -> Result<(), PlaceError> {
        let Some((file, generation)) = kept.into_iter().last() else { return Ok(()) };
        self.offset = file.metadata().map_err(|error| self.failed(&error))?.len();
        self.file = Some((file, generation));
        Ok(())
    }

    /// Goes back from the end until so many lines are behind it.
    fn seek_lines(&mut self, kept: Vec<(File, Generation)>, lines: usize) -> Result<(), PlaceError> {
        let (mut found, mut is_last) = (0, true);
        let mut piece = vec![0; PIECE];
        for (file, generation) in kept.into_iter().rev() {
            let mut end = file.metadata().map_err(|error| self.failed(&error))?.len();
            while end > 0 {
                let start = end.saturating_sub(PIECE as u64);
                let piece = &mut piece[..usize::try_from(end - start).unwrap_or(PIECE)];
                file.read_exact_at(piece, start).map_err(|error| self.failed(&error))?;
                for (at, byte) in piece.iter().enumerate().rev() {
                    // The end of the last line begins no line.
                    if *byte == b'\n' && !std::mem::take(&mut is_last) {
                        found += 1;
                        if found == lines {
                            (self.file, self.offset) = (Some((file, generation)), start + at as u64 + 1);
                            return Ok(());
                        }
                    }
                    is_last = false;
                }
                end = start;
            }
            self.file = Some((file, generation));
        }
        Ok(())
    }

    /// Up to one piece of what comes next; empty if there is nothing at the moment.
    pub(super) fn more(&mut self) -> Result<Vec<u8>, PlaceError> {
        loop {
            let bytes = self.rest()?;
            if !bytes.is_empty() {
                return Ok(bytes);
            }
            let Some(next) = self.next_file()? else { return Ok(bytes) };
            // Something may have come between the last read and the change.
            let bytes = self.rest()?;
            if !bytes.is_empty() {
                return Ok(bytes);
            }
            (self.file, self.offset) = (Some(next), 0);
        }
    }

    /// What the present file has beyond the offset.
    fn rest(&mut self) -> Result<Vec<u8>, PlaceError> {
        let Some((file, _)) = &self.file else { return Ok(Vec::new()) };
        let len = file.metadata().map_err(|error| self.failed(&error))?.len();
        if len < self.offset {
            // Somebody has emptied it.
            self.offset = 0;
        }
        let count = (len - self.offset.min(len)).min(PIECE as u64);
        let mut bytes = vec![0; usize::try_from(count).unwrap_or(PIECE)];
        let read = file.read_at(&mut bytes, self.offset).map_err(|error| self.failed(&error))?;
        bytes.truncate(read);
        self.offset += read as u64;
        Ok(bytes)
    }

    /// The file after the present one; none: there is none yet.
    fn next_file(&mut self) -> Result<Option<(File, Generation)>, PlaceError> {
        let present = self.file.as_ref().map(|(_, generation)| *generation).or(self.after);
        let mut kept = self.place.kept(&self.name)?;
        let Some(present) = present else { return Ok(if kept.is_empty() { None } else { Some(kept.remove(0)) }) };
        let after = kept.iter().position(|(_, generation)| *generation == present).map_or(0, |at| at + 1);
        Ok(kept.into_iter().skip(after).find(|(_, generation)| generation.is_after(present)))
    }
}
