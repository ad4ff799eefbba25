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
//!
//! # Why a batch without a mark can be sent again
//!
//! Without space etcd refuses a transaction that has a put in either branch, and so every batch with a slot. As long as it has none, writes
//! that put nothing go in *unmarked* batches, without slot and entries. When the answer to one is lost, the batch itself is sent again.
//! What may be in it makes that harmless, and any refusal final:
//!
//! - A batch that only compares has no effect, whenever and however often it is carried out. The last answer is as good as any.
//! - A batch that deletes has no other compares than those of revisions at which keys stood: that of the fence, and those of its writes.
//!   No revision is given twice, so that once such a compare has failed it fails for ever. After one refusal no copy of the batch, late as
//!   it may come, is applied any more.
//! - Each of its writes compares a key that it deletes. After the first copy that is applied that compare fails, whatever is put under the
//!   key then: no other copy is applied.
//!
//! So when a copy is refused after an answer was lost, the batch was applied before or never will be. If one of those compared and deleted
//! keys is as it is to be, it was not applied: what is refused is a conflict, as ever. Else it probably was. A write whose keys are all gone
//! counts as done then, at the revision of the refusal; in between, somebody else may have deleted them, which comes to the same. Of one
//! under whose keys something stands anew it is not known.
//!
//! A write that deletes goes into no such batch if it compares a key with nothing, since that may hold again when a late copy comes, or if
//! it compares no key that it deletes, since a late copy would delete what was put there meanwhile. It waits for space, as puts do.

use evenkeel_model::Revision;

use crate::{
    packing::witnesses,
    types::{Compare, Kv, Op, Txn, TxnReply},
};

/// Names a batch; grows from batch to batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchId(pub u64);

/// A transaction, and what to send when its answer is lost.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Names the batch in [`Pipeline::finished`](crate::Pipeline::finished).
    pub id: BatchId,
    /// To be sent once; again only if etcd has certainly not taken it on.
    pub txn: Txn,
    /// Finds out what became of it when the answer is lost. None: the batch is unmarked, and is sent again itself.
    pub resolution: Option<Resolution>,
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
    /// A compare failed; unless the batch was repeated, nothing was written.
    Refused {
        /// The store's revision at which it was refused.
        revision: Revision,
        /// What the other branch has read.
        reads: Vec<Vec<Kv>>,
        /// Whether an answer to an earlier copy of the batch was lost, which is unmarked then.
        repeated: bool,
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
    /// It is not known yet whether it was applied, and will not be before etcd has space again: what settles it is a put. Another outcome follows.
    WaitsForSpace,
    /// Whoever carried it out has given up before it was known.
    GivenUp,
}

impl Batch {
    /// Reads the answer to the batch's transaction. `repeated`: an answer to an earlier copy of it was lost.
    #[must_use]
    pub fn judge(reply: TxnReply, repeated: bool) -> Outcome {
        let TxnReply { succeeded, revision, reads } = reply;
        if succeeded { Outcome::Applied { revision } } else { Outcome::Refused { revision, reads, repeated } }
    }

    /// A compare that fails for ever once an unmarked batch was applied, if that has an effect.
    #[must_use]
    pub fn witness(&self) -> Option<&Compare> {
        witnesses(&self.txn.compares, &self.txn.then).next()
    }
}

/// A transaction that can be sent again: a batch without slot.
pub(crate) fn unmarked_txn(
    fence_key: &[u8],
    fence: Revision,
    compares: Vec<Compare>,
    ops: Vec<Op>,
    reads: impl Iterator<Item = Op>,
) -> Txn {
    let mut txn = Txn {
        compares: vec![Compare::CreateRevision { key: fence_key.to_vec(), equals: fence }],
        then: ops,
        otherwise: vec![Op::get(fence_key)],
    };
    txn.compares.extend(compares);
    txn.otherwise.extend(reads);
    txn
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
