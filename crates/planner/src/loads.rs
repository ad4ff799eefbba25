//! The workers as they will be when the plan so far is carried out: the Cluster's rankings and relations, which are not copied, with the
//! workers that the plan has touched, and what it assumes of them, laid over.

use std::{
    borrow::Cow,
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet, btree_map::Entry, btree_set},
};

use evenkeel_model::{
    Cluster, Count, Definition, IntentKind, Load, Misfit, Moment, Place, Rank, Related, Relations, ResourceName, ShapeId, Shaped, Standing,
    Worker, WorkerId, fit,
};

use crate::{PlannerConfig, failing};

/// See the module.
pub(crate) struct Loads<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) config: &'a PlannerConfig,
    now: Moment,
    /// What differs from the Cluster.
    touched: BTreeMap<WorkerId, Touched>,
    /// The touched workers that are open, in order.
    ranked: BTreeSet<Rank>,
    /// The same by shape; made when a shape is first looked at, and kept up from then on.
    shaped: OnceCell<BTreeMap<ShapeId, Differing<'a>>>,
    /// By how much the payloads of all of them together differ.
    more: i64,
    /// The Cluster's ranking without the touched workers at its ends.
    rest: btree_set::Iter<'a, Rank>,
    relations: Option<Cow<'a, Relations>>,
    plan: Relations,
    assumed: BTreeMap<WorkerId, Assumed>,
    cursor: Option<WorkerId>,
}

#[derive(Clone, Copy, Default)]
struct Touched {
    payload: u64,
    /// By how many more are at home there than the Cluster shows.
    more: i64,
}

/// What differs of the workers of one shape.
struct Differing<'a> {
    ranked: BTreeSet<Rank>,
    more: i64,
    /// The Cluster's ranking of that shape without the touched workers at its ends.
    rest: btree_set::Iter<'a, Rank>,
}

/// What is taken for granted of a worker, whatever stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Assumed {
    /// This is wanted of it.
    Intent(Option<IntentKind>),
    /// It is gone.
    Gone,
}

impl<'a> Loads<'a> {
    pub(crate) fn new(cluster: &'a Cluster, now: Moment, config: &'a PlannerConfig) -> Self {
        Self {
            cluster,
            config,
            now,
            touched: BTreeMap::new(),
            ranked: BTreeSet::new(),
            shaped: OnceCell::new(),
            more: 0,
            rest: cluster.rankings().all().iter(),
            relations: cluster.relations().map(Cow::Borrowed),
            plan: Relations::default(),
            assumed: BTreeMap::new(),
            cursor: cluster.cursor().cloned(),
        }
    }

    /// Takes something for granted of a worker.
    pub(crate) fn assume(&mut self, id: &WorkerId, assumed: Assumed) {
        self.assumed.insert(id.clone(), assumed);
        self.touch(id, 0, 0);
    }

    /// A resource that is no part of the Cluster yet may be the first with a relative rule.
    pub(crate) fn prepare_for(&mut self, definition: &Definition) {
        if self.relations.is_none() && definition.rules().is_relative() {
            self.relations = Some(Cow::Owned(self.cluster.relations_anew()));
        }
    }

    /// How many workers are ready.
    pub(crate) fn ready(&self) -> usize {
        self.cluster.ready() - self.assumed.iter().filter(|(id, a)| **a == Assumed::Gone && self.is_ready(id)).count()
    }

    fn is_ready(&self, id: &WorkerId) -> bool {
        self.cluster.worker(id.as_str()).is_some_and(|w| w.standing() == Standing::Ready)
    }

    pub(crate) fn intent_kind(&self, id: &WorkerId) -> Option<IntentKind> {
        match self.assumed.get(id) {
            Some(Assumed::Intent(intent)) => *intent,
            _ => self.cluster.worker(id.as_str()).and_then(|w| w.intent_kind()),
        }
    }

