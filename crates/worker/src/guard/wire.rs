//! What guard and agent say to each other over their socket: messages of one size, in one file for both sides.
//!
//! The wheel: beside worker::agent, under worker::guard. Eight little-endian words of 64 bits: a tag, then what the tag says. The upper half
//! of the hello's tag is the number of the format, which stands in the first eight bytes whatever else changes: an agent of another version
//! than its guard says so, and guesses nothing.
//!
//! | tag | from | words |
//! |---|---|---|
//! | 1 hello | guard | guard id, generation, session, lease of the agent before (0: none), 1 if work is held by a cgroup, the guard's pid namespace, its start time |
//! | 2 leave | guard | |
//! | 3 authority | agent | boot time in ns at which everything is to be killed; 0: nothing runs, no end |
//! | 4 registered | agent | session, lease |
//! | 5 scripts | agent | boot time in ns by which a script of a task has to have been killed; 0: none runs |

use evenkeel_model::Session;

use crate::protocol::authority::BootTime;

/// The format of the messages: one more with every change of what they say. Version 0.1.0 had none, which reads as 0.
pub(crate) const FORMAT: u64 = 2;
/// The size of each message.
pub(crate) const SIZE: usize = 8 * WORDS;
const WORDS: usize = 8;

const HELLO: u64 = 1;
const HELLO_IN_FORMAT: u64 = HELLO | FORMAT << 32;
const LEAVE: u64 = 2;
const AUTHORITY: u64 = 3;
const REGISTERED: u64 = 4;
const SCRIPTS: u64 = 5;

/// A registration as the guard remembers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registered {
    /// The session.
    pub session: Session,
    /// The lease that its key is bound to.
    pub lease: i64,
}

/// The first message to a new agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Random, drawn once when the guard started.
    pub guard: u64,
    /// How many agents this guard has started, this one included.
    pub generation: u64,
    /// The last session that an agent of this guard registered. Everything of it, and of all before it, has been reaped.
    pub previous: Option<Registered>,
    /// The guard made a cgroup for the work.
    pub by_cgroup: bool,
    /// The guard's pid namespace, as in its mark.
    pub pid_namespace: u64,
    /// When the guard started, as in its mark.
    pub started: u64,
}

/// What the guard says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ToAgent {
    /// The first message.
    Hello(Hello),
    /// Stop everything, release the registration, exit with status 0.
    Leave,
}

/// What the agent says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToGuard {
    /// When to kill; none: nothing runs.
    Authority(Option<BootTime>),
    /// A session was registered.
    Registered(Registered),
    /// When to kill because a script of a task outlives its time, whatever authority says; none: none runs.
    Scripts(Option<BootTime>),
}

type Message = [u8; SIZE];

fn pack(words: [u64; WORDS]) -> Message {
    let mut message = [0; SIZE];
    for (place, word) in message.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    message
}

fn unpack(message: &Message) -> [u64; WORDS] {
    let mut words = [0; WORDS];
    for (word, place) in words.iter_mut().zip(message.chunks_exact(8)) {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(place);
        *word = u64::from_le_bytes(bytes);
    }
    words
}

fn registered(session: u64, lease: u64) -> Option<Registered> {
    (session != 0).then_some(Registered { session: Session(session.cast_signed()), lease: lease.cast_signed() })
}

impl ToAgent {
    pub(crate) fn encode(&self) -> Message {
        match self {
            Self::Hello(Hello { guard, generation, previous, by_cgroup, pid_namespace, started }) => {
                let (session, lease) = previous.map_or((0, 0), |p| (p.session.0.cast_unsigned(), p.lease.cast_unsigned()));
                pack([HELLO_IN_FORMAT, *guard, *generation, session, lease, u64::from(*by_cgroup), *pid_namespace, *started])
            }
            Self::Leave => pack([LEAVE, 0, 0, 0, 0, 0, 0, 0]),
        }
    }

