//! A library as an application holds it: opening, starting, watching and shutting it down.

use std::{
    collections::BTreeMap,
    fs::{File, TryLockError},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sea_orm::{ConnectionTrait, EntityTrait, Statement, TryIntoModel};
use sea_orm_migration::MigratorTrait;
use tidelog_migration::SyncMigrator;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use crate::{
    adopt::{self, Adopt},
    conflict::Resolver,
    connection::Connection,
    engine::{Driver, Engine},
    error::Error,
    gate::CommitListener,
    id::{DeviceId, LibraryId, Position, Seq, Term},
    leadership::Failover,
    model::{ModelDescriptor, Recorder, Syncable},
    node::{self, Node, Readers},
    seal, sequence,
    status::{AppliedChange, Link, Role, Status},
    store::{self, Model, Store},
    term::{self, Entrance},
    transport::SharedTransport,
    world::{Machine, World},
};

mod decisions;
mod leading;

/// Events that a slow receiver of [`Library::changes`] may be behind before it is told to look at everything again.
pub const CHANGES_QUEUE: usize = 4096;

/// Opens a library: made by [`Library::builder`].
pub struct LibraryBuilder {
    db: Connection,
    models: Vec<Result<ModelDescriptor, crate::model::ModelError>>,
    recorder: Option<Recorder>,
    entrance: Entrance,
    peers: Option<Vec<DeviceId>>,
    resolver: Option<Arc<dyn Resolver>>,
    precedence: BTreeMap<DeviceId, u8>,
    failover: Option<Failover>,
    grant_timeout: Duration,
    hands_over: bool,
    world: Arc<dyn World>,
}

/// How long a device that hands the lead over waits for the other to take it, unless
/// [`LibraryBuilder::grant_timeout`] says otherwise.
pub const GRANT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a shutdown waits for somebody to take the lead.
const HAND_OVER_MAX: Duration = Duration::from_secs(2);

impl LibraryBuilder {
    /// Registers an entity whose model is [`Syncable`]. All devices of a library should register the same models;
    /// entries of models that one does not register are kept in its log.
    #[must_use]
    pub fn model<E>(mut self) -> Self
    where
        E: EntityTrait,
        E::Model: Syncable<Entity = E>,
        E::ActiveModel: TryIntoModel<E::Model>,
    {
        self.models.push(ModelDescriptor::of::<E::Model>());
        self
    }

    /// Records all models' changes this way, whatever they say themselves.
    #[must_use]
    pub fn capture(mut self, recorder: Recorder) -> Self {
        self.recorder = Some(recorder);
        self
    }

    /// Founds the library on this device, or goes on with it where that has happened before. This device leads it.
    /// Rows that its tables hold already are taken in by [`Library::adopt`].
    #[must_use]
    pub fn create(mut self, library: LibraryId) -> Self {
        self.entrance = Entrance::Create(library);
        self
    }

    /// Follows a library that another device leads, or goes on following it. The first time the tables of its models
    /// must be empty.
    #[must_use]
    pub fn join(mut self, library: LibraryId) -> Self {
        self.entrance = Entrance::Join(library);
        self
    }

    /// Goes on with the library that the database is in, in whatever role. The default.
    #[must_use]
    pub fn existing(mut self) -> Self {
        self.entrance = Entrance::Existing;
        self
    }

    /// Names a peer of this library: at the leader it becomes a member. Without any, all peers of the transport are.
    #[must_use]
    pub fn peer(mut self, device: DeviceId) -> Self {
        self.peers.get_or_insert_default().push(device);
        self
    }

    /// Asks the application how conflicts end that wait for a person, on this device, while the library is started.
    #[must_use]
    pub fn resolver(mut self, resolver: impl Resolver) -> Self {
        self.resolver = Some(Arc::new(resolver));
        self
    }

    /// Says how much the word of a device counts where a model is merged by role (`merge = "role"`): the change of the
    /// device with the higher precedence stands. 0 for those of which nothing was ever said. [`Failover::for_roles`] goes by it,
    /// too.
    ///
    /// The device that leads writes it into the log when the library is started, for its peers, those that are members
    /// already, and itself; from then on it holds, on all devices and for whoever leads, until it is said otherwise. Said
    /// elsewhere it has no effect.
    #[must_use]
    pub fn precedence(mut self, device: DeviceId, precedence: u8) -> Self {
        self.precedence.insert(device, precedence);
        self
    }

    /// Lets this device take over by itself where nothing is heard of a leader. Off unless it is said.
    ///
    /// It asks the devices that it can reach first: who hears of a leader, leads, or has more of the log keeps it from it, so
    /// that of all who ask one takes over. It cannot tell a leader that is gone from one that is cut off together with other
    /// devices: then both sides go on by themselves, and are brought together when they meet, as after a
    /// [takeover](Library::take_over) by hand.
    #[must_use]
    pub fn failover(mut self, failover: Failover) -> Self {
        self.failover = Some(failover);
        self
    }

    /// How long this device, having handed the lead over, waits for the other to take it before it leads again:
    /// [`GRANT_TIMEOUT`] unless it is said.
    #[must_use]
    pub fn grant_timeout(mut self, timeout: Duration) -> Self {
        self.grant_timeout = timeout;
        self
    }

    /// Whether [`Library::shutdown`] offers the lead to the follower that has most of the log, if this device leads and one
    /// follows: then the others go on syncing. It does unless it is said.
    #[must_use]
    pub fn hands_over(mut self, hands_over: bool) -> Self {
        self.hands_over = hands_over;
        self
    }

    /// Takes time and randomness from `world`, for tests.
    #[must_use]
    pub fn world(mut self, world: Arc<dyn World>) -> Self {
        self.world = world;
        self
    }

    /// Opens the library: makes the sync tables if there are none, the triggers what the models say now, and takes
    /// the lock that keeps the database to one engine. Syncing begins with [`Library::start`].
    ///
    /// # Errors
    /// [`Error`] says what does not fit; nothing is changed then, but that the sync tables may be there.
    pub async fn open(self) -> Result<Library, Error> {
        let models = self.models.into_iter().collect::<Result<Vec<_>, _>>()?;
        refuse_shared_names(&models)?;
        let models: Vec<(ModelDescriptor, Recorder)> = models
            .into_iter()
            .map(|m| {
                let recorder = self.recorder.unwrap_or(m.options.recorder);
                (m, recorder)
            })
            .collect();
        let path = self.db.path().to_owned();
        let lock = Arc::new(lock(&path)?);
        make_tables(&self.db).await?;
        let recorders: Vec<_> = models.iter().map(|(m, r)| (m.id, *r)).collect();
        let readers = models.iter().map(|(m, r)| Model::new(m.clone(), *r)).collect();
        let gate = Arc::clone(self.db.gate());
        let (world, entrance) = (Arc::clone(&self.world), self.entrance);
        let opened = {
            let (path, gate) = (path.clone(), Arc::clone(&gate));
            move || {
                let _turn = gate.acquire_blocking(store::BUSY_TIMEOUT);
                let tables = models.iter().map(|(m, _)| m.table.as_str());
                store::check_entrance(&path, entrance, tables)?;
                let mut store = Store::open(&path, models, world)?;
                let id = store.transaction(|tx| term::enter(tx, entrance))?;
                let position = store::top(store.connection())?;
                let replica = store::replica(store.connection())?;
                let unadopted = adopt::unadopted(store.connection())?;
                Ok::<_, Error>((store, id, position, replica, unadopted))
            }
        };
        let (store, id, position, replica, unadopted) = tokio::task::spawn_blocking(opened)
            .await
            .map_err(|e| Error::Stopped { reason: e.to_string() })??;
        if unadopted > 0 {
            tracing::warn!(library = %id, unadopted, "tables hold rows from before they were synced: call `adopt()` before `start`");
        }
        let engine = Engine::start(store, Arc::clone(&gate), Arc::clone(&lock))?;
        let waker = engine.waker();
        let wake: Arc<dyn Fn() + Send + Sync> = Arc::new(move || waker.wake());
        let listener = gate.on_commit(Arc::clone(&wake));
        let notices = crate::notice::register(recorders, crate::notice::CAPACITY, wake);
        let leads = replica.is_some_and(|r| r.is_leader() || (r.founder && r.max_seen == Term::ZERO));
        let status = Status {
            library: id,
            device: replica.and_then(|r| r.device),
            link: Link::Idle,
            role: if leads { Role::Leader } else { Role::Follower },
            term: position.term,
            leader: None,
            position,
            behind: None,
            outbox: 0,
            pending: 0,
            quarantined: 0,
            withheld: 0,
            conflicts: 0,
            dead_letters: 0,
            blocked: 0,
            rolled_back: None,
            copy_of: None,
            split: None,
            unadopted,
            stable: Seq(0),
            followers: Vec::new(),
            last_success: None,
            next_retry: None,
            last_error: None,
        };
        let inner = Inner {
            id,
            engine,
            readers: Readers::new(path, readers),
            status: watch::Sender::new(status),
            changes: broadcast::Sender::new(CHANGES_QUEUE),
            peers: self.peers,
            resolver: self.resolver,
            precedence: Arc::new(self.precedence),
            failover: self.failover,
            grant_timeout: self.grant_timeout,
            hands_over: self.hands_over,
            world: self.world,
            node: Mutex::new(None),
            starting: AtomicBool::new(false),
            _listener: listener,
            _notices: notices,
            _lock: lock,
        };
        let inner = Arc::new(inner);
        Ok(Library { held: Arc::new(Held(Arc::clone(&inner))), inner })
    }
}

/// An open library. Cheap to clone. [`Library::shutdown`] ends it in good order; when the last clone is dropped, it
/// ends too, soon and in the middle of whatever it does: what is committed stays, and goes on at the next opening.
#[derive(Clone)]
pub struct Library {
    pub(crate) inner: Arc<Inner>,
    #[expect(dead_code, reason = "it is there to be dropped")]
    held: Arc<Held>,
}

/// Ends the node with the last clone of the library: its tasks hold [`Inner`], which ends the engine.
struct Held(Arc<Inner>);

impl Drop for Held {
    fn drop(&mut self) {
        drop(lock_node(&self.0.node).take());
    }
}

pub(crate) struct Inner {
    pub(crate) id: LibraryId,
    pub(crate) engine: Engine,
    pub(crate) readers: Readers,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) changes: broadcast::Sender<AppliedChange>,
    /// Peers named for this library; `None`: all of the transport's.
    pub(crate) peers: Option<Vec<DeviceId>>,
    pub(crate) resolver: Option<Arc<dyn Resolver>>,
    /// What was said of devices when this library was opened.
    pub(crate) precedence: Arc<BTreeMap<DeviceId, u8>>,
    pub(crate) failover: Option<Failover>,
    pub(crate) grant_timeout: Duration,
    hands_over: bool,
    pub(crate) world: Arc<dyn World>,
    node: Mutex<Option<Node>>,
    /// A call of [`Library::start`] is under way.
    starting: AtomicBool,
    _listener: CommitListener,
    _notices: crate::notice::Subscription,
    _lock: Arc<File>,
}

