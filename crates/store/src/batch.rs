//! PURE: a batch of writes as one transaction, and how it becomes certain what has become of it.
//!
//! In the wheel it is what the pipeline hands to the executor of store::commit, and what comes back. No IO and no clock here.
//!
//! # Why a lost answer can be made up for
//!
//! When the answer to a transaction is lost it may have been applied, or not, or it may wait in the buffers of a frozen member and be
//! applied much later, over whatever was written meanwhile. Looking at the keys that it writes tells the first from the second and says
//! nothing of the third. So every batch is bound to a *slot*, a small key of this leader's term, of which there are as many as batches in
//! flight. A batch compares the slot's mod revision with the one that the slot's batch before left, and puts its own id there. Hence:
//!
//! - Of two transactions that compare the same mod revision of a slot at most one is ever applied.
//! - When an answer is lost, a [`Resolution`] is sent that makes the same comparison and puts "void" into the slot. If it is applied, the
//!   batch was not, and never will be: the slot's revision has moved on for good. If it is refused although the fence holds, the slot
//!   names who was there first: the batch itself, at the revision of its commit, or an earlier copy of the resolution.
//! - Both can be sent any number of times, and come late, without a second effect. Nobody but the holder of the fence writes the slots.
//!
//! It costs one compare and one small put in a transaction that has room for 128 of each, and no read. The slots are bound to the
//! leader's lease and go with it.

use evenkeel_model::Revision;

use crate::types::{Compare, Kv, Op, Txn, TxnReply};

/// Names a batch; grows from batch to batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchId(pub u64);

/// A transaction to be sent once, and what to send when its answer is lost.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Names the batch in [`Pipeline::finished`](crate::Pipeline::finished).
    pub id: BatchId,
    /// To be sent exactly once.
    pub txn: Txn,
    /// Finds out what became of it.
    pub resolution: Resolution,
}

/// Finds out for certain whether a batch was applied, and if it was not, makes certain that it never will be.
#[derive(Clone, Debug)]
pub struct Resolution {
    pub(crate) id: BatchId,
    pub(crate) fence_key: Vec<u8>,
    pub(crate) fence: Revision,
    pub(crate) lease: i64,
    pub(crate) slot_key: Vec<u8>,
    /// The slot's mod revision that the batch compares.
    pub(crate) slot: Revision,
}

/// What has become of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was applied.
    Applied {
        /// The revision of all its writes.
        revision: Revision,
    },
    /// A compare failed, in the one answer to the one sending; nothing was written.
    Refused {
        /// The store's revision at which it was refused.
        revision: Revision,
        /// What the other branch has read.
        reads: Vec<Vec<Kv>>,
    },
    /// It was not applied and never will be.
    Void {
        /// The slot's mod revision from now on.
        slot: Revision,
    },
    /// The fence was lost before it was known whether the batch was applied.
    FenceLost,
    /// etcd has no space; nothing was written.
    NoSpace,
    /// etcd will not do it; nothing was written.
    Rejected {
        /// etcd's words.
        reason: String,
    },
    /// Whoever carried it out has given up before it was known.
    GivenUp,
}

impl Batch {
    /// Reads the answer to the batch's transaction.
    #[must_use]
    pub fn judge(reply: TxnReply) -> Outcome {
        let TxnReply { succeeded, revision, reads } = reply;
        if succeeded { Outcome::Applied { revision } } else { Outcome::Refused { revision, reads } }
    }
}

impl Resolution {
    /// The transaction that settles it. It may be sent as often as needed.
    #[must_use]
    pub fn txn(&self) -> Txn {
        Txn { compares: self.compares(), then: vec![self.mark(self.void())], otherwise: self.reads() }
    }

    /// The key that tells.
    #[must_use]
    pub fn slot_key(&self) -> &[u8] {
        &self.slot_key
    }

    /// Reads an answer to [`Resolution::txn`].
    #[must_use]
    pub fn judge(&self, reply: &TxnReply) -> Outcome {
        if reply.succeeded {
            return Outcome::Void { slot: reply.revision };
        }
        let find = |key: &[u8]| reply.reads.iter().flatten().find(|kv| kv.key == key);
        self.judge_slot(find(&self.slot_key)).unwrap_or(Outcome::FenceLost)
    }

    /// Reads the slot by itself. None: neither the batch nor the resolution has been applied, so far.
    #[must_use]
    pub fn judge_slot(&self, slot: Option<&Kv>) -> Option<Outcome> {
        let slot = slot.filter(|kv| kv.modified != self.slot)?;
        if slot.value == self.applied() {
            Some(Outcome::Applied { revision: slot.modified })
        } else if slot.value == self.void() {
            Some(Outcome::Void { slot: slot.modified })
        } else {
            None
        }
    }

    /// A transaction that does these things once at most: the batch itself.
    pub(crate) fn batch_txn(&self, compares: Vec<Compare>, ops: Vec<Op>, reads: impl Iterator<Item = Op>) -> Txn {
        let mut txn = Txn { compares: self.compares(), then: vec![self.mark(self.applied())], otherwise: self.reads() };
        txn.compares.extend(compares);
        txn.then.extend(ops);
        txn.otherwise.extend(reads);
        txn
    }

    fn compares(&self) -> Vec<Compare> {
        vec![
            Compare::CreateRevision { key: self.fence_key.clone(), equals: self.fence },
            Compare::ModRevision { key: self.slot_key.clone(), equals: self.slot },
        ]
    }

    fn reads(&self) -> Vec<Op> {
        vec![Op::get(self.fence_key.clone()), Op::get(self.slot_key.clone())]
    }

    fn mark(&self, value: Vec<u8>) -> Op {
        Op::Put { key: self.slot_key.clone(), value, lease: self.lease }
    }

    fn applied(&self) -> Vec<u8> {
        format!("batch {}", self.id.0).into_bytes()
    }

    fn void(&self) -> Vec<u8> {
        format!("batch {} void", self.id.0).into_bytes()
    }
}