    /// A worker as a place for something, if it is ready.
    pub(crate) fn place<'s>(&'s self, id: &'s WorkerId) -> Option<Place<'s>> {
        if self.assumed.get(id) == Some(&Assumed::Gone) {
            return None;
        }
        let place = self.cluster.worker(id.as_str())?.place(id)?;
        let payload = self.touched.get(id).map_or(place.payload, |touched| touched.payload);
        let intent = match self.assumed.get(id) {
            Some(Assumed::Intent(intent)) => *intent,
            _ => place.intent,
        };
        Some(Place { payload, intent, ..place })
    }

    /// How full a place is.
    pub(crate) fn load(&self, place: &Place<'_>) -> Load {
        Load { payload: place.payload, share: self.cluster.rankings().share(place.registration.capacity) }
    }

    /// How many resources are at home on a worker.
    pub(crate) fn number(&self, id: &WorkerId) -> u64 {
        let homes = self.cluster.worker(id.as_str()).map_or(0, |w| w.homes) as u64;
        homes.saturating_add_signed(self.touched.get(id).map_or(0, |touched| touched.more))
    }

    /// The sum of all payloads.
    pub(crate) fn total(&self) -> u64 {
        self.cluster.rankings().total().0.saturating_add_signed(self.more)
    }

    /// The sum of the payloads of one shape.
    pub(crate) fn payload_of(&self, id: ShapeId, shaped: &Shaped) -> u64 {
        shaped.payload.saturating_add_signed(self.shaped().get(&id).map_or(0, |differing| differing.more))
    }

    /// Counts a resource at a worker.
    pub(crate) fn come(&mut self, definition: &Definition, id: &WorkerId) {
        self.touch(id, i64::from(definition.weight), 1);
        self.relate(definition, id, Count { home: 1, present: 1 });
        self.cursor = Some(id.clone());
    }

    /// Counts a resource at its home no more. It may be there still, until it is known to have ended.
    pub(crate) fn leave(&mut self, definition: &Definition, id: &WorkerId, is_over: bool) {
        self.touch(id, -i64::from(definition.weight), -1);
        self.relate(definition, id, Count { home: -1, present: -i64::from(is_over) });
    }

    /// A resource that was not counted at its home for a moment is counted there again.
    pub(crate) fn come_back(&mut self, definition: &Definition, id: &WorkerId) {
        self.touch(id, i64::from(definition.weight), 1);
        self.relate(definition, id, Count { home: 1, present: 0 });
    }

    /// A resource that is at home elsewhere has ended here.
    pub(crate) fn vacate(&mut self, definition: &Definition, id: &WorkerId) {
        self.relate(definition, id, Count { home: 0, present: -1 });
    }

    fn relate(&mut self, definition: &Definition, id: &WorkerId, by: Count) {
        if self.relations.is_some() {
            let labels = self.cluster.worker(id.as_str()).and_then(|w| w.registration()).map(|r| &r.labels);
            self.plan.add(definition, id, labels, by);
        }
    }

    fn touch(&mut self, id: &WorkerId, by: i64, more: i64) {
        let Some(worker) = self.cluster.worker(id.as_str()) else { return };
        let is_open = self.is_open(id, worker);
        let share = self.cluster.rankings().share(worker.registration().and_then(|r| r.capacity));
        let rank = |payload| Rank { load: Load { payload, share }, worker: id.clone() };
        let mut before = None;
        let touched = match self.touched.entry(id.clone()) {
            Entry::Vacant(entry) => entry.insert(Touched { payload: worker.load, more: 0 }),
            Entry::Occupied(entry) => {
                let touched = entry.into_mut();
                before = Some(rank(touched.payload));
                touched
            }
        };
        touched.payload = touched.payload.saturating_add_signed(by);
        touched.more += more;
        let after = rank(touched.payload);
        if worker.shape.is_some() {
            self.more += by;
        }
        if let (Some(shaped), Some((shape, all))) = (self.shaped.get_mut(), shape_of(self.cluster, worker)) {
            let differing = shaped.entry(shape).or_insert_with(|| Differing::of(all));
            differing.more += by;
            if let Some(before) = &before {
                differing.ranked.remove(before);
            }
            if is_open {
                differing.ranked.insert(after.clone());
            }
            trim(&mut differing.rest, id, &self.touched);
        }
        if let Some(before) = &before {
            self.ranked.remove(before);
        }
        if is_open {
            self.ranked.insert(after);
        }
        trim(&mut self.rest, id, &self.touched);
    }