impl Inner {
    pub(crate) fn questions(&self) -> Option<mpsc::Sender<oneshot::Sender<Position>>> {
        lock_node(&self.node).as_ref().map(Node::questions)
    }
}

impl Library {
    /// Begins to open a library over the application's database.
    pub fn builder(db: &Connection) -> LibraryBuilder {
        LibraryBuilder {
            db: db.clone(),
            models: Vec::new(),
            recorder: None,
            entrance: Entrance::Existing,
            peers: None,
            resolver: None,
            precedence: BTreeMap::new(),
            failover: None,
            grant_timeout: GRANT_TIMEOUT,
            hands_over: true,
            world: Arc::new(Machine),
        }
    }

    /// The library's id.
    pub fn id(&self) -> LibraryId {
        self.inner.id
    }

    /// Captures the rows that were in their tables before these became syncable, so that all devices get them: on the
    /// device that creates a library over an existing database, and wherever a later release syncs a further table.
    /// Call it between [`open`](LibraryBuilder::open) and [`start`](Library::start), at every start of the application:
    /// where nothing is to be adopted it returns at once, and says so ([`Adopted::rows`](crate::Adopted) is 0).
    ///
    /// ```no_run
    /// # async fn adopt(library: tidelog::Library) -> Result<(), tidelog::Error> {
    /// let adopted = library.adopt().progress(|p| println!("{}: {} of {}", p.model, p.done, p.total)).await?;
    /// println!("{} rows of {} models", adopted.rows, adopted.models);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// It goes in batches that hold the database's one writer for some 20 ms each, so that the application writes
    /// meanwhile; a call that is dropped, or whose process is killed, is taken up by the next where it was. Rows travel from
    /// the start on, as if they had just been inserted: what [`should_sync`](crate::Syncable::should_sync) withholds
    /// stays here, what cannot be sent is quarantined.
    ///
    /// On a follower the rows are pushed. A record that the log has already, with the same values, costs nothing; with
    /// others the model's policy decides, as between two devices that wrote it unseen by each other. No clock says when an
    /// adopted row was written: it ranks behind all that was captured, and behind what was adopted before. Rows that only the log has come into the table at the start.
    ///
    /// # Errors
    /// [`Error::Table`] where rows have no key; [`Error::Stopped`]; the database's. What was adopted before stays.
    pub fn adopt(&self) -> Adopt {
        Adopt::new(self.clone())
    }

