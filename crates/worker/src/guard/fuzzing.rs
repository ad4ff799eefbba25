//! What must hold of the messages between guard and agent, over bytes: for tests alone. It panics where it does not hold.

use super::wire::{Inbox, SIZE, ToAgent, ToGuard};

/// A stream of messages, which comes in pieces whose sizes the first byte decides: none is lost, and what is read is what would be sent.
///
/// # Panics
/// When what must hold does not.
pub fn guard_messages(data: &[u8]) {
    let Some((first, stream)) = data.split_first() else { return };
    let piece = usize::from(*first).max(1);
    let mut inbox = Inbox::new();
    let mut whole = Vec::new();
    let mut rest = stream;
    while !rest.is_empty() {
        let room = inbox.room();
        let count = piece.min(rest.len()).min(room.len());
        room[..count].copy_from_slice(&rest[..count]);
        rest = &rest[count..];
        whole.extend(inbox.filled(count));
    }
    assert!(whole.iter().flatten().eq(&stream[..stream.len() / SIZE * SIZE]), "the pieces are put together as they came");
    for message in &whole {
        if let Some(to_agent) = ToAgent::decode(message) {
            assert_eq!(ToAgent::decode(&to_agent.encode()), Some(to_agent));
        }
        if let Some(to_guard) = ToGuard::decode(message) {
            assert_eq!(ToGuard::decode(&to_guard.encode()), Some(to_guard));
        }
    }
}
