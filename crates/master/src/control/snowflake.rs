//! Ids of resources: 41 bits of milliseconds, 10 bits of the master, 12 bits of sequence, so that they grow and never repeat.

/// The origin of the milliseconds, 2010-11-04T01:42:54.657Z, in milliseconds since the Unix epoch: that of the ids which clusters of
/// the system before hold already.
const ORIGIN_MS: u64 = 1_288_834_974_657;
const SEQUENCE_BITS: u32 = 12;
const NODE_BITS: u32 = 10;

/// Makes ids. A clock that goes back does not make an id twice: the last moment is kept until the clock has passed it.
#[derive(Debug)]
pub(super) struct Snowflakes {
    node: u64,
    last_ms: u64,
    sequence: u64,
}

impl Snowflakes {
    /// For one term of leadership: the fence distinguishes it from the others.
    pub(super) fn new(fence: i64) -> Self {
        Self { node: fence.unsigned_abs() % (1 << NODE_BITS), last_ms: 0, sequence: 0 }
    }

    /// The next id; `unix_ns` is the time of day in nanoseconds since the Unix epoch.
    pub(super) fn next(&mut self, unix_ns: i64) -> u64 {
        let now = u64::try_from(unix_ns / 1_000_000).unwrap_or(0).saturating_sub(ORIGIN_MS);
        if now > self.last_ms {
            (self.last_ms, self.sequence) = (now, 0);
        } else if self.sequence + 1 < 1 << SEQUENCE_BITS {
            self.sequence += 1;
        } else {
            (self.last_ms, self.sequence) = (self.last_ms + 1, 0);
        }
        (self.last_ms << (NODE_BITS + SEQUENCE_BITS)) | (self.node << SEQUENCE_BITS) | self.sequence
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_grow_whatever_the_clock_does() {
        let mut ids = Snowflakes::new(77);
        let start = 1_671_274_272_579_882_000;
        let mut last = 0;
        for step in 0..20_000_i64 {
            let wobble = if step % 7 == 0 { -5_000_000_000 } else { step * 1000 };
            let id = ids.next(start + wobble);
            assert!(id > last);
            last = id;
        }
        assert_eq!(Snowflakes::new(0).next(start) >> 22, 382_439_297_922);
    }
}