    /// Starts syncing over `transport`, as its device. A device that leads opens its term and takes followers, any
    /// other looks for the leader. Must be called within a tokio runtime, which carries the work from then on.
    ///
    /// It returns when what was captured while the library was not started is sealed. It is started before: where that takes
    /// long, it can be asked meanwhile, and [shut down](Library::shutdown). A call that is dropped leaves it stopped.
    ///
    /// # Errors
    /// [`Error::Started`]; [`Error::NotAdopted`] while rows wait for [`Library::adopt`]; or why the transport or the
    /// database refused. The library stays open and stopped then.
    pub async fn start(&self, transport: SharedTransport) -> Result<(), Error> {
        let starting = Starting::begin(&self.inner.starting);
        // Looked at second: who began before us may have ended meanwhile, with a node.
        let Some(_starting) = starting.filter(|_| lock_node(&self.inner.node).is_none()) else {
            return Err(Error::Started(self.inner.id));
        };
        self.inner.engine.step(|driver| driver.transaction(adopt::refuse_unadopted)).await?;
        self.inner.status.send_modify(|status| status.unadopted = 0);
        let node = node::start(Arc::clone(&self.inner), transport).await?;
        // It is started from here on: asked, and shut down, like any other, however long its backlog is.
        let shared = node.shared();
        *lock_node(&self.inner.node) = Some(node);
        let mut given_up = GivenUp(Some(&self.inner.node));
        // It is pushed as it is sealed; what comes is applied behind it.
        let sealed = shared.seal_backlog().await;
        if sealed.is_err() {
            let node = lock_node(&self.inner.node).take();
            if let Some(node) = node {
                node.stop().await;
            }
        }
        given_up.0 = None;
        sealed
    }