    /// None for a tag that is not known.
    pub(crate) fn decode(message: &Message) -> Option<Self> {
        match unpack(message) {
            [HELLO_IN_FORMAT, guard, generation, session, lease, by_cgroup, pid_namespace, started] => {
                let (previous, by_cgroup) = (registered(session, lease), by_cgroup != 0);
                Some(Self::Hello(Hello { guard, generation, previous, by_cgroup, pid_namespace, started }))
            }
            [LEAVE, ..] => Some(Self::Leave),
            _ => None,
        }
    }
}

impl ToGuard {
    pub(crate) fn encode(&self) -> Message {
        match self {
            Self::Authority(end) => pack([AUTHORITY, end.map_or(0, |at| at.0), 0, 0, 0, 0, 0, 0]),
            Self::Registered(Registered { session, lease }) => {
                pack([REGISTERED, session.0.cast_unsigned(), lease.cast_unsigned(), 0, 0, 0, 0, 0])
            }
            Self::Scripts(end) => pack([SCRIPTS, end.map_or(0, |at| at.0), 0, 0, 0, 0, 0, 0]),
        }
    }

    /// None for a tag that is not known.
    pub(crate) fn decode(message: &Message) -> Option<Self> {
        match unpack(message) {
            [AUTHORITY, end, ..] => Some(Self::Authority((end != 0).then_some(BootTime(end)))),
            [REGISTERED, session, lease, ..] => registered(session, lease).map(Self::Registered),
            [SCRIPTS, end, ..] => Some(Self::Scripts((end != 0).then_some(BootTime(end)))),
            _ => None,
        }
    }
}

/// Puts messages together from what a read yields.
#[derive(Debug)]
pub(crate) struct Inbox {
    bytes: Message,
    filled: usize,
}

impl Inbox {
    pub(crate) fn new() -> Self {
        Self { bytes: [0; SIZE], filled: 0 }
    }

    /// Where the next read goes to.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[self.filled..]
    }

    /// So many bytes were read; a message if it is whole.
    pub(crate) fn filled(&mut self, count: usize) -> Option<Message> {
        self.filled += count;
        if self.filled < SIZE {
            return None;
        }
        self.filled = 0;
        Some(self.bytes)
    }

    /// The format of the hello that the last message is, or begins as; none: so far it is no hello.
    pub(crate) fn format_of_hello(&self) -> Option<u64> {
        if (1..8).contains(&self.filled) {
            return None;
        }
        let [word, ..] = unpack(&self.bytes);
        (word & 0xffff_ffff == HELLO).then_some(word >> 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_comes_back() {
        let previous = Some(Registered { session: Session(12), lease: -5 });
        for message in [
            ToAgent::Hello(Hello { guard: u64::MAX, generation: 2, previous, by_cgroup: true, pid_namespace: 7, started: 8 }),
            ToAgent::Hello(Hello { guard: 1, generation: 1, previous: None, by_cgroup: false, pid_namespace: 0, started: u64::MAX }),
            ToAgent::Leave,
        ] {
            assert_eq!(ToAgent::decode(&message.encode()), Some(message));
        }
        for message in [
            ToGuard::Authority(Some(BootTime(77))),
            ToGuard::Authority(None),
            ToGuard::Scripts(Some(BootTime(78))),
            ToGuard::Scripts(None),
            ToGuard::Registered(Registered { session: Session(3), lease: i64::MAX }),
        ] {
            assert_eq!(ToGuard::decode(&message.encode()), Some(message));
        }
        assert_eq!(ToGuard::decode(&[0; SIZE]), None);
        assert_eq!(ToAgent::decode(&[9; SIZE]), None);
    }

    #[test]
    fn messages_are_put_together_from_pieces() {
        let message = ToGuard::Authority(Some(BootTime(77))).encode();
        let mut inbox = Inbox::new();
        for _ in 0..2 {
            inbox.room()[..56].copy_from_slice(&message[..56]);
            assert_eq!(inbox.filled(56), None);
            assert_eq!(inbox.room().len(), 8);
            inbox.room().copy_from_slice(&message[56..]);
            assert_eq!(inbox.filled(8), Some(message));
        }
    }
}
