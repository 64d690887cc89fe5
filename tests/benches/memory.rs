//! How much memory a backlog takes at its peak, on either side: leader and follower are processes of their own, this
//! program started twice more.
//!
//! A child tells on its standard output what its parent needs, and ends when its input does.

use std::{
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child as Process, ChildStdin, ChildStdout, Command, Stdio},
};

use tidelog::id::{DeviceId, LibraryId};

use crate::{
    Failure,
    args::Options,
    database::{self, Backlog, Entrance},
    devices::{self, Device},
    process,
    report::{Bar, Row},
    rounds::median,
};

pub(crate) const NAMES: &[&str] = &["memory/leader", "memory/follower"];

const ROUNDS: usize = 3;
/// MiB above what the process had before its node started.
const GROWTH_MAX: f64 = 64.0;

/// What a child is told on its command line.
pub(crate) struct Child {
    folder: PathBuf,
    library: LibraryId,
    peer: DeviceId,
    rows: usize,
    /// Where the leader listens; the leader itself has none.
    leader: Option<SocketAddr>,
}

impl Child {
    pub(crate) fn parse(args: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let args: Vec<String> = args.into_iter().collect();
        let bad = || format!("`--child {}` is for the bench itself", args.join(" "));
        let [folder, library, peer, rows, leader @ ..] = args.as_slice() else { return Err(bad()) };
        Ok(Self {
            folder: folder.into(),
            library: LibraryId(library.parse().map_err(|_| bad())?),
            peer: DeviceId::parse(peer).ok_or_else(bad)?,
            rows: rows.parse().map_err(|_| bad())?,
            leader: leader.first().map(|address| address.parse()).transpose().map_err(|_| bad())?,
        })
    }
}

pub(crate) async fn run(options: &Options) -> Result<Vec<Row>, Failure> {
    let folder = database::folder()?;
    let backlog = Backlog::write(folder.path(), options.rows).await?;
    let mut growths = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        eprintln!("memory, round {round} of {ROUNDS} …");
        let (folder, backlog) =
            (folder.path().to_owned(), (backlog.path.clone(), backlog.library, backlog.rows));
        // Pipes of children block; the runtime is not to.
        let (leader, follower) = tokio::task::spawn_blocking(move || round_of(&folder, &backlog)).await??;
        growths.0.push(leader);
        growths.1.push(follower);
    }
    let row = |name: &str, growths| {
        Row::new(name, "MiB", (median(growths), None, None), Bar::ValueAtMost(GROWTH_MAX))
    };
    Ok(vec![row("memory/leader", growths.0), row("memory/follower", growths.1)])
}

fn round_of(
    folder: &Path,
    (backlog, library, rows): &(PathBuf, LibraryId, usize),
) -> Result<(f64, f64), Failure> {
    database::copy(backlog, &folder.join("leader.db"))?;
    database::remove(&folder.join("follower.db"))?;
    let ids = (devices::key(folder, "leader")?.device_id(), devices::key(folder, "follower")?.device_id());
    let mut leader = Running::start(folder, *library, ids.1, *rows, None)?;
    let address = leader.line()?;
    let mut follower = Running::start(folder, *library, ids.0, *rows, Some(&address))?;
    let follower_growth = follower.line()?.parse()?;
    follower.end()?;
    leader.ask()?;
    let leader_growth = leader.line()?.parse()?;
    leader.end()?;
    Ok((leader_growth, follower_growth))
}

/// A child, its input and its output.
struct Running {
    process: Process,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Running {
    fn start(
        folder: &Path,
        library: LibraryId,
        peer: DeviceId,
        rows: usize,
        leader: Option<&str>,
    ) -> Result<Self, Failure> {
        let mut process = Command::new(std::env::current_exe()?)
            .arg("--child")
            .arg(folder)
            .args([library.to_string(), peer.to_string(), rows.to_string()])
            .args(leader)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = process.stdin.take();
        let output = BufReader::new(process.stdout.take().ok_or("a child has no output")?);
        Ok(Self { process, input, output })
    }

    fn line(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        if line.is_empty() {
            return Err("a child has ended early".into());
        }
        Ok(line.trim().to_owned())
    }

    fn ask(&mut self) -> Result<(), Failure> {
        let input = self.input.as_mut().ok_or("a child has no input")?;
        writeln!(input, "?")?;
        Ok(input.flush()?)
    }

    fn end(mut self) -> Result<(), Failure> {
        self.input = None;
        self.process.wait()?;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails where it has ended in good order.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The child's own life.
pub(crate) async fn child(child: Child) -> Result<(), Failure> {
    let Child { folder, library, peer, rows, leader } = child;
    let (name, entrance) = match leader {
        None => ("leader", Entrance::Create(library)),
        Some(_) => ("follower", Entrance::Join(library)),
    };
    let key = devices::key(&folder, name)?;
    let device = Device::open(&folder, name, entrance, key, peer, leader).await?;
    let before = process::memory()?.now;
    device.start().await?;
    match leader {
        None => {
            println!("{}", device.quic.local_addr()?);
            parent_spoke().await?;
        }
        Some(_) => {
            database::holds(&device.path, rows).await?;
        }
    }
    let growth = process::memory()?.peak.saturating_sub(before) as f64 / f64::from(1 << 20);
    println!("{growth}");
    parent_spoke().await?;
    device.close().await?;
    Ok(())
}

/// Waits for a line of the parent, or for its end.
async fn parent_spoke() -> Result<(), Failure> {
    tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await??;
    Ok(())
}