    /// The library's status, now and whenever it changes.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.inner.status.subscribe()
    }

    /// Changes from other devices as they reach this device's tables. A receiver that falls more than
    /// [`CHANGES_QUEUE`] behind is told so (`Lagged`) and should look at everything again.
    pub fn changes(&self) -> broadcast::Receiver<AppliedChange> {
        self.inner.changes.subscribe()
    }

    /// Waits until this device is level with the leader's log; the status shows it then. What that means depends on
    /// who asks:
    ///
    /// - On the leader: what is committed here now is in the log. It does not wait for any follower;
    ///   [`Status::followers`] says what each of them has.
    /// - On a follower: what is committed here now is in the leader's log, decided by the model's policy, and what the
    ///   leader's log then held is in the tables and the log here.
    ///
    /// On a follower it waits as long as the leader cannot be reached: [`Library::status`] says why. Wrap it in a timeout where that
    /// may be too long.
    ///
    /// # Errors
    /// [`Error::Stopped`] and [`Error::LinkStopped`] when it would wait for ever.
    pub async fn barrier(&self) -> Result<(), Error> {
        // As long as this device's log turns out to be another than the leader's: what it held is pending again then.
        while !self.is_level().await? {}
        // The status counts at its leisure; who has waited for all this is not shown what waited before.
        self.inner.engine.step(Driver::publish).await?;
        let pulse = self.inner.engine.pulse().borrow().clone();
        self.inner.status.send_modify(|status| node::show_counts(&pulse, status));
        Ok(())
    }

    /// Waits until what is committed here now is in the leader's log, and this device has what that held; whether it is in
    /// there still.
    async fn is_level(&self) -> Result<bool, Error> {
        self.inner.engine.sequence_pending().await?;
        let (leads, own, pending) = self
            .inner
            .engine
            .step(|driver| {
                driver.transaction(seal::seal_all)?;
                sequence::own(driver)?;
                driver.publish()?;
                let replica = store::replica(driver.store.connection())?.ok_or(Error::NoLibrary)?;
                Ok((replica.is_leader(), replica.top, driver.pending_ends()))
            })
            .await?;
        if leads {
            // All is done by now; the status is waited for, so that it tells no older position.
            return self.reached(own, Some(Role::Leader)).await;
        }
        if let Some((_, last)) = pending {
            self.settled_up_to(last).await?;
        }
        let top = node::ask_top(&self.inner).await?;
        self.reached(top, None).await?;
        self.inner.engine.step(move |driver| term::holds(driver.store.connection(), own)).await
    }

    /// Waits until no pending change up to this id is left.
    async fn settled_up_to(&self, last: i64) -> Result<(), Error> {
        let mut pulse = self.inner.engine.pulse();
        let mut status = self.status();
        let stopped = || Error::Stopped { reason: "the library was shut down".into() };
        let settled = async {
            let settled =
                pulse.wait_for(|p| p.stopped || p.pending_ends.is_none_or(|(first, _)| first > last));
            match settled.await {
                Ok(pulse) if !pulse.stopped => Ok(()),
                _ => Err(stopped()),
            }
        };
        let broken = async {
            let broken = status.wait_for(|s| matches!(s.link, Link::Stopped { .. } | Link::Idle)).await;
            match broken.map(|status| (status.link.clone(), status.leader)) {
                Ok((Link::Stopped { reason }, leader)) => {
                    Error::LinkStopped { peer: leader.unwrap_or(Term::ZERO.leader), reason }
                }
                _ => stopped(),
            }
        };
        tokio::select! {
            settled = settled => settled,
            error = broken => Err(error),
        }
    }

    /// Waits until the log here reaches `top`; or, where a role is named, this device has another by now: then it is false.
    async fn reached(&self, top: Position, role: Option<Role>) -> Result<bool, Error> {
        let mut status = self.status();
        let stopped = || Error::Stopped { reason: "the library was shut down".into() };
        let is_other = |s: &Status| role.is_some_and(|role| s.role != role);
        let status = status
            .wait_for(|s| {
                s.position.seq >= top.seq
                    || is_other(s)
                    || matches!(s.link, Link::Stopped { .. } | Link::Idle)
            })
            .await
            .map_err(|_| stopped())?;
        match &status.link {
            _ if is_other(&status) => Ok(false),
            _ if status.position.seq >= top.seq => Ok(true),
            Link::Stopped { reason } => {
                Err(Error::LinkStopped { peer: top.term.leader, reason: reason.clone() })
            }
            _ => Err(stopped()),
        }
    }

    /// The top of the log here.
    ///
    /// # Errors
    /// [`Error::Stopped`] after a shutdown.
    pub async fn position(&self) -> Result<Position, Error> {
        self.inner.engine.step(|driver| store::top(driver.store.connection())).await
    }

    /// Ends syncing in good order: what is committed is sealed, channels are closed, the engine stops, the database's
    /// lock is free. Other clones of this library are of no use afterwards.
    ///
    /// A device that leads offers the lead to the follower that has most of the log, and waits for it for up to two seconds:
    /// see [`LibraryBuilder::hands_over`].
    pub async fn shutdown(&self) {
        self.offer_lead().await;
        let node = lock_node(&self.inner.node).take();
        if let Some(node) = node {
            let shared = node.shared();
            node.stop().await;
            let sealed = async {
                // Seal by seal, however much it is.
                shared.seal_backlog().await?;
                let rest = |driver: &mut Driver| {
                    driver.transaction(seal::seal_all)?;
                    sequence::own_batch(driver)?;
                    driver.publish()
                };
                self.inner.engine.step(rest).await
            };
            if let Err(error) = sealed.await {
                tracing::warn!(library = %self.inner.id, %error, "the last seal failed; the rows stay in the outbox");
            }
        }
        self.inner.engine.stop().await;
        self.inner.readers.close();
        // The lock goes with the file handle; unlocking it now lets the database be opened while clones are about.
        let _ = self.inner._lock.unlock();
        self.inner.status.send_modify(|status| status.link = Link::Idle);
    }
}