    fn is_open(&self, id: &WorkerId, worker: &Worker) -> bool {
        match self.assumed.get(id) {
            None => worker.is_open(),
            Some(Assumed::Gone) => false,
            Some(Assumed::Intent(intent)) => intent.is_none() && worker.standing() == Standing::Ready,
        }
    }

    fn shaped(&self) -> &BTreeMap<ShapeId, Differing<'a>> {
        self.shaped.get_or_init(|| {
            let mut shaped: BTreeMap<ShapeId, Differing<'a>> = BTreeMap::new();
            for (id, touched) in &self.touched {
                let Some(worker) = self.cluster.worker(id.as_str()) else { continue };
                let Some((shape, all)) = shape_of(self.cluster, worker) else { continue };
                let differing = shaped.entry(shape).or_insert_with(|| Differing::of(all));
                differing.more += i64::try_from(i128::from(touched.payload) - i128::from(worker.load)).unwrap_or_default();
                if self.is_open(id, worker) {
                    let share = self.cluster.rankings().share(all.shape.capacity);
                    differing.ranked.insert(Rank { load: Load { payload: touched.payload, share }, worker: id.clone() });
                }
                trim(&mut differing.rest, id, &self.touched);
            }
            shaped
        })
    }

    /// The open workers, least loaded first.
    pub(crate) fn ascending(&self) -> impl Iterator<Item = &Rank> {
        // The first is not touched: `trim` has seen to that.
        let mut rest = self.rest.clone();
        let first = rest.next();
        let rest = first.into_iter().chain(rest.filter(|rank| !self.touched.contains_key(&rank.worker))).map(shorten);
        merge(self.ranked.iter(), rest, |a, b| a < b)
    }

    /// The open workers, most loaded first.
    pub(crate) fn descending(&self) -> impl Iterator<Item = &Rank> {
        let rest = self.rest.clone().rev().filter(|rank| !self.touched.contains_key(&rank.worker)).map(shorten);
        merge(self.ranked.iter().rev(), rest, |a, b| a > b)
    }

    /// The open workers of one shape, least loaded first.
    pub(crate) fn of_shape<'s>(&'s self, id: ShapeId, shaped: &'s Shaped) -> impl Iterator<Item = &'s Rank> {
        let rest = self.rest_of(id, shaped).filter(|rank| !self.touched.contains_key(&rank.worker));
        merge(self.differing(id), rest, |a, b| a < b)
    }

    /// The open workers of one shape, most loaded first.
    pub(crate) fn of_shape_from_full<'s>(&'s self, id: ShapeId, shaped: &'s Shaped) -> impl Iterator<Item = &'s Rank> {
        let rest = self.rest_of(id, shaped).rev().filter(|rank| !self.touched.contains_key(&rank.worker));
        merge(self.differing(id).rev(), rest, |a, b| a > b)
    }

    fn rest_of<'s>(&'s self, id: ShapeId, shaped: &'s Shaped) -> btree_set::Iter<'s, Rank> {
        self.shaped().get(&id).map_or_else(|| shaped.ranks.iter(), |differing| differing.rest.clone())
    }

    fn differing(&self, id: ShapeId) -> impl DoubleEndedIterator<Item = &Rank> {
        self.shaped().get(&id).into_iter().flat_map(|differing| differing.ranked.iter())
    }

    /// Open workers that the Cluster does not rank, since they are open by assumption only.
    pub(crate) fn unshaped(&self) -> impl Iterator<Item = &WorkerId> {
        let opened = self.assumed.iter().filter(|(_, assumed)| **assumed == Assumed::Intent(None)).map(|(id, _)| id);
        opened.filter(|id| self.cluster.closed().contains(*id))
    }

    /// Workers on which something could be placed if it were not for what is assumed.
    pub(crate) fn closed_by_assumption(&self) -> impl Iterator<Item = &WorkerId> {
        let closed = self.assumed.iter().filter(|(_, assumed)| matches!(assumed, Assumed::Intent(Some(_)))).map(|(id, _)| id);
        closed.filter(|id| !self.cluster.closed().contains(*id))
    }

    /// All workers in the order of their ids, beginning after the one that was chosen last.
    pub(crate) fn in_turn(&self) -> impl Iterator<Item = &WorkerId> {
        let last = self.cursor.as_ref();
        let after = self.cluster.workers_after(last.map_or("", |last| last.as_str()));
        let wrapped = self.cluster.workers().map(|(id, _)| id).take_while(move |id| last.is_some_and(|last| *id <= last));
        after.chain(wrapped)
    }

    /// The worker that something was placed on last.
    pub(crate) fn cursor(&self) -> Option<&WorkerId> {
        self.cursor.as_ref()
    }

    /// Until when a worker is set aside, because its sessions end too often; none: it is not.
    pub(crate) fn aside_until(&self, id: &WorkerId) -> Option<Moment> {
        let flapping = self.config.flapping;
        let losses = self.cluster.losses();
        let last = losses.last(id).filter(|last| flapping.losses > 0 && last.after(flapping.aside) > self.now)?;
        let since = last.before(flapping.within);
        let often = losses.times(id).take_while(|at| *at >= since).count() >= flapping.losses;
        often.then(|| last.after(flapping.aside))
    }

    /// The workers on which a resource has failed of late.
    pub(crate) fn failed_on(&self, name: &ResourceName) -> Vec<&'a WorkerId> {
        failing::failed_on(self.cluster, name, self.now)
    }

    pub(crate) fn related(&self) -> Related<'_> {
        Related { base: self.relations.as_deref(), plan: &self.plan }
    }

    /// Whether a place can take one more resource, by every hard rule.
    pub(crate) fn fits(&self, definition: &Definition, place: &Place<'_>) -> Result<(), Misfit> {
        fit::can_run(definition, place)?;
        self.cluster.shares_fence(definition, place.registration)?;
        self.related().allow(definition, place.id, &|| self.related().is_first(definition))
    }
}

