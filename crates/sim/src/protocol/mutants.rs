//! Mutants of the model: each rule weakened by itself, and what must catch it.
//!
//! Some rules back each other up: with one of them gone the other still holds. Those are weakened together, and alone to show that they do.

use super::{
    model::{ONE_OWNER, SETTLES},
    rules::Weakening::{self, *},
};

/// A weakening of the protocol.
#[derive(Clone, Copy, Debug)]
pub struct Mutant {
    /// What is weakened; more than one where each backs the others up.
    pub weakened: &'static [Weakening],
    /// The rule of the protocol, by its number in `ARCHITECTURE.md`.
    pub rule: u8,
    /// The weakening in words.
    pub words: &'static str,
    /// The instance in which it shows.
    pub instance: &'static str,
    /// The property that must be found broken.
    pub breaks: &'static str,
}

const fn mutant(rule: u8, words: &'static str, weakened: &'static [Weakening], instance: &'static str) -> Mutant {
    Mutant { weakened, rule, words, instance, breaks: ONE_OWNER }
}

/// All of them.
pub const MUTANTS: &[Mutant] = &[
    mutant(1, "authority counts from the receipt of the answer", &[ReceiveTime], "revocation"),
    mutant(1, "neither agent nor guard ends work when authority ends", &[NobodyKills], "revocation"),
    mutant(1, "work is killed a tick late", &[KillLate], "revocation"),
    mutant(1, "work is started without asking for authority", &[StartUnchecked], "freeze"),
    mutant(1, "a proof holds if anybody is registered", &[ProofOfAnySession], "twin"),
    mutant(2, "a worker acts without an admission", &[AdmissionSkipped], "twin"),
    mutant(2, "any admission of the id counts", &[AdmissionOfAnySession], "twin"),
    mutant(2, "assignments are listed before the admission is seen", &[ListBeforeAdmission], "twin"),
    mutant(3, "the leader does not wait", &[WaitLeftOut], "revocation"),
    mutant(3, "the leader waits a tick less than the clocks' difference asks for", &[WaitTooShort], "revocation"),
    mutant(3, "a wait goes on when another session has come and gone", &[WaitNotReset], "revocations"),
    mutant(3, "the admission of a lost worker is removed without a wait", &[ForgetsTooEarly], "revocation"),
    mutant(3, "an assignment is created while another stands", &[PlacesWhileHeld], "start"),
    mutant(4, "work is moved without being told to stop", &[MovesWithoutStop], "move"),
    mutant(4, "work that was told to stop is moved without an answer", &[MovesWithoutAck], "move"),
    mutant(4, "work is reported as stopped before it is", &[AckBeforeStop], "move"),
    mutant(4, "a name that is deleted is free at once", &[DeleteFreesName], "delete"),
    mutant(5, "a session is admitted at once whose predecessor is gone", &[AdmitsUnattested], "twin"),
    mutant(5, "a session attests for another guard's", &[AttestsForOthers], "twin"),
    mutant(5, "a session attests while work of the last one runs", &[AttestWithoutReaping], "move"),
    mutant(5, "a registration is put over another", &[SessionOverwritten], "twin"),
    mutant(5, "an id is given up while work runs", &[ReleaseBeforeStop], "leave"),
    Mutant { breaks: SETTLES, ..mutant(5, "a session whose predecessor is gone is never admitted", &[NeverReadmits], "reboot") },
    mutant(6, "the guard does not end the work of an agent that hangs", &[GuardSleeps], "freeze"),
    mutant(7, "writes do not compare the leader's key", &[FenceLeftOut], "leader"),
    mutant(7, "a new leader takes the waits as done", &[NewLeaderDoesNotWait], "takeover"),
    mutant(7, "a new leader acts on what it knew before it took office", &[ActsBeforeCatchingUp], "takeover"),
    mutant(4, "a status compares neither session nor admission", &[StatusWithoutSession, StatusWithoutAdmission], "move"),
    mutant(4, "who is not admitted reports, and the status does not compare the admission", &[ReportsUnadmitted, StatusWithoutAdmission], "reboot"),
    mutant(4, "a status outlives its assignment, and any epoch's counts", &[StatusOutlivesAssignment, AnyEpochsStatus], "move"),
    mutant(4, "a status does not compare the assignment, and any epoch's counts", &[StatusWithoutAssignment, AnyEpochsStatus], "move"),
    mutant(4, "a stop is taken back, and a worker starts again what it reported stopped", &[StopTakenBack, ForgetsPast], "move"),
    mutant(1, "what was seen before authority ended counts after it", &[ViewKept], "freeze"),
    mutant(4, "s", &[StatusWithoutSession], "freeze"),
    mutant(4, "s", &[StatusWithoutAdmission], "freeze"),
    mutant(4, "s", &[StatusWithoutAssignment], "freeze"),
    mutant(4, "s", &[StatusOutlivesAssignment], "freeze"),
    mutant(4, "s", &[AnyEpochsStatus], "freeze"),
    mutant(4, "s", &[ForgetsPast], "freeze"),
    mutant(4, "s", &[StopTakenBack], "freeze"),
    mutant(4, "s", &[ReportsUnadmitted], "freeze"),
];