impl Library {
    async fn offer_lead(&self) {
        if !self.inner.hands_over {
            return;
        }
        let best = {
            let status = self.inner.status.borrow();
            let followers = status.followers.iter().filter(|_| status.role == Role::Leader);
            followers.max_by_key(|f| (f.confirmed, f.device)).map(|f| f.device)
        };
        let Some(best) = best else { return };
        match tokio::time::timeout(HAND_OVER_MAX, self.hand_over(best)).await {
            Ok(Ok(term)) => tracing::info!(library = %self.inner.id, %term, "the lead was handed over"),
            Ok(Err(error)) => {
                tracing::warn!(library = %self.inner.id, %error, "the lead was not handed over")
            }
            Err(_) => tracing::warn!(library = %self.inner.id, %best, "the lead was not taken in time"),
        }
    }
}

/// One start at a time; however it ends, failed or given up, the next may begin.
struct Starting<'s>(&'s AtomicBool);

impl<'s> Starting<'s> {
    fn begin(starting: &'s AtomicBool) -> Option<Self> {
        (!starting.swap(true, Ordering::AcqRel)).then_some(Self(starting))
    }
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Stops the node of a start that is given up before its end.
struct GivenUp<'s>(Option<&'s Mutex<Option<Node>>>);

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        if let Some(node) = self.0 {
            drop(lock_node(node).take());
        }
    }
}