impl<'a> Differing<'a> {
    fn of(shaped: &'a Shaped) -> Self {
        Self { ranked: BTreeSet::new(), more: 0, rest: shaped.ranks.iter() }
    }
}

fn shape_of<'a>(cluster: &'a Cluster, worker: &Worker) -> Option<(ShapeId, &'a Shaped)> {
    let shape = worker.shape?;
    Some((shape, cluster.rankings().shape(shape)?))
}

/// Leaves out what has been touched at the ends of a ranking, now that this one has been: most of it is there.
fn trim(rest: &mut btree_set::Iter<'_, Rank>, id: &WorkerId, touched: &BTreeMap<WorkerId, Touched>) {
    if rest.clone().next().is_some_and(|rank| rank.worker == *id) {
        while rest.clone().next().is_some_and(|rank| touched.contains_key(&rank.worker)) {
            rest.next();
        }
    }
    if rest.clone().next_back().is_some_and(|rank| rank.worker == *id) {
        while rest.clone().next_back().is_some_and(|rank| touched.contains_key(&rank.worker)) {
            rest.next_back();
        }
    }
}

/// Gives two sequences of ranks, one of the Cluster and one of this plan, the lifetime that both have.
fn shorten<'s, 'l: 's>(rank: &'l Rank) -> &'s Rank {
    rank
}

/// Merges two sequences that are in order.
fn merge<'r>(
    a: impl Iterator<Item = &'r Rank>,
    b: impl Iterator<Item = &'r Rank>,
    first: impl Fn(&Rank, &Rank) -> bool,
) -> impl Iterator<Item = &'r Rank> {
    let (mut a, mut b) = (a.peekable(), b.peekable());
    std::iter::from_fn(move || match (a.peek(), b.peek()) {
        (Some(x), Some(y)) if first(x, y) => a.next(),
        (_, Some(_)) => b.next(),
        (_, None) => a.next(),
    })
}