fn lock_node(node: &Mutex<Option<Node>>) -> std::sync::MutexGuard<'_, Option<Node>> {
    node.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refuse_shared_names(models: &[ModelDescriptor]) -> Result<(), Error> {
    for (i, first) in models.iter().enumerate() {
        for second in &models[i + 1..] {
            let shared = if first.id == second.id {
                Some(("sync id", first.id.to_owned()))
            } else {
                (first.table == second.table).then(|| ("table", first.table.clone()))
            };
            if let Some((what, name)) = shared {
                return Err(Error::SharedName {
                    first: first.id.into(),
                    second: second.id.into(),
                    what,
                    name,
                });
            }
        }
    }
    Ok(())
}

/// Takes the lock that keeps a database to one engine, for as long as the file handle lives.
pub(crate) fn lock(path: &Path) -> Result<File, Error> {
    let mut name = path.as_os_str().to_owned();
    name.push("-sync");
    let file = File::options().create(true).truncate(false).write(true).open(PathBuf::from(&name));
    let failed = |what: &'static str, source| Error::File { what, path: PathBuf::from(&name), source };
    let file = file.map_err(|e| failed("opening", e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Locked { path: path.to_owned() }),
        Err(TryLockError::Error(e)) => Err(failed("locking", e)),
    }
}

/// Makes the sync tables, unless the application's own migrations have.
async fn make_tables(db: &Connection) -> Result<(), Error> {
    let failed = |source| Error::SeaOrm { what: "making the sync tables", source };
    let plain = db.plain();
    let tables =
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name IN ('sync_replica', 'sync_migrations')";
    let rows = plain
        .query_all_raw(Statement::from_string(plain.get_database_backend(), tables))
        .await
        .map_err(failed)?;
    let names = rows
        .iter()
        .map(|row| row.try_get_by_index::<String>(0))
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    let by_application =
        names.iter().any(|n| n == "sync_replica") && !names.iter().any(|n| n == "sync_migrations");
    if by_application {
        return Ok(());
    }
    SyncMigrator::up(plain, None).await.map_err(failed)
}
